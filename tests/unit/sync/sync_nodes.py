"""Whole nodes in one process: real stores in a folder, real TLS over loopback, no daemon around.

`SyncFleet` signs what central would sign, lists included, and makes nodes; `linked` connects two
of them as the switchboard would, with everything that runs on a connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from archid.config import StorageSettings
from archid.errors import ArchidError
from archid.events import EventHub, Subscription
from archid.identity import Identity
from archid.journal import MIGRATIONS as JOURNAL_MIGRATIONS
from archid.journal import Journal
from archid.membership import Membership
from archid.net.admission import open_peer
from archid.net.lane_desk import LaneDesk
from archid.net.peer import Peer
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from archid.net.trusted_doorkeeper import TrustedDoorkeeper
from archid.store.absences import Absences
from archid.store.bundles import Bundles
from archid.store.damage import DamageBook
from archid.store.database import Database
from archid.store.documents import DocumentStore
from archid.store.index import MIGRATIONS as INDEX_MIGRATIONS
from archid.store.index import ChunkIndex
from archid.store.layout import StatePaths
from archid.store.layouts import Layouts
from archid.store.library import Library
from archid.store.tree_store import TreeStore
from archid.store.trust_file import TrustFile
from archid.store.upkeep import Upkeep
from archid.sync.address_book import AddressBook
from archid.sync.fetcher import Fetcher
from archid.sync.healing import Healing
from archid.sync.links import Links
from archid.sync.listings import Listings
from archid.sync.own_leaf import OwnLeaf
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal, either
from archid.sync.states import Account, NodeStates
from archid.sync.trust_keeper import TrustKeeper
from archid.sync.trust_restoring import restore_trust
from archid.sync.whereabouts import Whereabouts
from protocol import paged
from protocol.canonical import Value
from protocol.connection_states import Side
from protocol.documents import GrantsRoot
from protocol.envelope import Envelope
from protocol.facts import Entry, LeafItem, NodeFacts, ReleaseHeader
from protocol.features import HEADS, HOLDERS
from protocol.grants import GrantsTree, build_grants
from protocol.head import Denial, Head
from protocol.ids import DocumentId, ListId, ManifestId, NodeId, PageId, ReleaseId
from protocol.layout import Layout
from protocol.manifest import ManifestRoot
from protocol.manifest_builder import ManifestBuilder
from protocol.root import Root
from protocol.state import Holding
from tests.unit.net.certified import Fleet, tcp_pair
from tests.unit.protocol.signed_fleet import NOW_S, SignedFleet, items_of
from tests.unit.store.trees import File, Tree, Version, cut, random_bytes, stage_all

SETTINGS = PeerSettings(
    admission_timeout_s=20, request_timeout_s=20, keepalive_s=10, dead_after_s=20
)
MIB = 1 << 20


@dataclass
class Clock:
    """Wall-clock seconds that pass when the test says so."""

    now: float = float(NOW_S)

    def __call__(self) -> float:
        return self.now


def release(name: str, /, **changes: object) -> ReleaseHeader:
    """A release that has begun, by its name."""
    header = ReleaseHeader(
        ReleaseId(name.encode().ljust(16, b".")), name, 1, "active", NOW_S - 100, NOW_S - 50,
        NOW_S + 100_000,
    )  # fmt: skip
    return replace(header, **changes)  # type: ignore[arg-type]


def entries(header: ReleaseHeader, **versions: Version) -> list[LeafItem]:
    """A release's header and its entries, as a leaf holds them."""
    return [
        header,
        *(
            Entry(header.release, header.generation, version.manifest, kind)
            for kind, version in versions.items()
        ),
    ]


