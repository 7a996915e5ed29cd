"""Asking the other end of a connection: requests go out under numbers, answers find who waits.

Nothing is known here of what is asked for. How an answer came, inside TLS or through a lane, is the
peer's business (`archid.net.peer`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast, overload

import trio

from archid.errors import ArchidError
from archid.net.errors import PeerRefused, PeerTooSlow
from archid.net.lane import TakenSpan, Taker
from archid.net.pump import Pump
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from archid.net.traffic import Meter
from protocol.connection import Connection
from protocol.limits import MAX_OUTSTANDING_REQUESTS
from protocol.messages import Answer, Cancel, GetAny, GetSpan, Refused, Request, SpanAnswer

A = TypeVar("A", bound=Answer)

PROGRESS_BYTES: Final = 64 * 1024
"""Less than this within a request's time is not content that comes, only talk."""


@dataclass
class _Waiting:
    """A request of ours that is not fully answered."""

    request: Request
    on_end: Callable[[Answer | ArchidError], None]
    on_part: Callable[[Answer], None] | None = None
    taker: Taker | None = None
    parts: int = 0
    """How much of its answer has come."""


class Asking(Pump):
    """The side of a connection that asks."""

    def __init__(self, stream: TLSStream, connection: Connection, settings: PeerSettings) -> None:
        super().__init__(stream, connection, settings)
        self._waiting: dict[int, _Waiting] = {}
        self._slot_freed = trio.Event()
        self._span_bytes_received = 0
        self.content_in = Meter()

    @property
    def received_bytes(self) -> int:
        """On the wire, whichever way."""
        return self.stream.wire_bytes_received

    @overload
    async def request(self, message: Request, *, timeout_s: float | None = None) -> Answer: ...

    @overload
    async def request(
        self,
        message: Request,
        answer_type: type[A],
        *,
        timeout_s: float | None = None,
        taker: Taker | None = None,
    ) -> A: ...

    async def request(
        self,
        message: Request,
        answer_type: type[Answer] = Answer,
        *,
        timeout_s: float | None = None,
        taker: Taker | None = None,
    ) -> Answer:
        """Send a request under a new number and return its answer.

        `answer_type` only tells a type checker what the machine makes sure of anyway. Raises
        PeerRefused, PeerTooSlow after `timeout_s` (the settings have a default), PeerLost.
        A cancelled wait tells the peer that the answer is no longer needed.
        """
        [answer] = await self.request_all(message, timeout_s=timeout_s, taker=taker)
        if not isinstance(answer, answer_type):
            raise TypeError(f"{type(message).__name__} is not answered by {answer_type.__name__}")
        return answer

    async def request_all(
        self,
        message: Request,
        *,
        timeout_s: float | None = None,
        on_part: Callable[[Answer], None] | None = None,
        taker: Taker | None = None,
    ) -> list[Answer]:
        """The same for requests whose answer has several parts (GetPieces, GetAny).

        `on_part` is called with each part as soon as it is in. A span that comes through a lane is
        given to `taker` there, and its answer is a TakenSpan.
        """
        limit_s = self.settings.request_timeout_s if timeout_s is None else timeout_s
        number = 0
        deadline = trio.current_time() + limit_s
        answers: list[Answer] = []
        errors: list[ArchidError] = []
        done = trio.Event()

        def take(part: Answer) -> None:
            answers.append(part)
            if on_part is not None:
                on_part(part)

        def end(outcome: Answer | ArchidError) -> None:
            if isinstance(outcome, ArchidError):
                errors.append(outcome)
            done.set()

        try:
            with trio.move_on_at(deadline):
                await self.wait_for_slot()
                # No await from taking the number to sending: numbers go out in their order.
                number = self.begin(message, on_end=end, on_part=take, taker=taker)
            if number and await self._answered(message, done, deadline, limit_s):
                if errors:
                    raise errors[0]
                return answers
        finally:
            if not done.is_set():
                self.give_up(number)
        raise PeerTooSlow(
            f"{self.remote} did not answer {type(message).__name__} within {limit_s:g} seconds"
        )

    def begin(
        self,
        message: Request,
        *,
        on_end: Callable[[Answer | ArchidError], None],
        on_part: Callable[[Answer], None] | None = None,
        taker: Taker | None = None,
    ) -> int:
        """Send a request at once, for which there has to be a slot; returns its number.

        `on_end` is called once, in the event loop, with the last part of the answer, PeerRefused or
        PeerLost, unless the request is given up before. How long to wait is the caller's to say.
        Raises PeerLost.
        """
        number = self.connection.next_request()
        request = _numbered(message, number)
        self._waiting[number] = _Waiting(request, on_end, on_part, taker)
        try:
            self.push(request)
        except BaseException:
            del self._waiting[number]
            raise
        return number

    def give_up(self, number: int) -> None:
        """Tell the peer that the answer to a request is no longer needed, unless it is over."""
        if self._waiting.pop(number, None) is not None and not self.closed.is_set():
            self.push(Cancel(number))

    async def _answered(
        self, asked: Request, done: trio.Event, deadline: float, limit_s: float
    ) -> bool:
        """Wait for the answer; False when it does not come in time.

        Content may take longer for as long as bytes come: on a slow or limited line what has come
        of a span would be thrown away, and asked for again. The fetch plan knows when to give up.
        """
        patient = isinstance(asked, GetSpan | GetAny)
        while not done.is_set():
            received_bytes = self.received_bytes
            with trio.move_on_at(deadline):
                await done.wait()
                break
            deadline += limit_s
            if not patient or self.received_bytes - received_bytes < PROGRESS_BYTES:
                return False
        return True

    @property
    def has_slot(self) -> bool:
        """Whether a request could go out now."""
        return self.connection.open_requests < MAX_OUTSTANDING_REQUESTS and self.outbox.has_room

    async def wait_for_slot(self) -> None:
        """Return when a request can go out, or the connection has ended."""
        await self.outbox.wait_for_room()
        while (
            self.connection.open_requests >= MAX_OUTSTANDING_REQUESTS and not self.closed.is_set()
        ):
            await self._slot_freed.wait()

    def taker_of(self, request: int) -> Taker | None:
        """Who takes the span that answers a request of ours; called in any thread."""
        waiting = self._waiting.get(request)
        return None if waiting is None else waiting.taker

    def take_answer(self, message: Answer | Refused) -> None:
        waiting = self._waiting.get(message.request)
        if waiting is None:
            return
        if isinstance(message, SpanAnswer):
            moved = message.size_bytes if isinstance(message, TakenSpan) else len(message.data)
            self._span_bytes_received += moved
            self.content_in.count(moved, now=trio.current_time())
        if isinstance(message, Refused):
            del self._waiting[message.request]
            waiting.on_end(PeerRefused(self.remote, message.code, message.text))
            return
        waiting.parts += 1
        if waiting.on_part is not None:
            waiting.on_part(message)
        # Whoever was told of the part may have given the request up.
        whole = waiting.parts == waiting.request.answer_count
        if whole and self._waiting.pop(message.request, None) is not None:
            waiting.on_end(message)

    def free_slot(self) -> None:
        self._slot_freed.set()
        self._slot_freed = trio.Event()

    def on_end(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.on_end(self.gone())
        self._slot_freed.set()


def _numbered(message: Request, number: int) -> Request:
    """The same request under this number. All messages are dataclasses; their base is not."""
    numbered: Request = replace(cast("Any", message), request=number)
    return numbered
