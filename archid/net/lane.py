"""One bulk lane: moves records between its socket and the machines of `protocol.lane`.

What comes is received, opened and handed on in a worker thread for as long as it keeps coming, so
that a span costs neither the event loop's time nor a hop of its own; when nothing has come for a
moment the thread is given back and the event loop waits for the socket. In the same way `send_run`
seals and sends in a worker thread for as long as the kernel takes it; single answers are sealed and
sent in the event loop: both are calls that give up the interpreter's lock. Opening a lane is
`archid.net.lane_desk`'s, what an answer means the peer's.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from archid.errors import ArchidError
from archid.net.errors import PeerLost
from archid.net.lane_reading import LaneReader
from archid.net.lane_rooms import BURSTS, ROOMS, RUNS
from archid.net.lane_socket import Closing, abort, prepare, woken_when_gone, writable
from archid.net.pacing import Pacer
from protocol.connection_states import Side
from protocol.ids import PieceId
from protocol.lane import (
    LaneEvent,
    LaneInput,
    LaneOutput,
    LaneSecret,
    SpanData,
    SpanHead,
)
from protocol.messages import LaneProof, Picked, Refused, SpanAnswer

Taker: TypeAlias = "Callable[[PieceId, int, memoryview], None]"
"""Verifies and keeps the bytes of a span, in a worker thread; raises ArchidError.