class SyncFleet:
    """Signs the documents of one fleet and keeps what a REPO would hold of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signed = SignedFleet("demo")
        self.tls = Fleet.make(folder / "keys", "demo")
        self.root: Root = replace(self.signed.root(), ca_certificates=(self.tls.ca,))
        self.roots: list[Envelope] = [self.signed.sign_root(self.root)]
        self.facts: dict[NodeId, NodeFacts] = {}
        self.items: dict[NodeId, list[bytes]] = {}
        self.trees: dict[DocumentId, GrantsTree] = {}
        self.grants: dict[DocumentId, Envelope] = {}
        self.grants_roots: list[DocumentId] = []
        self.lists: dict[ListId, bytes] = {}
        self.pages: dict[PageId, bytes] = {}
        self.publications: dict[ManifestId, bytes] = {}
        self.catalogue: list[paged.CatalogueRow] = []
        self.serial = 0
        self.head: Head | None = None

    def enrol(self, name: str, role: str = "ice", site: str = "lyon") -> Identity:
        identity = self.tls.node(name)
        node = identity.node_id
        kind = "salle" if role == "ice" else ""
        self.facts[node] = NodeFacts(node, identity.public_key, role, name, site, "1", kind)
        self.give(identity)
        return identity

    def give(self, identity: Identity, items: Iterable[LeafItem] = ()) -> None:
        """Put these into a node's leaf, in place of what was there."""
        facts = self.facts[identity.node_id]
        self.items[identity.node_id] = items_of(facts.name, [facts, *items])

    def publish(self, name: str, tree: Tree, *, kind: str = "feature", version: int = 1) -> Version:
        """A version signed by the role `publish`, in the Catalogue from the next head on."""
        made = version_of(self.signed, name, tree, kind=kind, version=version)
        signature = self.signed.signers["publish"].sign(ManifestRoot.TYPE, made.root.payload)
        self.publications[made.manifest] = Envelope(made.root.payload, (signature,)).encode()
        self.catalogue.append(paged.CatalogueRow(name, kind, version, made.manifest))
        return made

    def sign(
        self,
        *,
        denied: tuple[Denial, ...] = (),
        forget_old: bool = False,
        issued_s: int | None = None,
    ) -> None:
        """Grants of everybody enrolled, the lists, and a head that names all of it."""
        tree = build_grants(self.items)
        grants_root = GrantsRoot(
            self.signed.fleet, 1, NOW_S + self.serial, tree.tree, tree.leaf_count,
            self._list(paged.GRANTS, [row.to_value() for row in tree.index_rows]),
        )  # fmt: skip
        self.trees[grants_root.id] = tree
        self.grants[grants_root.id] = self.signed.sign_grants(grants_root)
        older = () if forget_old else (one for one in self.grants_roots if one != grants_root.id)
        self.grants_roots = [grants_root.id, *older]
        roster = [paged.RosterRow(self.facts[node]).to_value() for node in sorted(self.facts)]
        self.serial += 1
        self.head = replace(
            self.signed.head(*self.grants_roots, serial=self.serial),
            catalogue=self._list(paged.CATALOGUE, [row.to_value() for row in self.catalogue]),
            roster=self._list(paged.ROSTER, roster),
            denied=denied,
        )
        if issued_s is not None:
            self.head = replace(self.head, issued_s=issued_s, expires_s=issued_s + 7 * 86400)

    def _list(self, list_type: str, rows: Sequence[Value]) -> ListId:
        index, list_id, pages = paged.build(list_type, self.signed.fleet, rows)
        self.lists[list_id] = index
        self.pages.update(pages)
        return list_id

    @property
    def head_bytes(self) -> bytes:
        assert self.head is not None
        return self.signed.sign_head(self.head).encode()

    @property
    def grants_bytes(self) -> bytes:
        """The newest Grants root."""
        return self.grants[self.grants_roots[0]].encode()

    def leaf(self, identity: Identity, grants_root: DocumentId | None = None) -> bytes:
        newest = self.grants_roots[0] if grants_root is None else grants_root
        return self.trees[newest].leaf(identity.node_id, newest).encode()

    def denial(self, identity: Identity) -> Denial:
        """What denies a node under everything signed so far."""
        return Denial("node", identity.node_id, self.grants_roots[0])

    @contextmanager
    def node(self, identity: Identity) -> Iterator[SyncNode]:
        """A node that has joined under the newest head and is started now."""
        paths = StatePaths(
            self.folder / "nodes" / self.facts[identity.node_id].name / "state",
            self.folder / "nodes" / self.facts[identity.node_id].name / "scripts",
        )
        paths.prepare(player_gid=None)
        documents = DocumentStore(paths.documents)
        for version, root in enumerate(self.roots, 1):
            documents.put_root(version, root.encode())
        documents.put_head(self.head_bytes)
        documents.put_grants(self.grants_bytes)
        documents.put_leaf(identity.node_id, self.grants_roots[0], self.leaf(identity))
        with self.restarted(identity, paths) as node:
            yield node

    @contextmanager
    def restarted(self, identity: Identity, paths: StatePaths) -> Iterator[SyncNode]:
        """A node by what is in its state folder."""
        with ExitStack() as stack:
            yield SyncNode(self, identity, paths, stack)


