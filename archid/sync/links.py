"""What happens on every connection to a peer, for as long as it lasts.

Its requests are answered, its announcements taken, it is told of newer heads and, by central and
REPOs, where others can be reached. A node that the newest head denies is cut off at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from archid.errors import ArchidError
from archid.log import SparingLog, get_logger
from archid.net.errors import PeerLost
from archid.net.lane_desk import LaneDesk
from archid.net.peer import Peer
from archid.net.trusted_doorkeeper import TrustedDoorkeeper
from archid.store.errors import DocumentMissing
from archid.store.library import Library
from archid.sync.access import Access
from archid.sync.address_book import AddressBook
from archid.sync.heads import Heads
from archid.sync.own_leaf import OwnLeaf
from archid.sync.peers import PeerDirectory
from archid.sync.session import Session
from archid.sync.states import NodeStates
from archid.sync.trust_keeper import TrustKeeper
from archid.sync.trust_restoring import decode_envelope
from archid.sync.whereabouts import Whereabouts
from protocol.errors import ProtocolError
from protocol.grants import LeafDocument, Proof
from protocol.ids import NodeId
from protocol.messages import (
    ErrorCode,
    HaveUpdate,
    HeadAnnounce,
    HeadDigest,
    Message,
    PeerHints,
    StateDigest,
    States,
    Unwant,
)
from protocol.refusals import NodeDenied

log = get_logger(__name__)
_sparing = SparingLog(log)

OnAdmitted = Callable[[Peer], Awaitable[None]]


async def _nothing(_peer: Peer) -> None:
    return


class Links:
    """Gives each admitted peer its tasks; `session` is what the switchboard calls."""

    def __init__(
        self,
        *,
        keeper: TrustKeeper,
        doorkeeper: TrustedDoorkeeper,
        directory: PeerDirectory,
        leaf: OwnLeaf,
        library: Library,
        addresses: AddressBook,
        states: NodeStates,
        lanes: LaneDesk,
        whereabouts: Whereabouts | None = None,
        on_admitted: OnAdmitted = _nothing,
    ) -> None:
        self._keeper = keeper
        self._doorkeeper = doorkeeper
        self._directory = directory
        self._leaf = leaf
        self._library = library
        self._addresses = addresses
        self._states = states
        self._lanes = lanes
        self._whereabouts = whereabouts
        self._heads = Heads(keeper, lambda: leaf.facts)
        self._on_admitted = on_admitted

    async def session(self, peer: Peer) -> None:
        """Run until the connection has ended."""
        if self._leaf.facts is None:
            # Lost on disk; it came again from this very peer when the two proved themselves.
            await self._leaf.load()
        own = self._leaf.facts
        if own is None:
            peer.disconnect(ErrorCode.NOT_READY, "this node does not know its own facts yet")
            return
        access = Access(
            self._keeper.trust,
            peer.facts,
            peer.key,
            own,
            proof=Proof.decode(peer.proof),
            leaf_of=self._leaf_of,
        )
        answering = Session(
            peer,
            access,
            keeper=self._keeper,
            documents=self._keeper.documents,
            library=self._library,
            spans=self._directory.spans,
            lanes=self._lanes,
            whereabouts=self._whereabouts,
        )
        self._directory.add(peer)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answering.run)
                nursery.start_soon(self._take_notices, peer)
                nursery.start_soon(self._judge_again, peer, access)
                nursery.start_soon(self._heads.attend, peer)
                nursery.start_soon(self._send_hints, peer)
                nursery.start_soon(self._states.attend, peer)
                nursery.start_soon(self._admitted, peer)
                nursery.start_soon(self._lanes.attend, peer)
                await peer.closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._directory.remove(peer)

    async def _admitted(self, peer: Peer) -> None:
        self._addresses.confirm(peer.node)
        try:
            await self._on_admitted(peer)
        except (ArchidError, ProtocolError) as error:
            log.info("admitted_peer_gave_nothing", node=peer.node.short, why=str(error))

    async def _take_notices(self, peer: Peer) -> None:
        async for notice in peer.notices:
            try:
                await self._take_notice(peer, notice)
            except ProtocolError as error:
                _sparing.warning("notice_refused", node=peer.node.short, why=str(error))
            except ArchidError as error:
                _sparing.info("notice_not_followed", node=peer.node.short, why=str(error))

    async def _take_notice(self, peer: Peer, notice: Message) -> None:
        if isinstance(notice, HeadAnnounce):
            try:
                envelope = decode_envelope(notice.head)
                self._heads.shown(peer, envelope)
                # A fork raises its alarm in there and is passed over, as an older head is.
                await self._doorkeeper.accept_head(envelope, peer.request)
            finally:
                await self._keeper.take_grants(notice.grants)
        elif isinstance(notice, HeadDigest):
            self._heads.take_digest(peer, notice)
        elif isinstance(notice, States | StateDigest):
            self._states.take(peer, notice)
        elif isinstance(notice, HaveUpdate):
            self._directory.spans.announced(peer, notice)
        elif isinstance(notice, Unwant):
            self._directory.spans.unwanted(peer, notice)
        elif isinstance(notice, PeerHints) and peer.facts.reads_everything:
            self._addresses.learn(notice.hints)

    async def _judge_again(self, peer: Peer, access: Access) -> None:
        changed = self._keeper.changed
        seen = -1
        while True:
            # A task of its own, which never waits for the peer to take anything.
            seen = await changed.wait(seen)
            try:
                access.judge_again()
            except ProtocolError as error:
                if isinstance(error, NodeDenied):
                    self._addresses.forget([peer.node])
                peer.disconnect(access.code, str(error))
                return

    def _leaf_of(self, node: NodeId) -> LeafDocument | None:
        """The leaf of a peer whose connection has outlived its proof; one small read."""
        grants_root = self._keeper.grants_root
        with suppress(DocumentMissing, ProtocolError):
            if grants_root is not None:
                return LeafDocument.decode(self._keeper.documents.get_leaf(node, grants_root))
        return None

    async def _send_hints(self, peer: Peer) -> None:
        seen = -1
        while True:
            seen = await self._addresses.changed.wait(seen)
            own = self._leaf.facts
            if own is None or not own.reads_everything:
                continue
            try:
                await peer.announce(PeerHints(self._addresses.hints()))
            except PeerLost:
                return
