"""Nodes of a signed fleet with real certificates, that can be connected over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from archid.identity import Identity
from archid.net.admission import open_peer
from archid.net.peer import Peer
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from archid.net.trusted_doorkeeper import TrustedDoorkeeper
from protocol.connection_states import Side
from protocol.envelope import Envelope, PublicKey
from protocol.facts import NodeFacts
from protocol.grants import GrantsTree, LeafDocument
from protocol.head import Denial, Head
from protocol.ids import DocumentId, NodeId
from protocol.root import Root
from protocol.trust import TrustedDocuments
from tests.unit.net.certified import Fleet, tcp_pair
from tests.unit.protocol.signed_fleet import NOW_S, SignedFleet, items_of

SETTINGS = PeerSettings(
    admission_timeout_s=10, request_timeout_s=10, keepalive_s=5, dead_after_s=10
)


@dataclass
class Node:
    """One node: identity, what it believes, and the leaves that it holds."""

    identity: Identity
    trusted: TrustedDocuments
    tls: Fleet
    leaves: dict[tuple[NodeId, DocumentId], LeafDocument] = field(default_factory=dict)
    kept: int = 0
    forks: list[DocumentId] = field(default_factory=list)
    features: tuple[str, ...] = ()

    @property
    def doorkeeper(self) -> TrustedDoorkeeper:
        async def leaf_of(node: NodeId, grants_root: DocumentId) -> LeafDocument | None:
            return self.leaves.get((node, grants_root))

        async def keep_leaf(leaf: LeafDocument) -> None:
            self.leaves[leaf.node, leaf.grants_root] = leaf

        async def keep() -> None:
            self.kept += 1

        return TrustedDoorkeeper(
            node=self.identity.node_id,
            trusted=self.trusted,
            leaf_of=leaf_of,
            keep_leaf=keep_leaf,
            keep=keep,
            on_fork=lambda other, _error: self.forks.append(other),
            software="test",
            features=self.features,
            now=lambda: float(NOW_S),
        )


class FleetNodes:
    """Makes the nodes of one fleet and signs its documents."""

    def __init__(self, folder: Path, name: str = "demo") -> None:
        self.signed = SignedFleet(name)
        self.tls = Fleet.make(folder, name)
        self.root: Root = replace(self.signed.root(), ca_certificates=(self.tls.ca,))
        self.items: dict[NodeId, list[bytes]] = {}
        self.trees: dict[DocumentId, GrantsTree] = {}
        self.grants_envelopes: dict[DocumentId, Envelope] = {}
        self.grants_roots: list[DocumentId] = []
        self.serial = 0
        self.head: Head | None = None

    def enrol(self, name: str, role: str = "ice") -> Identity:
        identity = self.tls.node(name)
        self.add_key(identity.public_key, name, role)
        return identity

    def add_key(self, key: PublicKey, name: str, role: str = "ice") -> None:
        node = NodeId.of(key)
        facts = NodeFacts(node, key, role, name, "lyon", "1", "salle")
        self.items[node] = items_of(name, [facts])

    def sign_state(self, *, denied: tuple[Denial, ...] = (), forget_old: bool = False) -> None:
        """Grants of everybody enrolled so far, and a head that names them."""
        tree, grants_root = self.signed.grants(self.items, issued_s=NOW_S + self.serial)
        self.trees[grants_root.id] = tree
        self.grants_envelopes[grants_root.id] = self.signed.sign_grants(grants_root)
        older = [] if forget_old else self.grants_roots
        self.grants_roots = [grants_root.id, *(one for one in older if one != grants_root.id)]
        self.serial += 1
        head = self.signed.head(*self.grants_roots, serial=self.serial)
        self.head = replace(head, denied=denied)

    @property
    def head_envelope(self) -> Envelope:
        assert self.head is not None
        return self.signed.sign_head(self.head)

    def node(self, identity: Identity, *, all_leaves: bool = False) -> Node:
        """A node that holds the newest state."""
        trusted = TrustedDocuments()
        trusted.accept_first_root(self.signed.sign_root(self.root), self.root.fingerprint)
        node = Node(identity, trusted, self.tls)
        self.bring_up_to_date(node, all_leaves=all_leaves)
        return node

    def bring_up_to_date(self, node: Node, *, all_leaves: bool = False) -> None:
        node.trusted.accept_head(self.head_envelope, now=NOW_S)
        newest = self.grants_roots[0]
        node.trusted.accept_grants(self.grants_envelopes[newest])
        wanted = self.items if all_leaves else [node.identity.node_id]
        for one in wanted:
            if one in self.items:
                node.leaves[one, newest] = self.trees[newest].leaf(one, newest)


Body = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def connected(
    one: Node,
    two: Node,
    settings: PeerSettings = SETTINGS,
    server_settings: PeerSettings | None = None,
) -> AsyncIterator[tuple[Peer, Peer]]:
    """`one` has dialled `two`; both are admitted."""
    left, right = await tcp_pair()
    client = TLSStream(left, one.tls.client_context(one.identity), server_side=False)
    server = TLSStream(right, two.tls.server_context(two.identity), server_side=True)
    peers: dict[str, Peer] = {}
    ready = {"client": trio.Event(), "server": trio.Event()}
    over = trio.Event()

    async def hold(name: str, stream: TLSStream, node: Node, side: Side) -> None:
        await stream.do_handshake()
        held = (server_settings or settings) if side is Side.SERVER else settings
        async with open_peer(
            stream, node.doorkeeper, held, side=side, now=lambda: float(NOW_S)
        ) as peer:
            peers[name] = peer
            ready[name].set()
            await over.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, "client", client, one, Side.CLIENT)
        nursery.start_soon(hold, "server", server, two, Side.SERVER)
        for event in ready.values():
            await event.wait()
        try:
            yield peers["client"], peers["server"]
        finally:
            over.set()


async def meet(
    one: Node, two: Node, settings: PeerSettings = SETTINGS
) -> dict[str, BaseException | NodeFacts]:
    """Connect, and say for each side whom it admitted or which error it got."""
    left, right = await tcp_pair()
    client = TLSStream(left, one.tls.client_context(one.identity), server_side=False)
    server = TLSStream(right, two.tls.server_context(two.identity), server_side=True)
    results: dict[str, BaseException | NodeFacts] = {}

    async def hold(name: str, stream: TLSStream, node: Node, side: Side) -> None:
        try:
            await stream.do_handshake()
            async with open_peer(
                stream, node.doorkeeper, settings, side=side, now=lambda: float(NOW_S)
            ) as peer:
                results[name] = peer.facts
        except Exception as error:  # noqa: BLE001 - the error is what the test looks at
            results[name] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, "client", client, one, Side.CLIENT)
        nursery.start_soon(hold, "server", server, two, Side.SERVER)
    return results