def version_of(
    signed: SignedFleet, name: str, tree: Tree, *, kind: str = "feature", version: int = 1,
    chunk_bytes: int = 65536,
) -> Version:  # fmt: skip
    builder = ManifestBuilder(signed.fleet, kind, name, version)
    for path in sorted(tree, key=str.encode):
        entry = tree[path]
        assert isinstance(entry, File)
        chunks = cut(entry.data, chunk_bytes)
        builder.add_file(path, executable=entry.executable, mtime_ns=entry.mtime_ns, chunks=chunks)
    root, pieces = builder.finish()
    return Version(dict(tree), root, pieces, Layout.from_pieces(root, pieces))


def reel(seed: int, size_bytes: int = 100_000) -> dict[str, File]:
    """A small script."""
    return {"reel.bin": File(random_bytes(seed, size_bytes))}


class SyncNode:
    """One node's stores and services; which of them run is the test's to say."""

    def __init__(
        self, fleet: SyncFleet, identity: Identity, paths: StatePaths, stack: ExitStack
    ) -> None:
        self.fleet = fleet
        self.identity = identity
        self.paths = paths
        self.clock = Clock()
        self.said_addresses: tuple[str, ...] = ()
        self.said_holdings: tuple[Holding, ...] = ()
        self.events = EventHub()
        self.journal = Journal(
            stack.enter_context(Database(paths.journal_db, JOURNAL_MIGRATIONS, durable=True)),
            identity,
            clock=self.clock,
        )
        self.documents = DocumentStore(paths.documents)
        self.trust_file = TrustFile(paths.trust)
        membership = Membership(
            fleet.signed.fleet, "demo", fleet.root.fingerprint, fleet.root.version, ()
        )
        trust = restore_trust(
            membership,
            documents=self.documents,
            trust_file=self.trust_file,
            floor=self.journal.floor(),
            now=NOW_S,
        )
        self.keeper = TrustKeeper(
            trust,
            documents=self.documents,
            trust_file=self.trust_file,
            journal=self.journal,
            events=self.events,
            clock=self.clock,
        )
        self.directory = PeerDirectory(self.events)
        self.leaf = OwnLeaf(
            identity.node_id, keeper=self.keeper, directory=self.directory, events=self.events
        )
        self.listings = Listings(
            keeper=self.keeper,
            documents=self.documents,
            directory=self.directory,
            events=self.events,
        )
        node_db = stack.enter_context(Database(paths.node_db, INDEX_MIGRATIONS))
        upkeep = Upkeep(node_db)
        trees = TreeStore(paths.trees, Layouts(self.documents), DamageBook(upkeep))
        stack.callback(trees.close)
        self.absences = Absences(node_db)
        self.library = Library(
            paths,
            documents=self.documents,
            trees=trees,
            index=ChunkIndex(node_db),
            bundles=Bundles(paths),
        )
        stack.callback(self.library.close)
        self.library.open()
        self.fetcher = Fetcher(
            identity.node_id,
            keeper=self.keeper,
            directory=self.directory,
            library=self.library,
            journal=self.journal,
            events=self.events,
            proof_for=self.leaf.proof_for,
            clock=self.clock,
        )
        self.healing = Healing(
            library=self.library,
            fetcher=self.fetcher,
            journal=self.journal,
            events=self.events,
            upkeep=upkeep,
            storage=StorageSettings(),
        )
        self.addresses = AddressBook(
            paths.state / "addresses.json", identity.node_id, self.facts.role, ()
        )
        self.doorkeeper = TrustedDoorkeeper(
            node=identity.node_id,
            trusted=self.keeper.trust,
            leaf_of=self.keeper.leaf_of,
            keep_leaf=self.keeper.keep_leaf_document,
            keep=self.keeper.keep,
            on_fork=self.keeper.alarm_fork,
            software="test",
            features=(HEADS, HOLDERS),
            now=self.clock,
        )
        self.states = NodeStates(
            identity,
            incarnation=1,
            keeper=self.keeper,
            leaf=self.leaf,
            events=self.events,
            account=self._account,
            clock=self.clock,
        )
        self.links = Links(
            keeper=self.keeper,
            doorkeeper=self.doorkeeper,
            directory=self.directory,
            leaf=self.leaf,
            library=self.library,
            addresses=self.addresses,
            states=self.states,
            whereabouts=Whereabouts(lambda: self.leaf.facts, self.keeper, self.states),
            lanes=LaneDesk(self.identity.node_id, timeout_s=5.0),
        )

    async def _account(self) -> Account:
        return Account("test", self.said_addresses, "ok", (), 0, (), self.said_holdings)

    @property
    def id(self) -> NodeId:
        return self.identity.node_id

    @property
    def facts(self) -> NodeFacts:
        return self.fleet.facts[self.id]

    def hold_documents(self, version: Version) -> None:
        self.documents.put_manifest(self.fleet.publications[version.manifest])
        self.documents.put_pieces(version.pieces.values())

    def hold(self, version: Version) -> None:
        """Have the whole tree."""
        self.hold_documents(version)
        staging = self.library.stage(version.layout)
        stage_all(staging, version)
        self.library.place(staging)

    def hold_lists(self) -> None:
        """Have everything that is under the newest head, as central has."""
        fleet = self.fleet
        for page in fleet.pages.values():
            self.documents.put_page(page)
        for index in fleet.lists.values():
            self.documents.put_list(index)
        newest = fleet.grants_roots[0]
        for node in fleet.items:
            leaf = fleet.trees[newest].leaf(node, newest).encode()
            self.documents.put_leaf(node, newest, leaf)

    async def take_head(self) -> None:
        """Believe the fleet's newest head, and have the own leaf under it."""
        await self.keeper.accept_head(self.fleet.head_bytes, self.fleet.grants_bytes)
        newest = self.fleet.grants_roots[0]
        await self.keeper.keep_leaf(self.fleet.leaf(self.identity), self.id, newest)
        await self.leaf.load()


