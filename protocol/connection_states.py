"""The tables of a connection: its states, what moves it between them, what each allows.

`protocol.connection` acts on them and SPEC.md's diagram and lists are made from them.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from protocol.limits import KIB
from protocol.messages import (
    CONTENT,
    DELTAS,
    DOCUMENTS,
    GOSSIP,
    HOLDERS,
    SWARM,
    Cancel,
    GetGrants,
    GetLeaf,
    GetRoot,
    Goodbye,
    GrantsAnswer,
    HeadAnnounce,
    Hello,
    JoinAccepted,
    JoinBegin,
    JoinOffer,
    JoinReady,
    JoinRequest,
    LaneOffered,
    LeafAnswer,
    Message,
    OpenLane,
    Ping,
    Pong,
    Prove,
    Refused,
    RootDocument,
    WantLane,
    Welcome,
)


class Side(Enum):
    """Who dialled."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class State(Enum):
    """Where a connection is; both sides are in the same state but for what is on its way."""

    HELLO = "our Hello is sent, the peer's is awaited"
    PROVING = "each side shows its facts and judges the other's"
    ADMITTED = "each has welcomed the other: everything else"
    JOINING = "the client has no certificate: JOIN and the exchange of Roots only"
    CLOSED = "nothing is sent or received any more"


class Trigger(Enum):
    """What moves a connection to another state."""

    HELLO_RECEIVED = "the peer's Hello, which fits ours"
    JOIN_HELLO_RECEIVED = "the peer's Hello, where the client showed no certificate"
    BOTH_WELCOMED = "a Welcome has gone each way"
    ENDED = "Goodbye either way, a broken rule, or the end of the stream"


TRANSITIONS: Final[dict[tuple[State, Trigger], State]] = {
    (State.HELLO, Trigger.HELLO_RECEIVED): State.PROVING,
    (State.HELLO, Trigger.JOIN_HELLO_RECEIVED): State.JOINING,
    (State.HELLO, Trigger.ENDED): State.CLOSED,
    (State.PROVING, Trigger.BOTH_WELCOMED): State.ADMITTED,
    (State.PROVING, Trigger.ENDED): State.CLOSED,
    (State.ADMITTED, Trigger.ENDED): State.CLOSED,
    (State.JOINING, Trigger.ENDED): State.CLOSED,
}

_ALWAYS: Final[frozenset[type[Message]]] = frozenset({Goodbye, Ping, Pong})
_CONTENT: Final[frozenset[type[Message]]] = frozenset(
    {*DOCUMENTS, *CONTENT, *SWARM, *GOSSIP, *HOLDERS, *DELTAS}
)
_LANES: Final[frozenset[type[Message]]] = frozenset({WantLane, OpenLane, LaneOffered})
_ROOTS: Final[frozenset[type[Message]]] = frozenset({GetRoot, RootDocument, Refused, Cancel})

ALLOWED: Final[dict[State, frozenset[type[Message]]]] = {
    State.HELLO: frozenset({Hello, Goodbye}),
    State.PROVING: _ALWAYS
    | _ROOTS
    | {Prove, Welcome, GetGrants, GrantsAnswer, GetLeaf, LeafAnswer},
    State.ADMITTED: _ALWAYS | {Refused, Cancel, HeadAnnounce} | _CONTENT | _LANES,
    State.JOINING: _ALWAYS | _ROOTS | {JoinBegin, JoinOffer, JoinRequest, JoinAccepted, JoinReady},
    State.CLOSED: frozenset(),
}
"""What may be sent and received in each state, by either side."""

CROSSING: Final[dict[State, frozenset[type[Message]]]] = {
    State.ADMITTED: frozenset({Prove}),
}
"""What may still arrive, sent before its sender knew of the new state; it is ignored."""

ONE_WAY: Final[dict[type[Message], Side]] = {
    WantLane: Side.SERVER,
    OpenLane: Side.CLIENT,
    LaneOffered: Side.SERVER,
}
"""Messages that only one side sends: only who dialled can dial once more."""

JOIN_ORDER: Final[tuple[tuple[Side, type[Message]], ...]] = (
    (Side.CLIENT, JoinBegin),
    (Side.SERVER, JoinOffer),
    (Side.CLIENT, JoinRequest),
    (Side.SERVER, JoinAccepted),
    (Side.CLIENT, JoinReady),
)
"""Who sends which JOIN message, one after the other."""

UNPROVEN_LIMITS: Final[dict[type[Message], int]] = {
    LeafAnswer: 256 * KIB,
}
"""Smaller payload limits that hold before a connection is ADMITTED."""
