"""What a connection tells its owner: events in the past tense, and the error of wrong use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from protocol.messages import ErrorCode, Hello, Message, Prove, Request


class LocalProtocolError(Exception):
    """The owner asked for something that the protocol forbids now: a defect on this side."""


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """The peer said hello; `version` and `features` are what both sides speak."""

    hello: Hello
    version: int
    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class ProofReceived:
    """The peer showed its proof: judge it, then call `admit` or `refuse`."""

    prove: Prove


@dataclass(frozen=True, slots=True)
class Admitted:
    """Both sides have welcomed each other."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """Any other message. For answers and refusals, `request` is what they answer."""

    message: Message
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """Nothing will follow. `by_peer` tells whether the peer ended it or this side did."""

    code: ErrorCode
    text: str
    by_peer: bool


Event: TypeAlias = HelloReceived | ProofReceived | Admitted | MessageReceived | ConnectionEnded
