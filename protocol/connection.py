"""One connection as a pure machine: bytes and local decisions in, events and bytes out.

It knows which message may be sent or received when, negotiates version and features, matches
answers to requests and bounds both. It judges nothing: whether a proof holds, and who may read
what, is the owner's to say, by `admit` and `refuse` and by how it answers requests. Time-outs
are the owner's too. What a peer does wrong ends the connection with a `ConnectionEnded` event
and a Goodbye to the peer; what the owner does wrong raises `LocalProtocolError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from protocol.connection_events import (
    Admitted,
    ConnectionEnded,
    Event,
    HelloReceived,
    LocalProtocolError,
    MessageReceived,
    ProofReceived,
)
from protocol.connection_states import (
    ALLOWED,
    CROSSING,
    JOIN_ORDER,
    ONE_WAY,
    TRANSITIONS,
    UNPROVEN_LIMITS,
    Side,
    State,
    Trigger,
)
from protocol.errors import FormatError, LimitExceeded, ProtocolError
from protocol.features import LANES
from protocol.frames import FLAG_OPTIONAL, Buffer, FrameReader, FrameRule
from protocol.limits import MAX_ERROR_TEXT_BYTES, MAX_PROVES, MAX_UNKNOWN_FRAME_BYTES
from protocol.messages import (
    JOINING,
    MESSAGE_TYPES,
    Answer,
    Cancel,
    ErrorCode,
    Goodbye,
    Hello,
    Message,
    Picked,
    Ping,
    Pong,
    Prove,
    Refused,
    Request,
    SpanAnswer,
    Welcome,
    printable,
)
from protocol.negotiation import CannotTalk, negotiate
from protocol.request_book import RequestBook

__all__ = [
    "Admitted",
    "Connection",
    "ConnectionEnded",
    "Event",
    "HelloReceived",
    "LocalProtocolError",
    "MessageReceived",
    "ProofReceived",
    "Side",
    "State",
]

_T = TypeVar("_T")


class Connection:
    """One side of a connection.

    `hello` is sent at once. `joining` is for connections on which the client showed no
    certificate: only JOIN messages and the exchange of Roots are allowed there. After every call
    the owner sends what `bytes_to_send` returns, and closes when the state is CLOSED.
    """

    def __init__(self, *, side: Side, hello: Hello, joining: bool = False) -> None:
        self.side = side
        self.hello = hello
        self.peer_hello: Hello | None = None
        self.late_span_bytes = 0
        """Payload of spans that crossed their Cancel: it was sent, and nobody waits for it."""
        self.version = 0
        self.features: frozenset[str] = frozenset()
        self._joining = joining
        self._state = State.HELLO
        self._reader = FrameReader(self._judge_header)
        self._output: list[Buffer] = list(hello.encode())
        self._book = RequestBook()
        self._numbers_given = 0
        self._proves_sent = 0
        self._proves_received = 0
        self._welcomed_peer = False
        self._welcomed_by_peer = False
        self._join_step = 0

    @property
    def state(self) -> State:
        return self._state

    @property
    def closed(self) -> bool:
        """Nothing more comes of it; what `bytes_to_send` still has is to be sent."""
        return self._state is State.CLOSED

    @property
    def open_requests(self) -> int:
        """How many of our requests are not fully answered, cancelled ones included."""
        return len(self._book.ours)

    @property
    def requests_to_answer(self) -> int:
        """How many of the peer's requests we have not fully answered."""
        return len(self._book.theirs)

    def request_to_answer(self, number: int) -> Request | None:
        """The peer's request of this number, unless it is answered."""
        entry = self._book.theirs.get(number)
        return None if entry is None else entry.request

    # What comes in

    def receive_bytes(self, data: Buffer) -> list[Event]:
        """Take received bytes; `bytes` objects are not copied. Never raises for what is in them."""
        events: list[Event] = []
        if not self.closed:
            self._reader.feed(data)
            self._judged(self._read_frames, events)
        return events

    def receive_by_lane(
        self, message: Picked | SpanAnswer | Refused, *, size_bytes: int = 0
    ) -> list[Event]:
        """Take an answer that came through a lane; of a span, its bytes were taken already.

        `size_bytes` is how many those were. Never raises for what the peer did wrong.
        """
        events: list[Event] = []

        def receive(events: list[Event]) -> None:
            self._require_lanes()
            event = self._receive(message)
            if event is not None:
                events.append(event)
            elif isinstance(message, SpanAnswer):
                self.late_span_bytes += size_bytes

        if not self.closed:
            self._judged(receive, events)
        return events

    def lane_broke(self, error: ProtocolError) -> list[Event]:
        """What came through a lane was not what a lane carries: the connection ends with it."""
        if self.closed:
            return []
        return [self._end(self._code_of(error), str(error))]

    def _read_frames(self, events: list[Event]) -> None:
        while (frame := self._reader.next_frame()) is not None:
            message = MESSAGE_TYPES[frame.type].decode(frame)
            event = self._receive(message)
            if event is not None:
                events.append(event)
            if isinstance(event, ConnectionEnded):
                return

    def _judged(self, receive: Callable[[list[Event]], None], events: list[Event]) -> None:
        """Let something be received; what breaks the protocol ends the connection."""
        try:
            receive(events)
        except ProtocolError as error:
            events.append(self._end(self._code_of(error), str(error)))

    @staticmethod
    def _code_of(error: ProtocolError) -> ErrorCode:
        if isinstance(error, CannotTalk):
            return error.code
        over = isinstance(error, LimitExceeded)
        return ErrorCode.LIMIT_EXCEEDED if over else ErrorCode.PROTOCOL_ERROR

    def receive_eof(self) -> list[Event]:
        """The peer sends nothing more."""
        if self.closed:
            return []
        where = " in the middle of a message" if self._reader.in_frame else ""
        self._close()
        return [
            ConnectionEnded(ErrorCode.CONNECTION_LOST, f"the connection ended{where}", by_peer=True)
        ]

    # What goes out

    def bytes_to_send(self) -> list[Buffer]:
        """What is to be sent now, in order, not joined; given out once."""
        output, self._output = self._output, []
        return output

    def next_request(self) -> int:
        """A number for a new request; requests must be sent in the order of their numbers."""
        self._numbers_given += 1
        return self._numbers_given

    @property
    def last_request(self) -> int:
        """The number that was given out last, 0 before the first."""
        return self._numbers_given

    def send(self, message: Message) -> None:
        """Queue a message.

        Raises LocalProtocolError when it is not allowed now, answers nothing, is over a limit or
        over the number of open requests. An answer to a request that the peer has cancelled is
        replaced by its refusal.
        """
        kind = type(message)
        if isinstance(message, Hello | Welcome | Pong):
            raise LocalProtocolError(f"{kind.__name__} is sent by the machine itself")
        if kind not in ALLOWED[self._state]:
            raise LocalProtocolError(f"{kind.__name__} is not allowed in {self._state.name}")
        if kind.FEATURE and kind.FEATURE not in self.features:
            raise LocalProtocolError(f"{kind.__name__} needs the feature {kind.FEATURE}")
        if ONE_WAY.get(kind, self.side) is not self.side:
            raise LocalProtocolError(f"{kind.__name__} is the other side's to send")
        frame = self._encode(message)
        if isinstance(message, Request):
            self._locally(self._book.ask, message)
        elif isinstance(message, Answer | Refused):
            instead = self._locally(self._book.answer, message)
            if instead is not message:
                frame = self._encode(instead) if instead else []
        elif isinstance(message, Cancel):
            if not self._book.cancel(message.request):
                return
        elif isinstance(message, Prove):
            if self._proves_sent == MAX_PROVES:
                raise LocalProtocolError(f"Prove was sent {MAX_PROVES} times")
            self._proves_sent += 1
        elif kind in JOINING:
            self._locally(self._take_join_turn, kind, self.side)
        self._output += frame
        if isinstance(message, Goodbye):
            self._close()

    def send_by_lane(
        self, message: Picked | SpanAnswer | Refused
    ) -> Picked | SpanAnswer | Refused | None:
        """Count an answer that is to go through a lane: what to send there, perhaps nothing.

        All parts of one answer go the same way, since nothing else keeps them in order. Raises
        LocalProtocolError.
        """
        self._locally(self._require_lanes)
        instead = self._locally(self._book.answer, message)
        if instead is None or isinstance(instead, Picked | SpanAnswer | Refused):
            return instead
        raise LocalProtocolError(f"{type(instead).__name__} does not go through a lane")

    def admit(self) -> list[Event]:
        """The owner believes the peer's proof. Returns Admitted when the peer believes ours too."""
        if self._state is not State.PROVING or not self._proves_received or self._welcomed_peer:
            raise LocalProtocolError(f"nothing to admit in {self._state.name}")
        self._welcomed_peer = True
        self._output += Welcome().encode()
        admitted = self._both_welcomed()
        return [admitted] if admitted else []

    def refuse(self, code: ErrorCode, text: str) -> list[Event]:
        """The owner does not believe the peer, or no longer: say why and end the connection."""
        if self.closed:
            raise LocalProtocolError("the connection has ended already")
        return [self._end(code, text)]

    def _require_lanes(self) -> None:
        if self._state is not State.ADMITTED or LANES not in self.features:
            raise FormatError("there is no lane on this connection")

    # Frames

    def _judge_header(self, frame_type: int, flags: int) -> FrameRule:
        kind = MESSAGE_TYPES.get(frame_type)
        if kind is None:
            if flags & FLAG_OPTIONAL and self._state is not State.HELLO:
                return FrameRule(MAX_UNKNOWN_FRAME_BYTES, skip=True)
            raise FormatError(f"message type {frame_type} is unknown")
        if kind not in ALLOWED[self._state] | CROSSING.get(self._state, frozenset()):
            raise FormatError(f"{kind.__name__} is not allowed in {self._state.name}")
        if kind.FEATURE and kind.FEATURE not in self.features:
            raise FormatError(f"{kind.__name__} without the feature {kind.FEATURE}")
        if ONE_WAY.get(kind, self.side.other) is self.side:
            raise FormatError(f"{kind.__name__} from the wrong side")
        if kind in JOINING:
            self._check_join_turn(kind, self.side.other)
        if issubclass(kind, Answer) and not self._book.awaits(kind):
            raise FormatError(f"{kind.__name__} to no open request")
        if self._state is State.ADMITTED:
            return FrameRule(kind.MAX_BYTES)
        return FrameRule(min(kind.MAX_BYTES, UNPROVEN_LIMITS.get(kind, kind.MAX_BYTES)))

    @staticmethod
    def _encode(message: Message) -> list[Buffer]:
        try:
            return message.encode()
        except ProtocolError as error:
            raise LocalProtocolError(f"{type(message).__name__}: {error}") from error

    @staticmethod
    def _locally(call: Callable[..., _T], *arguments: object) -> _T:
        """What breaks a rule is this side's defect, not the peer's."""
        try:
            return call(*arguments)
        except ProtocolError as error:
            raise LocalProtocolError(str(error)) from error

    # Messages

    def _receive(self, message: Message) -> Event | None:
        event: Event | None = MessageReceived(message)
        if isinstance(message, Hello):
            event = self._receive_hello(message)
        elif isinstance(message, Goodbye):
            self._close()
            event = ConnectionEnded(message.code, message.text, by_peer=True)
        elif isinstance(message, Prove):
            event = self._receive_prove(message)
        elif isinstance(message, Welcome):
            event = self._receive_welcome()
        elif isinstance(message, Ping):
            self._output += Pong(message.n).encode()
            event = None
        elif isinstance(message, Request):
            self._book.asked(message)
        elif isinstance(message, Answer | Refused):
            request = self._book.answered(message)
            event = MessageReceived(message, request) if request else None
            if request is None and isinstance(message, SpanAnswer):
                self.late_span_bytes += len(message.data)
        elif isinstance(message, Cancel):
            if not self._book.cancelled(message.request):
                event = None  # it crossed our answer
        elif type(message) in JOINING:
            self._take_join_turn(type(message), self.side.other)
        return event

    def _receive_hello(self, theirs: Hello) -> Event:
        version = negotiate(self.hello, theirs, side=self.side, joining=self._joining)
        self.peer_hello = theirs
        self.version = version
        self.features = frozenset(self.hello.features) & frozenset(theirs.features)
        self._follow(Trigger.JOIN_HELLO_RECEIVED if self._joining else Trigger.HELLO_RECEIVED)
        return HelloReceived(theirs, version, self.features)

    def _receive_prove(self, message: Prove) -> Event | None:
        self._proves_received += 1
        if self._proves_received > MAX_PROVES:
            raise LimitExceeded(f"more than {MAX_PROVES} proofs")
        # A better proof may have crossed the Welcome for the one before.
        return None if self._welcomed_peer else ProofReceived(message)

    def _receive_welcome(self) -> Event | None:
        if not self._proves_sent or self._welcomed_by_peer:
            raise FormatError("Welcome that answers no Prove")
        self._welcomed_by_peer = True
        return self._both_welcomed()

    def _both_welcomed(self) -> Admitted | None:
        if not (self._welcomed_peer and self._welcomed_by_peer):
            return None
        self._follow(Trigger.BOTH_WELCOMED)
        return Admitted()

    def _check_join_turn(self, kind: type[Message], sender: Side) -> None:
        if self._join_step >= len(JOIN_ORDER) or JOIN_ORDER[self._join_step] != (sender, kind):
            raise FormatError(f"{kind.__name__} is out of its turn")

    def _take_join_turn(self, kind: type[Message], sender: Side) -> None:
        self._check_join_turn(kind, sender)
        self._join_step += 1

    # States

    def _follow(self, trigger: Trigger) -> None:
        self._state = TRANSITIONS[self._state, trigger]

    def _close(self) -> None:
        self._follow(Trigger.ENDED)
        self._book.clear()
        self._reader = FrameReader(self._judge_header)

    def _end(self, code: ErrorCode, text: str) -> ConnectionEnded:
        self._output += Goodbye(code, text).encode()
        self._close()
        return ConnectionEnded(code, printable(text, MAX_ERROR_TEXT_BYTES), by_peer=False)
