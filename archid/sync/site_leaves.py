"""Keeps the leaves of the other nodes of this site, to pass them on.

A server that was off for long may reach nobody but its neighbour when it comes back: there it
finds the head, the Grants root and its own leaf. Who belongs to the site is learnt from the states
that are told here, from connections, and from the leaves that lie here already. Only the newest
leaf of each is kept, of so many nodes and so large at most that a cinema's disk does not notice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import trio

from archid.errors import ArchidError
from archid.events import EventHub
from archid.log import SparingLog, get_logger
from archid.net.errors import PeerRefused
from archid.net.peer import Peer
from archid.store.errors import DocumentMissing
from archid.sync.own_leaf import OwnLeaf
from archid.sync.peers import PeerDirectory
from archid.sync.signal import either
from archid.sync.states import NodeStates
from archid.sync.trust_keeper import TrustKeeper
from protocol.errors import LimitExceeded, ProtocolError, TrustError
from protocol.facts import NodeFacts
from protocol.grants import LeafDocument, read_items
from protocol.ids import DocumentId, NodeId
from protocol.messages import ErrorCode, GetGrants, GetLeaf, GrantsAnswer, LeafAnswer

log = get_logger(__name__)
_sparing = SparingLog(log)

MAX_SITE_NODES: Final = 64
MAX_LEAF_BYTES: Final = 1 << 20
"""A neighbour's leaf that is larger is left to central and the REPOs."""
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 300.0


class SiteLeaves:
    """Fetches and keeps the leaves of a site; runs on nodes that do not hold all leaves anyway."""

    def __init__(
        self,
        own: OwnLeaf,
        keeper: TrustKeeper,
        directory: PeerDirectory,
        states: NodeStates,
        events: EventHub,
    ) -> None:
        self._own = own
        self._keeper = keeper
        self._documents = keeper.documents
        self._directory = directory
        self._states = states
        self._events = events

    async def run(self) -> None:
        """Follow heads and neighbours until cancelled."""
        signals = (
            self._keeper.changed,
            self._own.changed,
            self._states.heads_changed,
            self._directory.changed,
        )
        wait_s = FIRST_RETRY_S
        while True:
            seen = [(signal, signal.version) for signal in signals]
            try:
                missing = await self._catch_up()
            except ArchidError as error:
                _sparing.error("site_leaves_unreadable", why=error.sentence)
                missing = True
            with trio.move_on_after(wait_s if missing else float("inf")) as timer:
                await either(*seen)
            waited = timer.cancelled_caught
            wait_s = min(2 * wait_s, LONGEST_RETRY_S) if waited else FIRST_RETRY_S

    async def _catch_up(self) -> bool:
        """Fetch what is newer; whether something is still missing that somebody may give."""
        own, grants_root = self._own.facts, self._keeper.grants_root
        if own is None or own.reads_everything or not own.site or grants_root is None:
            return False
        held = await trio.to_thread.run_sync(self._held, own.node)
        members = self._members(own, held)
        missing = False
        for node in members:
            if grants_root not in held.get(node, ()) and self._directory.one_per_node():
                came = await self._fetch(node, grants_root, own)
                missing = missing or not came
        return missing

    def _held(self, own: NodeId) -> dict[NodeId, list[DocumentId]]:
        """Under which Grants roots there are leaves of others."""
        held: dict[NodeId, list[DocumentId]] = {}
        for node, grants_root in self._documents.leaves():
            if node != own:
                held.setdefault(node, []).append(grants_root)
        return held

    def _members(self, own: NodeFacts, held: Mapping[NodeId, object]) -> Sequence[NodeId]:
        """The other nodes of the site, as far as they are known: those seen lately first."""
        told = {node for node in self._states.known if self._is_near(self._states.facts(node), own)}
        told |= {one.node for one in self._directory.all() if self._is_near(one.facts, own)}
        ordered = [*sorted(told), *sorted(set(held) - told)]
        return [one for one in ordered if not self._keeper.trust.is_denied(one)][:MAX_SITE_NODES]

    def _is_near(self, facts: NodeFacts | None, own: NodeFacts) -> bool:
        return (
            facts is not None
            and facts.node != own.node
            and facts.site == own.site
            and not facts.reads_everything
        )

    async def _fetch(self, node: NodeId, grants_root: DocumentId, own: NodeFacts) -> bool:
        """Ask one peer after the other; True also when there is nothing to be had."""
        gone = False
        peers = self._directory.one_per_node()
        for peer in sorted(peers, key=lambda one: (not one.facts.reads_everything, one.node)):
            if not (peer.facts.reads_everything or peer.facts.site == own.site):
                continue
            try:
                await self._ask(peer, node, grants_root, own)
            except PeerRefused as error:
                gone = gone or self._says_gone(peer, error.reason)
            except (ArchidError, ProtocolError) as error:
                _sparing.info("site_leaf_not_given", node=peer.node.short, why=str(error))
            else:
                return True
        if gone and not self._is_told(node):
            await trio.to_thread.run_sync(self._forget_unless, node, self._named())
        return False

    def _says_gone(self, peer: Peer, reason: ErrorCode) -> bool:
        return peer.facts.reads_everything and reason is ErrorCode.UNKNOWN_DOCUMENT

    def _is_told(self, node: NodeId) -> bool:
        return node in self._states.known

    def _named(self) -> frozenset[DocumentId]:
        return frozenset(self._keeper.trust.head.grants_roots if self._keeper.trust.head else ())

    async def _ask(self, peer: Peer, node: NodeId, grants_root: DocumentId, own: NodeFacts) -> None:
        keeper = self._keeper
        if keeper.trust.grants(grants_root) is None:
            grants = await peer.request(GetGrants(0, grants_root), GrantsAnswer)
            await keeper.accept_grants(grants.envelope)
        answer = await peer.request(GetLeaf(0, node, grants_root), LeafAnswer)
        if len(answer.leaf) > MAX_LEAF_BYTES:
            raise LimitExceeded(f"a neighbour's leaf has more than {MAX_LEAF_BYTES} bytes")
        await trio.to_thread.run_sync(_check_site, answer.leaf, own.site)
        await keeper.keep_leaf(answer.leaf, node, grants_root)
        await trio.to_thread.run_sync(self._forget_unless, node, {grants_root})
        log.info("site_leaf_kept", node=node.short)
        self._events.publish("site_leaf.kept", node=node.hex(), grants_root=grants_root.hex())

    def _forget_unless(self, node: NodeId, wanted: Collection[DocumentId]) -> None:
        for owner, grants_root in self._documents.leaves():
            if owner == node and grants_root not in wanted:
                try:
                    self._documents.remove_leaf(owner, grants_root)
                except DocumentMissing:
                    continue


def _check_site(data: bytes, site: str) -> None:
    document = LeafDocument.decode(data)
    if read_items(document.node, document.items).facts.site != site:
        raise TrustError("a leaf was given that is of another site")