Session = Callable[[Peer], Awaitable[None]]


@dataclass
class Link:
    """Two nodes' ends of one connection."""

    left: Peer
    right: Peer
    over: trio.Event = field(default_factory=trio.Event)


async def connect(
    nursery: trio.Nursery,
    one: SyncNode,
    two: SyncNode,
    *,
    right: Session | None = None,
    settings: PeerSettings = SETTINGS,
) -> Link:
    """`one` has dialled `two`; sessions run on both ends until one ends the connection.

    `right` replaces what `two` does with its end.
    """
    left_tcp, right_tcp = await tcp_pair()
    tls = one.fleet.tls
    client = TLSStream(left_tcp, tls.client_context(one.identity), server_side=False)
    server = TLSStream(right_tcp, tls.server_context(two.identity), server_side=True)
    for node in (one, two):
        if node.leaf.facts is None:
            await node.leaf.load()
    peers: dict[Side, Peer] = {}
    ready = {side: trio.Event() for side in Side}

    async def hold(stream: TLSStream, node: SyncNode, side: Side, session: Session) -> None:
        try:
            await stream.do_handshake()
            async with open_peer(
                stream, node.doorkeeper, settings, side=side, now=node.clock
            ) as peer:
                peers[side] = peer
                ready[side].set()
                await session(peer)
                await peer.closed.wait()
        except ArchidError:
            return

    nursery.start_soon(hold, client, one, Side.CLIENT, one.links.session)
    nursery.start_soon(hold, server, two, Side.SERVER, right or two.links.session)
    for event in ready.values():
        await event.wait()
    return Link(peers[Side.CLIENT], peers[Side.SERVER])


@asynccontextmanager
async def linked(
    one: SyncNode, two: SyncNode, *, right: Session | None = None
) -> AsyncIterator[Link]:
    """Two nodes that are connected for the body's duration."""
    async with running() as nursery:
        yield await connect(nursery, one, two, right=right)


@asynccontextmanager
async def running(*services: Callable[[], Awaitable[None]]) -> AsyncIterator[trio.Nursery]:
    """Run services during the body; a body that takes very long fails."""
    async with trio.open_nursery() as nursery:
        for service in services:
            nursery.start_soon(service)
        with trio.fail_after(60):
            yield nursery
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], *signals: Signal) -> None:
    """Wait on signals until something holds."""
    while True:
        seen = [(signal, signal.version) for signal in signals]
        if condition():
            return
        await either(*seen)


async def event(subscription: Subscription, name: str, /, **fields: object) -> dict[str, object]:
    """The next event of this name with these fields."""
    async for one in subscription:
        if one["event"] == name and fields.items() <= one.items():
            return one
    raise AssertionError(f"no {name} came")
