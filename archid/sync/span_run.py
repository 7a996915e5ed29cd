"""Runs the fetch machine over live peers until every span of one version is verified here.

The machine (`protocol.fetch`) decides; this does what it says and reports what happened; the
requests that are open are `archid.sync.span_asks`'. One task feeds the machine, so its decisions
are in one order and its log can be replayed.

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
from archid.net.peer import Peer
from archid.store.filling import Filling
from archid.sync.fetch_progress import FetchProgress
from archid.sync.one_error import one_error
from archid.sync.sources import HaveMap, Sources
from archid.sync.span_asks import SpanAsks
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
    SpanKey,
    SpanPicked,
    SpanRefused,
    Tick,
    Together,
    UnwantSpan,
    WakeAt,
)
from protocol.fetch_events import PeerLost as PlanPeerLost
from protocol.ids import PieceId
from protocol.layout import Layout, Span
from protocol.messages import Unwant

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
        self._sources = sources
        self._progress = progress
        self._tell = tell
        self._verified = verified
        self._report_liar = report_liar
        self._asks = SpanAsks(
            filling,
            self._spans,
            tell=self._told,
            moved=self._moved,
            verified=self._written,
            lost=sources.remove,
        )
        self._happened, self._inbox = trio.open_memory_channel[OneEvent](math.inf)
        self._joined: dict[PeerName, _Joined] = {}
        self._picked: set[tuple[PeerName, SpanKey]] = set()
        """What peers have picked, of which the machine was told last."""
        self._wake = math.inf

    async def run(self) -> None:
        """Return when nothing is missing, however long peers take; raises StorageError."""
        self._sources.heard = self._heard
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._asks.run)
                    nursery.start_soon(self._follow_sources)
                    await self._feed()
                    nursery.cancel_scope.cancel()
        finally:
            self._sources.heard = None
            await self._asks.close()

    def held_by(self, peer: Peer, piece: PieceId, n: int) -> bool:
        """Whether a peer has said to hold a span."""
        joined, index = self._joined.get(peer.node), self._piece_index.get(piece)
        if joined is None or joined.peer is not peer or index is None:
            return False
        return self._plan.holds(peer.node, SpanKey(index, n))

    async def _feed(self) -> None:
        """Give the machine what happens, and do what it says, until it has finished."""
        events: list[OneEvent] = [Tick()]
        while not self._step(events):
            self._tell()
            idle = not len(self._asks) and self._wake == math.inf and bool(self._joined)
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

    def _step(self, events: Sequence[OneEvent]) -> bool:
        """Give the machine these events; True when it has finished."""
        self._picked = {(e.peer, e.span) for e in events if isinstance(e, SpanPicked)}
        event = events[0] if len(events) == 1 else Together(tuple(events))
        return self._apply(self._plan.step(event, now=trio.current_time()))

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

    def _apply(self, effects: Iterable[FetchEffect]) -> bool:
        """Do what the machine says; True when it has finished."""
        for effect in effects:
            match effect:
                # Of one that has left the machine is about to be told.
                case AskSpan(name, span):
                    if joined := self._joined.get(name):
                        self._asks.ask(joined.peer, span)
                case CancelSpan(name, span):
                    if joined := self._joined.get(name):
                        self._asks.cancel(joined.peer, span)
                case AskAny(name, offer, wanted):
                    if joined := self._joined.get(name):
                        self._asks.ask_any(joined.peer, offer, wanted)
                case CancelOffer(name, offer):
                    if joined := self._joined.get(name):
                        self._asks.cancel_offer(joined.peer, offer)
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

    def _unwant(self, peer: Peer, key: SpanKey) -> None:
        """Take a span out of what a peer may pick; who has just picked it knows."""
        self._asks.leave_out(peer, key)
        if (peer.node, key) in self._picked:
            return
        manifest = self._filling.layout.manifest
        unwant = Unwant(max(peer.connection.last_request, 1), manifest, *key)
        with suppress(ArchidError):  # it has gone, as the machine will hear
            peer.push(unwant)

    # What becomes of it

    def _told(self, peer: Peer, event: OneEvent) -> None:
        """A request has come to something."""
        if isinstance(event, SpanRefused | OfferRefused):
            # Not if the node has come back over another connection, which was asked anew.
            joined = self._joined.get(peer.node)
            if joined is None or joined.peer is not peer:
                return
            if isinstance(event, SpanRefused):
                joined.told.discard(event.span)  # it may say anew that it holds it
        self._happened.send_nowait(event)

    def _moved(self, size_bytes: int) -> None:
        self._progress.received(size_bytes, now=trio.current_time())

    def _written(self, piece: PieceId, n: int) -> None:
        self._progress.held_bytes = self._filling.held_bytes
        self._verified(piece, n)

    def _drop(self, name: PeerName, reason: DropReason) -> None:
        joined = self._joined.pop(name, None)
        if joined is None:
            return
        peer = joined.peer
        self._asks.cancel_all(peer)
        if reason is DropReason.CORRUPTS:
            self._report_liar(peer, reason.value)
        else:
            log.info("source_dropped", node=peer.node.short, why=reason.value)
            self._sources.remove(peer, reason.value)

    def _ask_again(self) -> None:
        for joined in list(self._joined.values()):
            self._sources.remove(joined.peer, "it lacks what is still missing")
