"""The open requests of one connection, both ways: which number awaits what.

Every request ends with its full answer or with one Refused, also when it was cancelled: so both
sides always agree on how many are open, whatever crosses on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import FormatError, LimitExceeded
from protocol.limits import MAX_OUTSTANDING_REQUESTS
from protocol.messages import Answer, ErrorCode, Message, Refused, Request


@dataclass(slots=True)
class OpenRequest:
    """One request and how much of its answer has gone by."""

    request: Request
    answered: int = 0
    cancelled: bool = False
    before: Answer | None = None
    """What was answered first, where answers are of several kinds."""

    def why_not(self, message: Answer | Refused) -> str | None:
        """A sentence when `message` cannot be the next part of the answer."""
        if isinstance(message, Refused):
            return None
        request = self.request
        kinds = request.answer_kinds()
        fits = (
            type(message) is kinds[min(self.answered, len(kinds) - 1)]
            and request.accepts(message, self.answered)
            and (self.before is None or request.follows(message, self.before))
        )
        if fits:
            return None
        return f"{type(message).__name__} does not answer {type(request).__name__}"

    def ends_with(self, message: Answer | Refused) -> bool:
        """Whether nothing may follow `message`."""
        return isinstance(message, Refused) or self.answered + 1 >= self.request.answer_count


class RequestBook:
    """Ours and theirs. Raises FormatError and LimitExceeded whoever is at fault: the caller,
    who knows which side it is, says what that means."""

    def __init__(self) -> None:
        self.ours: dict[int, OpenRequest] = {}
        self.theirs: dict[int, OpenRequest] = {}
        self._our_last = 0
        self._their_last = 0

    def ask(self, request: Request) -> None:
        """We send a request."""
        self._our_last = self._open(self.ours, request, self._our_last)

    def asked(self, request: Request) -> None:
        """The peer sends a request."""
        self._their_last = self._open(self.theirs, request, self._their_last)

    def cancel(self, number: int) -> bool:
        """We cancel; False when there is nothing to cancel any more."""
        return self._cancel(self.ours, number)

    def cancelled(self, number: int) -> bool:
        """The peer cancels; False when our answer has crossed it."""
        return self._cancel(self.theirs, number)

    def awaits(self, kind: type[Message]) -> bool:
        """Whether any open request of ours may be answered by a message of this kind."""
        return any(kind in waiting.request.answer_kinds() for waiting in self.ours.values())

    def answered(self, message: Answer | Refused) -> Request | None:
        """The peer answers; the request, or None when we have cancelled it."""
        waiting = self._find(self.ours, message)
        self._count(self.ours, waiting, message)
        return None if waiting.cancelled else waiting.request

    def answer(self, message: Answer | Refused) -> Answer | Refused | None:
        """We answer: what to send instead, which is nothing or a refusal once cancelled."""
        asked = self._find(self.theirs, message)
        last = asked.ends_with(message)
        self._count(self.theirs, asked, message)
        if not asked.cancelled:
            return message
        return Refused(message.request, ErrorCode.CANCELLED, "it was cancelled") if last else None

    def clear(self) -> None:
        """The connection has ended."""
        self.ours.clear()
        self.theirs.clear()

    @staticmethod
    def _open(book: dict[int, OpenRequest], request: Request, last: int) -> int:
        if request.request <= last:
            raise FormatError(f"request number {request.request} is used again or out of order")
        if len(book) >= MAX_OUTSTANDING_REQUESTS:
            raise LimitExceeded(f"more than {MAX_OUTSTANDING_REQUESTS} open requests")
        book[request.request] = OpenRequest(request)
        return request.request

    @staticmethod
    def _cancel(book: dict[int, OpenRequest], number: int) -> bool:
        entry = book.get(number)
        if entry is None or entry.cancelled:
            return False
        entry.cancelled = True
        return True

    @staticmethod
    def _find(book: dict[int, OpenRequest], message: Answer | Refused) -> OpenRequest:
        entry = book.get(message.request)
        if entry is None:
            raise FormatError(f"{type(message).__name__} to no open request")
        why_not = entry.why_not(message)
        if why_not:
            raise FormatError(why_not)
        return entry

    @staticmethod
    def _count(book: dict[int, OpenRequest], entry: OpenRequest, message: Answer | Refused) -> None:
        if entry.ends_with(message):
            book.pop(message.request, None)  # the connection may be ending in another thread
        elif isinstance(message, Answer) and len(entry.request.answer_kinds()) > 1:
            entry.before = message
        entry.answered += 1