The view is of a buffer that is used again: nothing of it may be kept.
"""

BURST_BYTES: Final = 16 << 20
"""Received in one hop at most, so that many lanes take turns."""
LINGER_MS: Final = 5
"""How long a thread waits for more, or for more room, before it is given back."""
TOLD_AT_ONCE: Final = 4
"""Answers of which the event loop is told together: two spans and what was said before each. More
and the other end would have nothing to send for a moment, when few requests are open."""
RUN_S: Final = 0.02
"""After this long a thread begins no other span, so that what is chosen for a run is sent soon. The
one that it has begun goes on for as long as the kernel takes some of it every LINGER_MS."""


@dataclass(frozen=True, slots=True)
class TakenSpan(SpanAnswer):
    """A span that came through a lane: its bytes were taken where they arrived."""

    size_bytes: int
    fault: ArchidError | None
    """What its taker raised."""


LaneAnswer: TypeAlias = "Picked | Refused | TakenSpan"
LaneMessage: TypeAlias = "LaneProof | Picked | Refused | SpanAnswer"


class Lane:
    """A lane over a connected socket that it owns; `run` receives until it ends.

    `taker_of` says, by the number of the request, who takes a span; it is called in a worker
    thread. `on_answer` is called in the event loop, in the order in which answers came.
    """

    def __init__(
        self,
        connected: socket.socket,
        secret: LaneSecret,
        side: Side,
        *,
        taker_of: Callable[[int], Taker | None],
        on_answer: Callable[[LaneAnswer], None],
        pacer_out: Pacer,
        pacer_in: Pacer,
        dead_after_s: float,
    ) -> None:
        self._socket = connected
        self._closing = Closing(connected)
        prepare(connected, dead_after_s=dead_after_s)
        self._output = LaneOutput(secret, side)
        self._input = LaneInput(secret, side)
        self._reader = LaneReader(connected, self._input)
        self._taker_of = taker_of
        self._on_answer = on_answer
        self._pacer_out = pacer_out
        self._pacer_in = pacer_in
        self._dead_after_s = dead_after_s
        self._turn = trio.StrictFIFOLock()
        self._ended = False
        self._why = ""
        """Why it ended, where that was found out by sending."""
        self._pause = trio.CancelScope()
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        self.wire_bytes_sent = 0

    @property
    def proven(self) -> bool:
        """Whether the other end has shown that it has the keys."""
        return self._input.proven

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def wire_bytes_received(self) -> int:
        return self._reader.wire_bytes

    def end(self, why: str = "") -> None:
        """Nothing goes through any more, what is on its way included; `run` is over soon.

        `why` is for what `run` has to raise, since whoever runs the lane does not know it yet.
        """
        if not self._ended:
            self._ended, self._why = True, why
            abort(self._socket)
            self._pause.cancel()

    def close(self) -> None:
        """Give the socket back, once no thread sends: it gets PeerLost. Nobody may be in `run`."""
        self.end()
        self._reader.drop_room()
        trio.lowlevel.notify_closing(self._socket)
        self._closing.close()

    # Sending

    async def send(self, choose: Callable[[], LaneMessage | None]) -> None:
        """Seal and send what `choose` returns when its turn has come, if anything.

        Returns when the kernel has all of it. Raises PeerLost. A send that is cancelled ends the
        lane, since the other end could not make sense of the rest.
        """
        async with self._turn:  # which lets others run
            await trio.lowlevel.checkpoint_if_cancelled()
            message = choose()
            if message is not None:
                with self._whole(), ROOMS.one() as room:
                    await self._send_all(self._records([message], room))

    async def send_run(self, produce: Callable[[memoryview], Sequence[LaneMessage]]) -> None:
        """Seal and send, in a worker thread, what `produce` gives until it gives nothing.

        `produce` is lent a buffer for the bytes of a span. It is asked for no more when the kernel
        has taken nothing for a moment, a limit is set, or RUN_S are over; what it has given is sent
        whole, however long that takes. Raises as `send`, and what `produce` raises, which ends the
        lane too: something may be sealed by then that was not sent.
        """
        async with self._turn:
            await trio.lowlevel.checkpoint_if_cancelled()
            with self._closing.put_off(), self._whole(), ROOMS.one() as room:
                left = await trio.to_thread.run_sync(
                    self._run_out, produce, room, limiter=RUNS.limiter
                )
                await self._send_all(left)

    def _run_out(
        self, produce: Callable[[memoryview], Sequence[LaneMessage]], room: memoryview
    ) -> memoryview:
        """What the kernel did not take; in a worker thread. Raises PeerLost."""
        if self._ended:
            raise PeerLost("the lane has ended")
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        until = time.monotonic() + RUN_S
        left = room[:0]
        with ROOMS.one() as plain:
            while not left and self._pacer_out.unlimited and time.monotonic() < until:
                if not (messages := produce(plain)):
                    break
                left = self._records(messages, room)
                while left and not self._ended:
                    try:
                        sent = self._socket.send(left)
                    except BlockingIOError:
                        if not poll.poll(LINGER_MS):
                            break
                    except OSError as error:
                        raise PeerLost(f"the lane broke: {error.strerror or error}") from error
                    else:
                        self.wire_bytes_sent += sent
                        left = left[sent:]
        return left

    def _records(self, messages: Iterable[LaneMessage], room: memoryview) -> memoryview:
        """The records of these messages, at most one of them a span, in `room`."""
        end = 0
        for message in messages:
            if isinstance(message, SpanAnswer):
                end += len(self._output.span(message, room[end:]))
            else:
                record = self._output.message(message)
                room[end : end + len(record)] = record
                end += len(record)
        return room[:end]

    async def until_gone(self) -> None:
        """Return when little of what was sent waits in this node's kernel, or nothing is taken.

        It only measures: whoever takes nothing is found out by sending. Raises PeerLost.
        """
        async with self._turn:
            if self._ended:
                raise PeerLost("the lane has ended")
            with woken_when_gone(self._socket):
                await writable(self._socket, self._dead_after_s)

    async def _send_all(self, data: memoryview) -> None:
        while data:
            part = data
            if not self._pacer_out.unlimited:
                part = data[: self._pacer_out.slice_bytes]
                await self._pacer_out.take(len(part))
            if self._ended:
                raise PeerLost("the lane has ended")
            data = data[await self._send(part) :]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """End the lane unless all that the block seals is sent. OSError becomes PeerLost."""
        try:
            yield
        except OSError as error:
            why = f"the lane broke: {error.strerror or error}"
            self.end(why)
            raise PeerLost(why) from error
        except PeerLost as error:
            self.end(error.message)
            raise
        except BaseException:
            self.end("an answer was not sent whole")
            raise

    async def _send(self, part: memoryview) -> int:
        """Hand a part to the kernel, whole where it was paid for; returns how much it was."""
        paced = not self._pacer_out.unlimited
        done = 0
        while done < len(part):
            try:
                sent = self._socket.send(part[done:])
            except BlockingIOError:
                if not await writable(self._socket, self._dead_after_s):
                    why = f"the other end took nothing for {self._dead_after_s:g} seconds"
                    raise PeerLost(why) from None
            else:
                self.wire_bytes_sent += sent
                done += sent
                if not paced:
                    break
        return done

    # Receiving

    async def run(self) -> None:
        """Receive until the lane was ended here. Raises ProtocolError and PeerLost."""
        token = trio.lowlevel.current_trio_token()

        def tell(answers: Sequence[LaneAnswer]) -> None:
            token.run_sync_soon(self._tell, answers)

        while not self._ended:
            # A burst may end anywhere: what is still to come can be less than was waited for last.
            if not self._reader.at_hand:
                self._reader.wake_for_more()
                await trio.lowlevel.wait_readable(self._socket)
            before_bytes, paced = self.wire_bytes_received, not self._pacer_in.unlimited
            most_bytes = self._pacer_in.slice_bytes if paced else BURST_BYTES
            await trio.to_thread.run_sync(self._burst, tell, most_bytes, limiter=BURSTS.limiter)
            if paced and not self._ended:
                with trio.CancelScope() as self._pause:
                    await self._pacer_in.take(self.wire_bytes_received - before_bytes)
        if self._why:
            raise PeerLost(self._why)

    async def receive_proof(self) -> None:
        """Return when the other end has shown that it has the keys; raises as `run`."""
        while not self.proven:
            if not self._reader.at_hand:
                await trio.lowlevel.wait_readable(self._socket)
            if self._ended or not self._fill(BURST_BYTES):
                raise PeerLost("the lane ended before anything came through it")
            self._reader.take(lambda _: None)

    def _tell(self, answers: Sequence[LaneAnswer]) -> None:
        for answer in answers:
            self._on_answer(answer)

    def _burst(self, tell: Callable[[Sequence[LaneAnswer]], None], most_bytes: int) -> None:
        """Receive and take what comes, until nothing has come for a moment; in a thread.

        The event loop is told at once when there is nothing to receive, and else of a few at a
        time: waking it costs more than what it then does.
        """
        until_bytes = self.wire_bytes_received + most_bytes
        answers: list[LaneAnswer] = []

        def use(event: LaneEvent) -> None:
            if isinstance(event, SpanData):
                answers.append(self._taken(event.head, event.data))
            elif isinstance(event, Picked | Refused):
                answers.append(event)

        try:
            while not self._ended:
                left_bytes = until_bytes - self.wire_bytes_received
                if left_bytes <= 0 and not self._reader.at_hand:
                    return
                if not self._fill(left_bytes):
                    if answers:
                        tell(answers[:])
                        answers.clear()
                    self._reader.wake_for_more()
                    if not self._poll.poll(LINGER_MS):
                        return
                    if not self._fill(left_bytes):
                        return
                self._reader.take(use)
                if len(answers) >= TOLD_AT_ONCE:
                    tell(answers[:])
                    answers.clear()
        finally:
            if answers:
                tell(answers)

    def _fill(self, most_bytes: int) -> bool:
        """Receive once; False when nothing is there. Raises PeerLost."""
        try:
            return self._reader.fill(most_bytes)
        except PeerLost:
            if self._ended:  # here, which is no news
                return False
            self._ended = True
            raise

    def _taken(self, head: SpanHead, data: memoryview) -> TakenSpan:
        fault: ArchidError | None = None
        taker = self._taker_of(head.request)
        if taker is not None:
            try:
                taker(head.piece, head.n, data)
            except ArchidError as error:
                fault = error
        return TakenSpan(head.request, head.piece, head.n, b"", head.size_bytes, fault)
