"""The requests for spans that one fetch has open: sent, answered, timed out, given up.

No request has a task of its own: what comes is told to the event loop by the lane, and goes from
there to the machine as an event. A task is needed only where one has to wait: for a slot at the
peer, and for the disk where spans come inside TLS (`archid.sync.span_writer`). Whom to ask for what
is decided by the machine, which `archid.sync.span_run` runs.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from archid.errors import ArchidError
from archid.log import get_logger
from archid.net.asking import PROGRESS_BYTES
from archid.net.errors import PeerLost, PeerRefused
from archid.net.lane import TakenSpan
from archid.net.peer import Peer
from archid.store.errors import ChunkCorrupt
from archid.store.filling import Filling, SpanBytes
from archid.sync.span_writer import SpanWriter
from protocol.fetch_events import (
    OfferRefused,
    OneEvent,
    SpanCorrupt,
    SpanKey,
    SpanPicked,
    SpanReceived,
    SpanRefused,
    Wanted,
)
from protocol.fetch_offers import without
from protocol.frames import Buffer
from protocol.ids import PieceId
from protocol.layout import Span
from protocol.messages import Answer, ErrorCode, GetAny, GetSpan, Picked, SpanAnswer

log = get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Ask:
    """One request, from being wanted until what came of it is told."""

    peer: Peer
    key: SpanKey | None
    """The span, once it is known."""
    deadline: float
    offer: int = 0
    """Its number, where the peer picks."""
    wanted: Wanted = ()
    skip: bytes = b""
    number: int = 0
    """Of the request, once it was sent."""
    left_out: set[SpanKey] = field(default_factory=set)
    """Taken out of the offer before it was sent."""
    received_bytes: int = 0
    """From the peer, when the deadline was set."""
    waits: trio.CancelScope | None = None
    """Where a task waits: for a slot, or for the disk."""


class SpanAsks:
    """The open requests of one fetch; `run` has to run all the time.

    `tell` is called in the event loop with what has become of a request, for the machine; `moved`
    with the bytes of each span that came, `verified` with each that was verified and written, and
    `lost` with a peer that is gone.
    """

    def __init__(
        self,
        filling: Filling,
        spans: Mapping[SpanKey, Span],
        *,
        tell: Callable[[Peer, OneEvent], None],
        moved: Callable[[int], None],
        verified: Callable[[PieceId, int], None],
        lost: Callable[[Peer, str], None],
    ) -> None:
        self._filling = filling
        self._spans = spans
        self._piece_index = {span.piece: span.piece_index for span in spans.values()}
        self._tell = tell
        self._moved = moved
        self._verified = verified
        self._lost = lost
        self._writer = SpanWriter(filling)
        self._named: dict[tuple[Peer, SpanKey], _Ask] = {}
        self._offered: dict[tuple[Peer, int], _Ask] = {}
        self._open: dict[_Ask, None] = {}
        """In the order in which they were wanted."""
        self._fault: ArchidError | None = None
        self._look = trio.Event()
        self._look_at = math.inf
        """When `run` looks next whether one is late, unless it is woken."""
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._open)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End what is not answered in time; raises StorageError when the disk takes no more."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    due = (ask.deadline for ask in self._open)
                    self._look_at = min(due, default=math.inf)
                    with trio.move_on_at(self._look_at):
                        await self._look.wait()
                    self._look = trio.Event()
                    if self._fault is not None:
                        raise self._fault
                    self._end_late(trio.current_time())
        finally:
            self._nursery = None

    async def close(self) -> None:
        """Give up all that is open; returns when what was being written is counted."""
        for ask in list(self._open):
            self._give_up(ask)
        await self._writer.close()

    # What the machine says

    def ask(self, peer: Peer, key: SpanKey) -> None:
        """Ask a peer for a span by name."""
        limit_s = peer.settings.request_timeout_s
        ask = _Ask(peer, key, trio.current_time() + limit_s)
        self._named[peer, key] = ask
        self._begin(ask)

    def ask_any(self, peer: Peer, offer: int, wanted: Wanted) -> None:
        """Let a peer pick from what is wanted."""
        limit_s = peer.settings.request_timeout_s
        ask = _Ask(peer, None, trio.current_time() + limit_s, offer, wanted)
        self._offered[peer, offer] = ask
        self._begin(ask)

    def cancel(self, peer: Peer, key: SpanKey) -> None:
        """A span is not needed from this peer any more; nothing is told of it."""
        if ask := self._named.get((peer, key)):
            self._give_up(ask)

    def cancel_offer(self, peer: Peer, offer: int) -> None:
        """Nothing is to be picked from this offer, nor is what was picked needed."""
        if ask := self._offered.get((peer, offer)):
            self._give_up(ask)

    def leave_out(self, peer: Peer, key: SpanKey) -> None:
        """Take a span out of the offers that were not sent yet."""
        for ask in self._open:
            if ask.peer is peer and not ask.number:
                ask.left_out.add(key)

    def cancel_all(self, peer: Peer) -> None:
        """Nothing is needed from this peer any more."""
        for ask in [ask for ask in self._open if ask.peer is peer]:
            self._give_up(ask)

    # Sending

    def _begin(self, ask: _Ask) -> None:
        if ask.deadline < self._look_at:
            self._look.set()  # all that were open may be waiting for the disk
        self._open[ask] = None
        ask.received_bytes = ask.peer.received_bytes
        if ask.peer.has_slot:
            self._send(ask)
        else:
            self._wait(ask, self._send_later)

    async def _send_later(self, ask: _Ask) -> None:
        await ask.peer.wait_for_slot()
        if ask in self._open:
            self._send(ask)

    def _send(self, ask: _Ask) -> None:
        manifest = self._filling.layout.manifest
        request: GetSpan | GetAny
        if ask.key is not None:
            span = self._spans[ask.key]
            ask.skip = self._filling.skip(span)
            request = GetSpan(0, manifest, span.piece, span.n, ask.skip)
        elif left := without(ask.wanted, ask.left_out):
            request = GetAny(0, manifest, left)
        else:
            self._refused(ask, ErrorCode.CANCELLED)
            return

        def on_part(part: Answer) -> None:
            if isinstance(part, Picked):
                self._picked(ask, SpanKey(part.piece_index, part.n))

        def on_end(outcome: Answer | ArchidError) -> None:
            self._answered(ask, outcome)

        def taker(piece: PieceId, n: int, data: memoryview) -> None:
            self._take(ask, piece, n, data)

        try:
            ask.number = ask.peer.begin(request, on_part=on_part, on_end=on_end, taker=taker)
        except PeerLost as lost:
            self._answered(ask, lost)

    # What comes

    def _picked(self, ask: _Ask, key: SpanKey) -> None:
        ask.key, ask.skip = key, self._filling.layout.others(self._spans[key])
        self._named.setdefault((ask.peer, key), ask)
        self._tell(ask.peer, SpanPicked(ask.peer.node, ask.offer, key))

    def _take(self, ask: _Ask, piece: PieceId, n: int, data: memoryview) -> None:
        """Verify and write a span where it has come, in a worker thread.

        What was picked is known here by the span's own head: the event loop may not have been told
        yet. One that nobody offered is passed over.
        """
        index = self._piece_index.get(piece)
        span = None if index is None else self._spans.get(SpanKey(index, n))
        if span is not None:
            skip = self._filling.layout.others(span) if ask.offer else ask.skip
            self._writer.take(SpanBytes(span, skip, data))

    def _answered(self, ask: _Ask, outcome: Answer | ArchidError) -> None:
        if isinstance(outcome, PeerRefused):
            self._refused(ask, outcome.reason)
        elif isinstance(outcome, ArchidError):
            self._forget(ask)
            self._lost(ask.peer, str(outcome))
        elif not isinstance(outcome, SpanAnswer) or ask.key is None:
            raise TypeError("requests for spans are answered by spans in the end")
        elif outcome.piece != self._spans[ask.key].piece:
            self._end(ask, SpanCorrupt(ask.peer.node, ask.key))
        elif isinstance(outcome, TakenSpan):
            self._moved(outcome.size_bytes)
            self._written(ask, ask.key, outcome.fault)
        else:
            self._moved(len(outcome.data))
            data = outcome.data
            ask.deadline = math.inf
            self._wait(ask, lambda ask: self._write(ask, data))

    async def _write(self, ask: _Ask, data: Buffer) -> None:
        if ask.key is None:
            raise TypeError("it is not known which span this is")
        fault: ArchidError | None = None
        try:
            await self._writer.write(SpanBytes(self._spans[ask.key], ask.skip, data))
        except ArchidError as error:
            fault = error
        self._written(ask, ask.key, fault)

    def _written(self, ask: _Ask, key: SpanKey, fault: ArchidError | None) -> None:
        if isinstance(fault, ChunkCorrupt):
            log.warning("span_corrupt", node=ask.peer.node.short, why=str(fault))
            self._end(ask, SpanCorrupt(ask.peer.node, key))
        elif fault is not None:
            self._fault = fault
            self._look.set()
        else:
            span = self._spans[key]
            self._verified(span.piece, span.n)
            self._end(ask, SpanReceived(ask.peer.node, key))

    # The end of a request

    def _refused(self, ask: _Ask, code: ErrorCode) -> None:
        node = ask.peer.node
        if ask.key is not None:
            self._end(ask, SpanRefused(node, ask.key, code))
        else:
            self._end(ask, OfferRefused(node, ask.offer, code))

    def _end(self, ask: _Ask, event: OneEvent) -> None:
        self._forget(ask)
        self._tell(ask.peer, event)

    def _end_late(self, now: float) -> None:
        """As long as bytes come what has come of a span is not thrown away: on a slow or limited
        line it would be asked for again. The machine knows when to give up."""
        for ask in [ask for ask in self._open if ask.deadline <= now]:
            received_bytes = ask.peer.received_bytes
            if ask.number and received_bytes - ask.received_bytes >= PROGRESS_BYTES:
                ask.received_bytes = received_bytes
                ask.deadline = now + ask.peer.settings.request_timeout_s
            else:
                self._give_up(ask)
                self._refused(ask, ErrorCode.BUSY)

    def _give_up(self, ask: _Ask) -> None:
        self._forget(ask)
        if ask.waits is not None:
            ask.waits.cancel()
        if ask.number:
            with suppress(PeerLost):
                ask.peer.give_up(ask.number)

    def _forget(self, ask: _Ask) -> None:
        self._open.pop(ask, None)
        if ask.offer:
            self._offered.pop((ask.peer, ask.offer), None)
        if ask.key is not None and self._named.get((ask.peer, ask.key)) is ask:
            del self._named[ask.peer, ask.key]

    def _wait(self, ask: _Ask, wait: Callable[[_Ask], Awaitable[None]]) -> None:
        """Let a task wait for something that a request needs, unless it is given up.

        What comes while the fetch ends is passed over: `close` gives up what is open.
        """

        async def waiting() -> None:
            with scope:
                await wait(ask)

        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            return
        scope = ask.waits = trio.CancelScope()
        self._nursery.start_soon(waiting)
