"""Keeps this node's own leaf: what it is told, under the newest Grants.

After each new head the leaf is asked of central and REPOs first and of the other peers then: a
neighbour of the same site keeps it too. Until it comes, the older leaf goes on to hold.
"""

from __future__ import annotations

from typing import Final

import trio

from archid.events import EventHub
from archid.log import get_logger
from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.peer import Peer
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal, either
from archid.sync.trust_keeper import TrustKeeper
from protocol.errors import ProtocolError
from protocol.facts import NodeFacts
from protocol.grants import Leaf, LeafDocument
from protocol.ids import ManifestId, NodeId
from protocol.messages import GetGrants, GetLeaf, GrantsAnswer, LeafAnswer

log = get_logger(__name__)

RETRY_S: Final = 2.0


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

    def load(self) -> None:
        """Read what is on disk; blocks shortly."""
        self._held = self._keeper.newest_leaf(self.node)

    @property
    def leaf(self) -> Leaf | None:
        """What this node is told; None only when all that it was told is no longer accepted."""
        return self._held[1] if self._held is not None else None

    @property
    def facts(self) -> NodeFacts | None:
        """Who this node is, as the fleet says."""
        return self._held[1].facts if self._held is not None else None

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
        while True:
            heads_seen, peers_seen = heads.version, peers.version
            if not self._is_newest():
                await self._catch_up()
            if self._is_newest():
                await heads.wait(heads_seen)
            else:
                with trio.move_on_after(RETRY_S):
                    await either((heads, heads_seen), (peers, peers_seen))

    def _is_newest(self) -> bool:
        return self._held is not None and self._held[0].grants_root == self._keeper.grants_root

    async def _catch_up(self) -> None:
        peers = self._directory.one_per_node()
        for peer in sorted(peers, key=lambda peer: not peer.facts.reads_everything):
            try:
                await self._ask(peer)
            except (PeerRefused, PeerLost, PeerTooSlow, ProtocolError) as error:
                log.info("leaf_not_given", node=peer.node.short, why=str(error))
                continue
            return

    async def _ask(self, peer: Peer) -> None:
        grants_root = self._keeper.grants_root
        documents = self._keeper.documents
        if self._keeper.trust.grants(grants_root) is None:
            answer = await peer.request(GetGrants(0, grants_root), GrantsAnswer)
            await self._keeper.accept_grants(answer.envelope)
        if not documents.has_leaf(self.node, grants_root):
            leaf = await peer.request(GetLeaf(0, self.node, grants_root), LeafAnswer)
            await self._keeper.keep_leaf(leaf.leaf, self.node)
        self.load()
        log.info("leaf_accepted", releases=len(self.leaf.releases) if self.leaf else 0)
        self._events.publish("leaf.accepted", node=self.node.hex())
        self.changed.fire()
