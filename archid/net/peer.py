"""A member of the fleet at the other end of a connection: asking it, answering it, telling it.

Answers go to who asked; the peer's requests and announcements go into bounded channels. Nothing
is decided here: the machine in `protocol.connection` says what is allowed, the doorkeeper who is
believed (`archid.net.admission`), and whoever holds the peer answers its requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final, TypeAlias

import trio

from archid.net.asking import Asking
from archid.net.lane import Lane, LaneAnswer, TakenSpan
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from archid.net.traffic import Meter, Traffic, gossip_bytes
from protocol.connection import Connection
from protocol.connection_events import (
    Admitted,
    ConnectionEnded,
    Event,
    HelloReceived,
    LocalProtocolError,
    MessageReceived,
    ProofReceived,
)
from protocol.connection_states import Side, State
from protocol.envelope import PublicKey
from protocol.errors import ProtocolError
from protocol.facts import NodeFacts
from protocol.ids import NodeId
from protocol.limits import MAX_OUTSTANDING_REQUESTS
from protocol.messages import (
    Answer,
    Cancel,
    ErrorCode,
    GetAny,
    GetSpan,
    Hello,
    Message,
    Picked,
    Pong,
    Refused,
    Request,
    SpanAnswer,
    WantLane,
)

LaneSendable: TypeAlias = "Picked | SpanAnswer | Refused"

_NOTICES: Final = 64
_STEPS: Final = 16


class Peer(Asking):
    """The other end of an admitted connection; made by `archid.net.admission.open_peer`.

    `requests` gives the peer's requests; each must be answered once, with `answer` or `refuse`.
    `notices` gives HeadAnnounce, HaveUpdate and PeerHints. Both must be read all the time: while
    notices are full nothing more is read from the peer. Both end when the connection does.
    """

    def __init__(
        self,
        stream: TLSStream,
        connection: Connection,
        settings: PeerSettings,
        *,
        key: PublicKey,
        since_s: float,
    ) -> None:
        super().__init__(stream, connection, settings)
        self.key = key
        self.since_s = since_s
        self.proof = b""
        """What it showed, as it came: to be judged again when the head changes."""
        self._facts: NodeFacts | None = None
        self._cancelled: set[int] = set()
        # The machine bounds the peer's open requests, so that these two never overflow.
        most = MAX_OUTSTANDING_REQUESTS
        self._requests_in, self.requests = trio.open_memory_channel[Request](most)
        self._early_in, self.early_requests = trio.open_memory_channel[Request](most)
        self._notices_in, self.notices = trio.open_memory_channel[Message](_NOTICES)
        self._steps_in, self.steps = trio.open_memory_channel[Event](_STEPS)
        self._span_bytes_sent = 0
        self._gossip_bytes_received = 0
        self._gossip_bytes_sent = 0
        self.lane: Lane | None = None
        """Where answers to requests for spans go through, once it stands."""
        self.lane_wanted = trio.Event()
        self._begun_in_tls: set[int] = set()
        self.content_out = Meter()

    # Who it is

    @property
    def facts(self) -> NodeFacts:
        """Who the peer is, as its proof showed."""
        if self._facts is None:
            raise RuntimeError("the peer has not proven anything yet")
        return self._facts

    @property
    def node(self) -> NodeId:
        return self.facts.node

    @property
    def hello(self) -> Hello:
        """What the peer said first."""
        if self.connection.peer_hello is None:
            raise RuntimeError("the peer has not said hello yet")
        return self.connection.peer_hello

    @property
    def features(self) -> frozenset[str]:
        """What both ends can do beyond the protocol's version."""
        return self.connection.features

    @property
    def dialled(self) -> bool:
        """Whether this node made the connection."""
        return self.connection.side is Side.CLIENT

    @property
    def received_bytes(self) -> int:
        by_lane = self.lane.wire_bytes_received if self.lane else 0
        return super().received_bytes + by_lane

    @property
    def traffic(self) -> Traffic:
        by_lane = self.lane.wire_bytes_sent if self.lane else 0
        return Traffic(
            self.received_bytes,
            self.stream.wire_bytes_sent + by_lane,
            self._span_bytes_received + self.connection.late_span_bytes,
            self._span_bytes_sent,
            self._gossip_bytes_received,
            self._gossip_bytes_sent,
        )

    def __repr__(self) -> str:
        who = self._facts.name if self._facts else "unproven"
        return f"<Peer {who} at {self.remote}>"

    # Answering and telling

    async def answer(self, message: Answer | Refused) -> None:
        """Answer one of the peer's requests; waits while too much is queued. Raises PeerLost.

        An answer to a request that the peer has cancelled is not sent.
        """
        if self._goes_by_lane(message) and self.lane is not None:
            await self.lane.send(lambda: self._counted_for_lane(message))
            return
        if isinstance(message, SpanAnswer):
            await self.outbox.wait_for_bulk_room()
        else:
            await self.outbox.wait_for_room()
        self.count_sent(message)
        self.push(message)

    def count_sent(self, message: Answer | Refused) -> None:
        """An answer goes out; `answer` counts what it sends itself."""
        cancelled = message.request in self._cancelled
        if not isinstance(message, Picked):  # its span is not read yet, and need not be
            self._cancelled.discard(message.request)
        if isinstance(message, SpanAnswer) and not cancelled:
            self._span_bytes_sent += len(message.data)
            self.content_out.count(len(message.data), now=trio.current_time())

    # Lanes

    def want_lane(self) -> None:
        """Much is to come from this peer: a lane would be of use. See `archid.net.lane_desk`."""
        self.lane_wanted.set()

    def use_lane(self, lane: Lane) -> bool:
        """Answer through it from now on; False when the connection has ended meanwhile."""
        if self.closed.is_set() or self.lane is not None:
            return False
        self.lane = lane
        return True

    def lane_broke(self, error: ProtocolError) -> None:
        """What came through the lane was not from this peer, or not what a lane carries."""
        self._take_lane_events(self.connection.lane_broke(error))

    def take_from_lane(self, answer: LaneAnswer) -> None:
        """An answer has come through the lane; the bytes of a span were taken already."""
        if self.closed.is_set():
            return
        plain: Picked | SpanAnswer | Refused = answer
        size_bytes = 0
        if isinstance(answer, TakenSpan):
            plain = SpanAnswer(answer.request, answer.piece, answer.n, answer.data)
            size_bytes = answer.size_bytes
        events = self.connection.receive_by_lane(plain, size_bytes=size_bytes)
        if any(isinstance(event, MessageReceived) for event in events):
            self.take_answer(answer)
        self._take_lane_events(events)

    def _take_lane_events(self, events: Iterable[Event]) -> None:
        self.flush()
        for event in events:
            if isinstance(event, ConnectionEnded):
                self.end(self._why(event))
        self.free_slot()

    def _goes_by_lane(self, message: Answer | Refused) -> bool:
        """All parts of an answer go the same way: whichever was open when it began."""
        request = self.connection.request_to_answer(message.request)
        if not isinstance(request, GetSpan | GetAny):
            return False
        number = message.request
        by_lane = self.lane is not None and number not in self._begun_in_tls
        if by_lane or not isinstance(message, Picked):
            self._begun_in_tls.discard(number)
        else:
            self._begun_in_tls.add(number)
        return by_lane

    def _counted_for_lane(self, message: Answer | Refused) -> LaneSendable | None:
        if self.connection.state is State.CLOSED or self.closed.is_set():
            raise self.gone()
        if not isinstance(message, Picked | SpanAnswer | Refused):
            raise TypeError(f"{type(message).__name__} does not go through a lane")
        self.count_sent(message)
        return self.connection.send_by_lane(message)

    def begins_by_lane(self, request: Request) -> bool:
        """Whether the answer to a request for a span, none of which has been sent, may go there."""
        return self.lane is not None and request.request not in self._begun_in_tls

    def answers_for_lane(self, parts: Iterable[LaneSendable]) -> list[LaneSendable]:
        """What to send through the lane for these parts of an answer, were they cancelled or not.

        For a worker thread that has the lane's turn; the event loop does `count_sent` afterwards.
        Raises PeerLost.
        """
        try:
            instead = [self.connection.send_by_lane(part) for part in parts]
        except LocalProtocolError:
            if self.connection.state is not State.CLOSED and not self.closed.is_set():
                raise
            raise self.gone() from None  # it has ended meanwhile
        return [part for part in instead if part is not None]

    async def until_gone(self) -> None:
        """Return when nearly all that is queued is on its way, or nothing will be sent any more.

        Raises PeerLost.
        """
        await self.outbox.wait_until_below(1)
        if self.lane is not None:
            await self.lane.until_gone()

    async def refuse(self, request: Request, code: ErrorCode, text: str) -> None:
        """Answer a request with no. Raises PeerLost."""
        await self.answer(Refused(request.request, code, text))

    def still_wants(self, request: Request) -> bool:
        """Whether the peer has not cancelled it; if it has, any refusal will do."""
        return request.request not in self._cancelled

    async def announce(self, message: Message) -> None:
        """Send a message that has no answer; waits while too much is queued. Raises PeerLost."""
        await self.outbox.wait_for_room()
        self.push(message)
        self._gossip_bytes_sent += gossip_bytes(message)

    # For archid.net.admission

    def admit(self, facts: NodeFacts, proof: bytes) -> None:
        """Tell the peer that it is believed, by this proof. Raises PeerLost."""
        if self.connection.state is State.CLOSED:
            raise self.gone()
        self._facts, self.proof = facts, proof
        events = self.connection.admit()
        self.flush()
        for event in events:
            self._step(event)

    def _step(self, event: Event) -> None:
        if isinstance(event, Admitted):
            self._trusted = True
            self._early_in.close()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._steps_in.send_nowait(event)

    # What comes in

    async def handle(self, event: Event) -> None:
        if isinstance(event, MessageReceived):
            await self._receive(event.message, event.request)
        elif isinstance(event, HelloReceived | ProofReceived | Admitted):
            self._step(event)
        self.free_slot()

    async def _receive(self, message: Message, request: Request | None) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if isinstance(message, Answer | Refused):
                if request is not None:
                    self.take_answer(message)
            elif isinstance(message, Request):
                early = self.connection.state is not State.ADMITTED
                (self._early_in if early else self._requests_in).send_nowait(message)
            elif isinstance(message, WantLane):
                self.want_lane()
            elif isinstance(message, Cancel):
                self._cancelled.add(message.request)
            elif not isinstance(message, Pong):
                self._gossip_bytes_received += gossip_bytes(message)
                await self._notices_in.send(message)

    def on_end(self) -> None:
        super().on_end()
        if self.lane is not None:
            self.lane.end()
        for channel in (self._requests_in, self._early_in):
            channel.close()
        self._notices_in.close()
        self._steps_in.close()
