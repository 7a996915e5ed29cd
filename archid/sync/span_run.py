"""Runs the fetch machine over live peers until every span of one version is verified here.

The machine (`protocol.fetch`) decides; this asks peers, has the store verify and write what comes
in worker threads, and reports what happened. One task feeds the machine, so its decisions are in
one order and its log can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

import trio

from archid.log import get_logger
from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.peer import Peer
from archid.store.errors import ChunkCorrupt
from archid.store.staging import Staging
from archid.sync.fetch_progress import FetchProgress
from archid.sync.sources import Sources
from protocol.fetch import (
    AskSpan,
    CancelSpan,
    DropPeer,
    FetchPlan,
    Finished,
    PeerJoined,
    SpanCorrupt,
    SpanKey,
    SpanReceived,
    SpanRefused,
    Tick,
    WakeAt,
)
from protocol.fetch import PeerLost as PlanPeerLost
from protocol.fetch_events import DropReason, FetchEffect, FetchEvent, PeerName
from protocol.layout import Layout, Span
from protocol.messages import ErrorCode, GetSpan, SpanAnswer

log = get_logger(__name__)

WRITERS: Final = 2
"""Threads that verify and write at a time: more only wait for one another on ordinary disks."""


class SpanRun:
    """The machine and its surroundings, for one version."""

    def __init__(
        self,
        layout: Layout,
        staging: Staging,
        *,
        sources: Sources,
        progress: FetchProgress,
        seed: bytes,
        tell: Callable[[], None],
        report_liar: Callable[[Peer, str], None],
    ) -> None:
        self._layout = layout
        self._staging = staging
        self._sources = sources
        self._progress = progress
        self._tell = tell
        self._report_liar = report_liar
        self._writers = trio.CapacityLimiter(WRITERS)
        keys = [SpanKey(span.piece_index, span.n) for span in layout.spans]
        self._span_of = dict(zip(keys, layout.spans, strict=True))
        held = {keys[n] for n in staging.held_spans()}
        sizes = [layout.wanted_bytes(span) for span in layout.spans]
        self._plan = FetchPlan(keys, sizes, held, seed=seed)
        self._happened, self._inbox = trio.open_memory_channel[FetchEvent](math.inf)
        self._peers: dict[PeerName, Peer] = {}
        self._asked: dict[tuple[PeerName, SpanKey], trio.CancelScope] = {}
        self._wake = math.inf

    async def run(self) -> None:
        """Return when nothing is missing, however long peers take; raises StorageError."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_sources)
            done = self._apply(self._plan.step(Tick(), now=trio.current_time()), nursery)
            while not done:
                event: FetchEvent = Tick()
                with trio.move_on_at(self._wake):
                    event = await self._inbox.receive()
                if isinstance(event, Tick):
                    self._wake = math.inf
                done = self._apply(self._plan.step(event, now=trio.current_time()), nursery)
                self._tell()
            nursery.cancel_scope.cancel()

    async def _follow_sources(self) -> None:
        sources = self._sources
        seen = -1
        while True:
            seen = await sources.changed.wait(seen)
            for peer, have in sources.ready.items():
                if self._peers.get(peer.node) is not peer:
                    self._peers[peer.node] = peer
                    await self._happened.send(PeerJoined(peer.node, have))
            for node, peer in list(self._peers.items()):
                if peer not in sources.ready:
                    del self._peers[node]
                    await self._happened.send(PlanPeerLost(node))
            if self._peers:
                self._progress.fetching(sources.names())
            else:
                self._progress.waiting(sources.why_none())

    def _apply(self, effects: Iterable[FetchEffect], nursery: trio.Nursery) -> bool:
        """Do what the machine says; True when it has finished."""
        for effect in effects:
            match effect:
                case AskSpan(peer, span):
                    nursery.start_soon(self._ask, peer, span)
                case CancelSpan(peer, span):
                    if scope := self._asked.get((peer, span)):
                        scope.cancel()
                case DropPeer(peer, reason):
                    self._drop(peer, reason)
                case WakeAt(at):
                    self._wake = at
                case Finished():
                    return True
        return False

    async def _ask(self, name: PeerName, key: SpanKey) -> None:
        peer = self._peers.get(name)
        if peer is None:
            await self._happened.send(PlanPeerLost(name))
            return
        with trio.CancelScope() as scope:
            self._asked[name, key] = scope
            try:
                event = await self._fetch(peer, self._span_of[key], key)
            finally:
                self._asked.pop((name, key), None)
            await self._happened.send(event)

    async def _fetch(self, peer: Peer, span: Span, key: SpanKey) -> FetchEvent:
        skip = self._staging.skip(span)
        try:
            answer = await peer.request(
                GetSpan(0, self._layout.manifest, span.piece, span.n, skip), SpanAnswer
            )
        except PeerRefused as refused:
            return SpanRefused(peer.node, key, refused.reason)
        except PeerTooSlow:
            return SpanRefused(peer.node, key, ErrorCode.BUSY)
        except PeerLost:
            self._sources.remove(peer)
            return PlanPeerLost(peer.node)
        self._progress.received(len(answer.data), now=trio.current_time())
        try:
            # Not abandoned when cancelled: what is being written ends up counted.
            await trio.to_thread.run_sync(
                self._staging.write_span, span, skip, answer.data, limiter=self._writers
            )
        except ChunkCorrupt as fault:
            log.warning("span_corrupt", node=peer.node.short, why=str(fault))
            return SpanCorrupt(peer.node, key)
        self._progress.held_bytes = self._staging.held_bytes
        return SpanReceived(peer.node, key)

    def _drop(self, name: PeerName, reason: DropReason) -> None:
        peer = self._peers.pop(name, None)
        if peer is None:
            return
        if reason is DropReason.CORRUPTS:
            self._report_liar(peer, reason.value)
        else:
            log.info("source_dropped", node=peer.node.short, why=reason.value)
            self._sources.remove(peer)
