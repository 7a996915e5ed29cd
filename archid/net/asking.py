"""Asking the other end of a connection: requests go out under numbers, answers find who waits.

Nothing is known here of what is asked for. How an answer came, inside TLS or through a lane, is the
peer's business (`archid.net.peer`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    answers: list[Answer] = field(default_factory=list)
    on_part: Callable[[Answer], None] | None = None
    taker: Taker | None = None
    error: ArchidError | None = None
    done: trio.Event = field(default_factory=trio.Event)


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
        message: Request | Callable[[], Request],
        *,
        timeout_s: float | None = None,
        on_part: Callable[[Answer], None] | None = None,
        taker: Taker | None = None,
    ) -> list[Answer]:
        """The same for requests whose answer has several parts (GetPieces, GetAny).

        `on_part` is called with each part as soon as it is in. What to ask may be given as a
        function, which is called when it goes out, and not at all if it never does. A span that
        comes through a lane is given to `taker` there, and its answer is a TakenSpan.
        """
        limit_s = self.settings.request_timeout_s if timeout_s is None else timeout_s
        number = 0
        deadline = trio.current_time() + limit_s
        try:
            with trio.move_on_at(deadline):
                await self._wait_for_slot()
                # No await from taking the number to sending: numbers go out in their order.
                asked = message if isinstance(message, Request) else message()
                number = self.connection.next_request()
                waiting = self._waiting[number] = _Waiting(
                    _numbered(asked, number), on_part=on_part, taker=taker
                )
                self.push(waiting.request)
            if number and await self._answered(waiting, deadline, limit_s):
                if waiting.error is not None:
                    raise waiting.error
                return waiting.answers
        finally:
            unanswered = self._waiting.pop(number, None)
            if unanswered and not unanswered.done.is_set() and not self.closed.is_set():
                self.push(Cancel(number))
        raise PeerTooSlow(
            f"{self.remote} did not answer {_name(message)} within {limit_s:g} seconds"
        )

    async def _answered(self, waiting: _Waiting, deadline: float, limit_s: float) -> bool:
        """Wait for the answer; False when it does not come in time.

        Content may take longer for as long as bytes come: on a slow or limited line what has come
        of a span would be thrown away, and asked for again. The fetch plan knows when to give up.
        """
        patient = isinstance(waiting.request, GetSpan | GetAny)
        while not waiting.done.is_set():
            received_bytes = self.received_bytes
            with trio.move_on_at(deadline):
                await waiting.done.wait()
                break
            deadline += limit_s
            if not patient or self.received_bytes - received_bytes < PROGRESS_BYTES:
                return False
        return True

    async def _wait_for_slot(self) -> None:
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
            waiting.error = PeerRefused(self.remote, message.code, message.text)
            waiting.done.set()
        else:
            waiting.answers.append(message)
            if waiting.on_part is not None:
                waiting.on_part(message)
            if len(waiting.answers) == waiting.request.answer_count:
                waiting.done.set()

    def free_slot(self) -> None:
        self._slot_freed.set()
        self._slot_freed = trio.Event()

    def on_end(self) -> None:
        for waiting in self._waiting.values():
            waiting.error = self.gone()
            waiting.done.set()
        self._slot_freed.set()


def _name(message: Request | Callable[[], Request]) -> str:
    return type(message).__name__ if isinstance(message, Request) else "a request"


def _numbered(message: Request, number: int) -> Request:
    """The same request under this number. All messages are dataclasses; their base is not."""
    numbered: Request = replace(cast("Any", message), request=number)
    return numbered
