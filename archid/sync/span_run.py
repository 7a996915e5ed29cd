"""Runs the fetch machine over live peers until every span of one version is verified here.

The machine (`protocol.fetch`) decides; this asks peers, has the store verify and write what comes
in worker threads, and reports what happened. One task feeds the machine, so its decisions are in
one order and its log can be replayed.

The machine knows a peer by its node's id, while a node may come back over a new connection before
the last word about the old one is in: a connection counts only while it is in `_joined`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from archid.errors import ArchidError
from archid.log import get_logger
from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.lane import TakenSpan, Taker
from archid.net.peer import Peer
from archid.store.errors import ChunkCorrupt
from archid.store.filling import Filling, SpanBytes
from archid.sync.fetch_progress import FetchProgress
from archid.sync.one_error import one_error
from archid.sync.sources import HaveMap, Sources
from archid.sync.span_writer import SpanWriter
from protocol.features import SWARM
from protocol.fetch import FetchPlan
from protocol.fetch_events import (
    AskAny,
    AskSpan,
    CancelOffer,
    CancelSpan,
    DropPeer,
    DropReason,
    FetchEffect,
    Finished,
    OfferRefused,
    OneEvent,
    Paused,
    PeerHas,
    PeerJoined,
    PeerName,
    SpanCorrupt,
    SpanKey,
    SpanPicked,
    SpanReceived,
    SpanRefused,
    Tick,
    Together,
    UnwantSpan,
    WakeAt,
    Wanted,
)
from protocol.fetch_events import PeerLost as PlanPeerLost
from protocol.fetch_offers import without
from protocol.ids import PieceId
from protocol.layout import Layout, Span
from protocol.messages import Answer, ErrorCode, GetAny, GetSpan, Picked, SpanAnswer, Unwant

log = get_logger(__name__)

ASK_AGAIN_S: Final = 30.0
"""When nobody at hand holds what is missing, peers are asked again what they hold."""


WORTH_A_LANE_BYTES: Final = 4 << 20
"""Less has come before a lane stands."""


class PlannedSpans(NamedTuple):
    """The machine for one version, and the spans that it calls by their keys."""

    plan: FetchPlan
    spans: dict[SpanKey, Span]


def plan_spans(layout: Layout, filling: Filling, *, seed: bytes, shared_line: bool) -> PlannedSpans:
    """What is to be fetched of a version; takes time with the number of its chunks.

    `seed` is this node's id, as its site's other nodes know it; `shared_line` says whether there
    are any that may fetch the same.
    """
    spans = {SpanKey(span.piece_index, span.n): span for span in layout.spans}
    keys = list(spans)
    held = {keys[n] for n in filling.held_spans()}
    sizes = [layout.wanted_bytes(span) for span in layout.spans]
    partly = {
        key
        for key, span in spans.items()
        if key not in held and filling.skip(span) != layout.others(span)
    }
    plan = FetchPlan(
        keys,
        sizes,
        held,
        by_name=partly,
        seed=seed,
        topic=layout.manifest,
        shared_line=shared_line,
    )
    return PlannedSpans(plan, spans)


class _NothingToAsk(Exception):
    """All that was offered was taken back before it went out."""


class _Joined(NamedTuple):
    """A connection that the machine knows of, and what it was told that the peer holds."""

    peer: Peer
    have: HaveMap
    told: set[SpanKey]
    """What the peer has announced since."""


class SpanRun:
    """The machine and its surroundings, for one version."""

    def __init__(
        self,
        planned: PlannedSpans,
        filling: Filling,
        *,
        sources: Sources,
        progress: FetchProgress,
        tell: Callable[[], None],
        verified: Callable[[PieceId, int], None],
        report_liar: Callable[[Peer, str], None],
    ) -> None:
        self._plan, self._spans = planned
        self._piece_index = {span.piece: span.piece_index for span in self._spans.values()}
        self._filling = filling
        self._manifest = filling.layout.manifest
        self._sources = sources
        self._progress = progress
        self._tell = tell
        self._verified = verified
        self._report_liar = report_liar
        self._writer = SpanWriter(filling)
        self._happened, self._inbox = trio.open_memory_channel[OneEvent](math.inf)
        self._joined: dict[PeerName, _Joined] = {}
        self._asked: dict[tuple[Peer, SpanKey], trio.CancelScope] = {}
        self._offered: dict[tuple[Peer, int], trio.CancelScope] = {}
        self._unsent: dict[tuple[Peer, int], set[SpanKey]] = {}
        """Offers that have not gone out yet, and what was taken out of them meanwhile."""
        self._wake = math.inf

    async def run(self) -> None:
        """Return when nothing is missing, however long peers take; raises StorageError."""
        self._sources.heard = self._heard
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow_sources)
                    await self._feed(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self._sources.heard = None
            await self._writer.close()

    async def _feed(self, nursery: trio.Nursery) -> None:
        """Give the machine what happens, and do what it says, until it has finished."""
        events: list[OneEvent] = [Tick()]
        while not self._step(events, nursery):
            self._tell()
            open_requests = self._asked or self._offered
            idle = not open_requests and self._wake == math.inf and bool(self._joined)
            ask_again = trio.current_time() + ASK_AGAIN_S if idle else math.inf
            events = [Tick()]
            with trio.move_on_at(min(self._wake, ask_again)) as timer:
                events = [await self._inbox.receive()]
                with suppress(trio.WouldBlock):  # what came together costs one turn of the loop
                    while True:
                        events.append(self._inbox.receive_nowait())
            if timer.cancelled_caught:
                self._wake = math.inf
                if idle:
                    self._ask_again()

    def _step(self, events: Sequence[OneEvent], nursery: trio.Nursery) -> bool:
        """Give the machine these events; True when it has finished."""
        event = events[0] if len(events) == 1 else Together(tuple(events))
        return self._apply(self._plan.step(event, now=trio.current_time()), nursery)

    async def _follow_sources(self) -> None:
        sources = self._sources
        seen, paused = -1, False
        while True:
            seen = await sources.changed.wait(seen)
            if sources.paused is not paused:
                paused = sources.paused
                self._happened.send_nowait(Paused(paused))
            # Nothing in here waits: the sources must not change under the loops.
            for name, joined in list(self._joined.items()):
                if sources.ready.get(joined.peer) is not joined.have:
                    del self._joined[name]
                    self._happened.send_nowait(PlanPeerLost(name))
            for peer, have in sources.ready.items():
                if peer.node not in self._joined:
                    self._joined[peer.node] = _Joined(peer, have, set())
                    if self._filling.missing_bytes >= WORTH_A_LANE_BYTES:
                        peer.want_lane()
                    self._happened.send_nowait(self._joins(peer, have))
            if self._joined:
                self._progress.fetching(sources.names())
            else:
                self._progress.waiting(sources.why_none())

    def _joins(self, peer: Peer, have: HaveMap) -> PeerJoined:
        return PeerJoined(
            peer.node,
            have.of(self._spans),
            picks=SWARM in peer.features,
            near=self._sources.is_near(peer),
        )

    def _heard(self, peer: Peer, piece: PieceId, n: int) -> bool:
        """A peer has announced a span; False while the machine does not know the peer."""
        joined = self._joined.get(peer.node)
        if joined is None or joined.peer is not peer:
            return False
        index = self._piece_index.get(piece)
        key = None if index is None else SpanKey(index, n)
        # Each once: whoever repeats itself costs no steps.
        if key in self._spans and key not in joined.told:
            joined.told.add(key)
            self._happened.send_nowait(PeerHas(peer.node, key))
        return True

    def _apply(self, effects: Iterable[FetchEffect], nursery: trio.Nursery) -> bool:
        """Do what the machine says; True when it has finished."""
        for effect in effects:
            match effect:
                case AskSpan(name, span):
                    # One that has left: the machine is about to be told.
                    if joined := self._joined.get(name):
                        scope = self._asked[joined.peer, span] = trio.CancelScope()
                        nursery.start_soon(self._ask, joined.peer, span, scope)
                case CancelSpan(name, span):
                    if joined := self._joined.get(name):
                        self._cancel(joined.peer, span)
                case AskAny(name, offer, wanted):
                    if joined := self._joined.get(name):
                        scope = self._offered[joined.peer, offer] = trio.CancelScope()
                        self._unsent[joined.peer, offer] = set()
                        nursery.start_soon(self._ask_any, joined.peer, offer, wanted, scope)
                case CancelOffer(name, offer):
                    joined = self._joined.get(name)
                    if joined and (open_offer := self._offered.get((joined.peer, offer))):
                        open_offer.cancel()
                case UnwantSpan(name, span):
                    if joined := self._joined.get(name):
                        self._unwant(joined.peer, span)
                case DropPeer(name, reason):
                    self._drop(name, reason)
                case WakeAt(at):
                    self._wake = at
                case Finished():
                    return True
        return False

    async def _ask(self, peer: Peer, key: SpanKey, scope: trio.CancelScope) -> None:
        event: OneEvent | None = None
        try:
            with scope:
                event = await self._fetch(peer, key)
        finally:
            if self._asked.get((peer, key)) is scope:
                del self._asked[peer, key]
        if event is not None:
            self._happened.send_nowait(event)

    async def _ask_any(
        self, peer: Peer, offer: int, wanted: Wanted, scope: trio.CancelScope
    ) -> None:
        event: OneEvent | None = None
        picked: list[SpanKey] = []

        def on_part(part: Answer) -> None:
            if isinstance(part, Picked):
                key = SpanKey(part.piece_index, part.n)
                picked.append(key)
                self._asked.setdefault((peer, key), scope)
                self._happened.send_nowait(SpanPicked(peer.node, offer, key))

        try:
            with scope:
                event = await self._fetch_any(peer, offer, wanted, picked, on_part)
        finally:
            self._offered.pop((peer, offer), None)
            self._unsent.pop((peer, offer), None)
            for key in picked:
                if self._asked.get((peer, key)) is scope:
                    del self._asked[peer, key]
        if event is not None:
            self._happened.send_nowait(event)

    async def _fetch_any(
        self,
        peer: Peer,
        offer: int,
        wanted: Wanted,
        picked: list[SpanKey],
        on_part: Callable[[Answer], None],
    ) -> OneEvent | None:
        """Let the peer pick, and have what it sends written."""
        code = ErrorCode.BUSY

        def ask() -> GetAny:
            left = without(wanted, self._unsent.pop((peer, offer), set()))
            if not left:
                raise _NothingToAsk
            return GetAny(0, self._manifest, left)

        try:
            *_, answer = await peer.request_all(ask, on_part=on_part, taker=self._take_picked)
        except _NothingToAsk:
            code = ErrorCode.CANCELLED
        except PeerRefused as refused:
            code = refused.reason
        except PeerTooSlow:
            pass
        except PeerLost as lost:
            self._sources.remove(peer, str(lost))
            return None
        else:
            if not isinstance(answer, SpanAnswer):
                raise TypeError("GetAny is answered by a span in the end")
            span = self._spans[picked[0]]
            if answer.piece != span.piece:
                return SpanCorrupt(peer.node, picked[0])
            return await self._take(peer, picked[0], self._filling.layout.others(span), answer)
        if picked:
            return self._refused(peer, picked[0], code)
        joined = self._joined.get(peer.node)
        there = joined is not None and joined.peer is peer
        return OfferRefused(peer.node, offer, code) if there else None

    def _unwant(self, peer: Peer, key: SpanKey) -> None:
        for (offered, _), left_out in self._unsent.items():
            if offered is peer:
                left_out.add(key)
        unwant = Unwant(max(peer.connection.last_request, 1), self._manifest, *key)
        with suppress(ArchidError):  # it has gone, as the machine will hear
            peer.push(unwant)

    async def _fetch(self, peer: Peer, key: SpanKey) -> OneEvent | None:
        """Ask for one span and have it written; None when the peer's loss says it all."""
        span = self._spans[key]
        skip = self._filling.skip(span)
        try:
            answer = await peer.request(
                GetSpan(0, self._manifest, span.piece, span.n, skip),
                SpanAnswer,
                taker=self._taker(span, skip),
            )
        except PeerRefused as refused:
            return self._refused(peer, key, refused.reason)
        except PeerTooSlow:
            return self._refused(peer, key, ErrorCode.BUSY)
        except PeerLost as lost:
            self._sources.remove(peer, str(lost))
            return None
        return await self._take(peer, key, skip, answer)

    async def _take(
        self, peer: Peer, key: SpanKey, skip: bytes, answer: SpanAnswer
    ) -> OneEvent | None:
        """Have what a peer has sent verified and written."""
        span = self._spans[key]
        taken = answer if isinstance(answer, TakenSpan) else None
        moved_bytes = len(answer.data) if taken is None else taken.size_bytes
        self._progress.received(moved_bytes, now=trio.current_time())
        try:
            if taken is None:
                await self._writer.write(SpanBytes(span, skip, answer.data))
            elif taken.fault is not None:
                raise taken.fault
        except ChunkCorrupt as fault:
            log.warning("span_corrupt", node=peer.node.short, why=str(fault))
            return SpanCorrupt(peer.node, key)
        self._progress.held_bytes = self._filling.held_bytes
        self._verified(span.piece, span.n)
        return SpanReceived(peer.node, key)

    def _taker(self, span: Span, skip: bytes) -> Taker:
        """Takes that span where it comes through a lane."""
        return lambda _piece, _n, data: self._writer.take(SpanBytes(span, skip, data))

    def _take_picked(self, piece: PieceId, n: int, data: memoryview) -> None:
        """Takes whichever span a peer has picked. One that nobody offered is passed over."""
        index = self._piece_index.get(piece)
        span = None if index is None else self._spans.get(SpanKey(index, n))
        if span is not None:
            self._writer.take(SpanBytes(span, self._filling.layout.others(span), data))

    def _refused(self, peer: Peer, key: SpanKey, code: ErrorCode) -> OneEvent | None:
        """Unless the node has come back over another connection, which was asked anew."""
        joined = self._joined.get(peer.node)
        if joined is None or joined.peer is not peer:
            return None
        joined.told.discard(key)  # it may say anew that it holds it
        return SpanRefused(peer.node, key, code)

    def _cancel(self, peer: Peer, key: SpanKey) -> None:
        if scope := self._asked.get((peer, key)):
            scope.cancel()

    def _drop(self, name: PeerName, reason: DropReason) -> None:
        joined = self._joined.pop(name, None)
        if joined is None:
            return
        peer = joined.peer
        for asked, key in list(self._asked):
            if asked is peer:
                self._cancel(peer, key)
        for (offered, _), scope in list(self._offered.items()):
            if offered is peer:
                scope.cancel()
        if reason is DropReason.CORRUPTS:
            self._report_liar(peer, reason.value)
        else:
            log.info("source_dropped", node=peer.node.short, why=reason.value)
            self._sources.remove(peer, reason.value)

    def _ask_again(self) -> None:
        for joined in list(self._joined.values()):
            self._sources.remove(joined.peer, "it lacks what is still missing")
