"""Keeps this node's own leaf: what it is told, under the newest Grants.

After each new head the leaf is asked of central and REPOs first and of the other peers then: a
neighbour of the same site keeps it too. Until it comes, the older leaf goes on to hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import trio

from archid.errors import ArchidError, StorageError
from archid.events import EventHub
from archid.log import get_logger
from archid.net.errors import PeerRefused
from archid.net.peer import Peer
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal, either
from archid.sync.trust_keeper import TrustKeeper
from protocol.errors import ProtocolError
from protocol.facts import NodeFacts
from protocol.grants import Leaf, LeafDocument
from protocol.ids import DocumentId, ManifestId, NodeId
from protocol.messages import GetGrants, GetLeaf, GrantsAnswer, LeafAnswer

log = get_logger(__name__)

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0
MAX_ASKED: Final = 16
"""Under how many Grants roots a neighbour is asked for this node's leaf."""


class OwnLeaf:
    """The newest leaf of this node that is held. `changed` fires when another one takes over."""

    def __init__(
        self, node: NodeId, *, keeper: TrustKeeper, directory: PeerDirectory, events: EventHub
    ) -> None:
        self.node = node
        self.changed = Signal()
        self._keeper = keeper
        self._directory = directory
        self._events = events
        self._held: tuple[LeafDocument, Leaf] | None = None

    async def load(self) -> None:
        """Take over what is on disk, if it is newer than what is held. Raises StorageError."""
        held = await self._keeper.newest_leaf(self.node)
        if held is None or self._age(held[0].grants_root) >= self._held_age:
            return
        self._held = held
        log.info("leaf_accepted", releases=len(held[1].releases))
        self._events.publish("leaf.accepted", node=self.node.hex())
        self.changed.fire()
        await self._keeper.forget_old_leaves(self.node)

    @property
    def leaf(self) -> Leaf | None:
        """What this node is told; None until the first one."""
        return self._held[1] if self._held is not None else None

    @property
    def facts(self) -> NodeFacts | None:
        """Who this node is, as the fleet says."""
        return self._held[1].facts if self._held is not None else None

    @property
    def document_and_leaf(self) -> tuple[LeafDocument, Leaf] | None:
        """The leaf as it came, which makes proofs, and what it says."""
        return self._held

    def proof_for(self, manifest: ManifestId) -> bytes:
        """What entitles this node to a manifest; empty when it reads everything, or nothing does.

        An entry of a release that still runs is shown before one of a withdrawn release.
        """
        if self._held is None:
            return b""
        document, leaf = self._held
        if leaf.facts.reads_everything:
            return b""
        withdrawn = {one.release for one in leaf.releases if one.withdrawn}
        found = [
            (entry.release in withdrawn, index)
            for index, entry in leaf.entries
            if entry.manifest == manifest
        ]
        return document.proof(min(found)[1]).encode() if found else b""

    async def run(self) -> None:
        """Follow the heads until cancelled."""
        heads, peers = self._keeper.changed, self._directory.changed
        wait_s = FIRST_RETRY_S
        while True:
            heads_seen, peers_seen = heads.version, peers.version
            asked = False
            if not self.is_newest:
                await self._look()
            if not self.is_newest:
                asked = await self._catch_up()
            if self.is_newest:
                wait_s = FIRST_RETRY_S
                await heads.wait(heads_seen)
                continue
            # Who was asked and had nothing is asked again; without a peer there is nobody to ask.
            with trio.move_on_after(wait_s if asked else math.inf) as timer:
                await either((heads, heads_seen), (peers, peers_seen))
            waited = timer.cancelled_caught
            wait_s = min(2 * wait_s, LONGEST_RETRY_S) if waited else FIRST_RETRY_S

    @property
    def is_newest(self) -> bool:
        """Whether it is the one under the newest Grants that the head names."""
        return self._held_age == 0

    @property
    def _held_age(self) -> float:
        return math.inf if self._held is None else self._age(self._held[0].grants_root)

    def _age(self, grants_root: DocumentId) -> float:
        """How many Grants roots of the head are newer; infinite when it is not accepted."""
        head = self._keeper.trust.head
        if head is None or grants_root not in head.grants_roots:
            return math.inf
        return head.grants_roots.index(grants_root)

    async def _look(self) -> None:
        """Look on the disk first: central puts its own leaf there, the doorkeeper what it asked."""
        try:
            await self.load()
        except StorageError as error:
            log.error("leaf_unreadable", why=error.sentence)

    async def _catch_up(self) -> bool:
        """Ask one peer after the other until one has it; whether there was anybody to ask."""
        peers = self._directory.one_per_node()
        for peer in sorted(peers, key=lambda peer: not peer.facts.reads_everything):
            grants_root = self._keeper.grants_root
            if grants_root is None or self.is_newest:
                break
            for wanted in self._worth_asking(peer):
                try:
                    await self._ask(peer, wanted)
                    break
                except PeerRefused as error:
                    log.info("leaf_not_given", node=peer.node.short, why=str(error))
                except (ArchidError, ProtocolError) as error:
                    log.info("leaf_not_given", node=peer.node.short, why=str(error))
                    break
        return bool(peers)

    def _worth_asking(self, peer: Peer) -> Sequence[DocumentId]:
        """The newest Grants root; of a neighbour, which may not have that, others newer than ours.

        Central and REPOs that lack the newest will have it in a moment.
        """
        head = self._keeper.trust.head
        newer = head.grants_roots if head is not None else ()
        if self._held_age < len(newer):
            newer = newer[: int(self._held_age)]
        return newer[: 1 if peer.facts.reads_everything else MAX_ASKED]

    async def _ask(self, peer: Peer, grants_root: DocumentId) -> None:
        keeper = self._keeper
        if keeper.trust.grants(grants_root) is None:
            answer = await peer.request(GetGrants(0, grants_root), GrantsAnswer)
            await keeper.accept_grants(answer.envelope)
        await self.load()
        if self._held_age > self._age(grants_root):
            leaf = await peer.request(GetLeaf(0, self.node, grants_root), LeafAnswer)
            await keeper.keep_leaf(leaf.leaf, self.node, grants_root)
            await self.load()
