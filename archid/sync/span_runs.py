"""Sends a peer that is alone one span after the other, without the event loop in between.

A hop into a thread and the event loop's turns cost as much as reading and sealing a span. So what
a peer has asked for by now is chosen at once, and one thread reads, seals and sends it, for as long
as the kernel takes it; what is asked for meanwhile is chosen when it comes, and the thread goes on
with it. A run is short: what it did not begin is chosen anew, as late as ever. Where
several peers ask, a limit is set, or anything is to be refused, requests are served one by one
(`archid.sync.session`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from archid.errors import ArchidError, NotFound
from archid.net.errors import PeerLost, Refusal
from archid.net.lane import LaneMessage
from archid.net.peer import Peer
from archid.store.errors import ChunkCorrupt, DocumentMissing
from archid.store.library import Library
from archid.sync.access import Access
from archid.sync.span_exchange import SpanExchange
from archid.sync.upload_turns import line_of
from protocol.errors import ProtocolError
from protocol.frames import Buffer
from protocol.ids import ManifestId
from protocol.messages import GetAny, GetSpan, Picked, Request, SpanAnswer
from protocol.serve_turns import MANY_SPANS

MOST: Final = 16
"""Spans that are chosen and not begun."""
WAIT_S: Final = 0.005
"""How long a thread waits for the next request before it is given back."""
MOST_LOOKED_AT: Final = 8192
"""Spans that are looked at before a choice is the last: the event loop waits meanwhile. An offer is
of a few hundred."""


class _Chosen(NamedTuple):
    """What is to be sent: as if it had been asked for by name, under the number of the request."""

    span: GetSpan
    picked: Picked | None
    number: int
    """Of the span that was picked, in the layout."""
    looked_at: int
    """Spans among which it was chosen."""


class _Run:
    """What one thread sends, in this order; the event loop adds to it while it goes on."""

    def __init__(self) -> None:
        self.chosen: list[_Chosen] = []
        self.sent: list[SpanAnswer] = []
        """What of it was handed to the lane, by the thread."""
        self.counted = 0
        self.rotten: tuple[ManifestId, ChunkCorrupt] | None = None
        """What the thread found damaged, which ended the run."""
        self._coming: SimpleQueue[_Chosen | None] = SimpleQueue()
        self._full = False

    @property
    def room(self) -> int:
        """How many more may be chosen now."""
        return 0 if self._full else MOST - len(self.chosen) + len(self.sent)

    def add(self, chosen: _Chosen) -> None:
        self.chosen.append(chosen)
        self._coming.put(chosen)

    def fill(self) -> None:
        """Nothing will be added any more."""
        if not self._full:
            self._full = True
            self._coming.put(None)

    def next(self) -> _Chosen | None:
        """What to send next, None when the run is over; in the thread, which waits a moment."""
        try:
            return self._coming.get(timeout=WAIT_S)
        except Empty:
            return None


class SpanRuns:
    """The runs of one peer."""

    def __init__(
        self,
        peer: Peer,
        access: Access,
        *,
        judge: Callable[[Request], None],
        library: Library,
        spans: SpanExchange,
        on_rotten: Callable[[ManifestId, ChunkCorrupt], None],
    ) -> None:
        """`judge` raises Refusal when the peer may not have an answer, PeerLost when it is out.

        `on_rotten` is told of a chunk that was to be sent and does not hold.
        """
        self._peer = peer
        self._access = access
        self._judge = judge
        self._library = library
        self._spans = spans
        self._on_rotten = on_rotten
        self._run: _Run | None = None

    async def send(self, requests: Sequence[Request]) -> int:
        """Answer the first of these requests; returns how many, 0 where each goes on its own.

        Raises PeerLost, Refusal (of the first).
        """
        peer, turns = self._peer, self._spans.turns
        self._spans.done_before(peer, requests[0])
        if not self._alone():
            return 0
        async with (
            self._spans.slots.one(peer.node),
            # It is over at once if others ask as well.
            turns.one(peer.node, lambda: MANY_SPANS, site=line_of(peer.facts)) as turn,
        ):
            await turns.begin(turn)
            lane = peer.lane
            if lane is None or not self._alone():
                return 0
            run = self._run = _Run()
            try:
                self.go_on(requests)
                if run.chosen:
                    await lane.send_run(lambda room: self._next(run, room))
            finally:
                self._run = None
                for one in run.chosen[len(run.sent) :]:
                    if one.picked is not None:
                        self._spans.not_sent(peer, one.span.manifest, one.number, told=False)
                self._count(run)
                if run.rotten is not None:
                    self._on_rotten(*run.rotten)
        return len(run.sent)

    def go_on(self, requests: Sequence[Request]) -> None:
        """More has come, at the end of the requests that `send` was given: let a run that is under
        way go on with it. Raises PeerLost."""
        run = self._run
        if run is None:
            return
        self._count(run)
        if not self._alone():
            run.fill()
        looked_at, first = 0, len(run.chosen)
        for request in islice(requests, first, first + max(run.room, 0)):
            one = self._chosen(request) if looked_at <= MOST_LOOKED_AT else None
            if one is None:
                run.fill()  # it is to be served on its own, or later
                return
            looked_at += one.looked_at
            run.add(one)

    def _alone(self) -> bool:
        """Whether what this peer is sent may be chosen some spans ahead."""
        peer = self._peer
        unlimited = peer.lane is not None and peer.pacer_out.unlimited
        return unlimited and not self._spans.turns.crowded(peer.node)

    def _count(self, run: _Run) -> None:
        for answer in run.sent[run.counted :]:
            run.counted += 1
            self._peer.count_sent(answer)

    def _chosen(self, request: Request) -> _Chosen | None:
        if not self._peer.still_wants(request) or not self._peer.begins_by_lane(request):
            return None
        try:
            self._judge(request)
        except Refusal:
            return None
        if isinstance(request, GetSpan):
            return _Chosen(request, None, 0, 1)
        if not isinstance(request, GetAny):
            return None
        manifest = request.manifest
        try:
            found = self._library.seeding.readable_at_hand(
                manifest, self._spans.still_wanted(self._peer, request)
            )
        except (NotFound, DocumentMissing):
            return None
        if found is None:
            return None
        layout, among = found
        number = self._spans.pick(self._peer, manifest, among, span_count=len(layout.spans))
        if number is None:
            return None
        span = layout.spans[number]
        return _Chosen(
            GetSpan(request.request, manifest, span.piece, span.n, layout.others(span)),
            Picked(request.request, span.piece_index, span.n),
            number,
            len(among),
        )

    def _next(self, run: _Run, room: memoryview) -> Sequence[LaneMessage]:
        """Read the next span into `room`; empty when the run is over. In a worker thread."""
        peer = self._peer
        one = run.next()
        if one is None or peer.closed.is_set():
            return ()
        asked, picked = one[:2]
        if not (self._access.still_may_read(asked.manifest) and peer.still_wants(asked)):
            return ()
        try:
            data = self._read(asked, room)
            if not self._access.still_may_read(asked.manifest):
                return ()
            answer = SpanAnswer(asked.request, asked.piece, asked.n, data)
            parts = (answer,) if picked is None else (picked, answer)
            messages = peer.answers_for_lane(parts)
        except PeerLost:
            raise
        except ChunkCorrupt as error:
            run.rotten = asked.manifest, error
            return ()
        except (ArchidError, ProtocolError, OSError):
            return ()  # what it is, finds who serves it on its own
        run.sent.append(answer)
        return messages

    def _read(self, asked: GetSpan, room: memoryview) -> Buffer:
        read_span = self._library.seeding.read_span
        return read_span(asked.manifest, asked.piece, asked.n, asked.skip, room)
