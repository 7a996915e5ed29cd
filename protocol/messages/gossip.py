"""Messages by which node states and heads spread.

States are judged by `protocol.state`; heads themselves travel in `HeadAnnounce`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from protocol.canonical import Fields
from protocol.features import HEADS
from protocol.ids import NodeId
from protocol.limits import (
    KIB,
    MAX_DIGEST_ROWS,
    MAX_PROOF_BYTES,
    MAX_SERIAL,
    MAX_SIGNATURES_BYTES,
    MAX_STATE_BYTES,
    MAX_STATES_SENT,
)
from protocol.messages.session import SMALL
from protocol.messages.wire import FLAG, Codec, Message, blob, digest, number, record, sequence

MAX_STATE_ENVELOPE_BYTES = MAX_STATE_BYTES + MAX_SIGNATURES_BYTES


class SentState(NamedTuple):
    """A NodeState in its envelope, and the proof of the facts of the node that signed it."""

    envelope: bytes
    proof: bytes


class StateRow(NamedTuple):
    """The newest state of a node that the sender has."""

    node: NodeId
    incarnation: int
    seq: int


def _sent_state() -> Codec:
    plain = record(envelope=blob(MAX_STATE_ENVELOPE_BYTES), proof=blob(MAX_PROOF_BYTES))

    def take(fields: Fields, name: str) -> SentState:
        return SentState(*plain.take(fields, name))

    return Codec(plain.text, plain.put, take)


def _state_row() -> Codec:
    plain = record(
        node=digest(NodeId), incarnation=number(0, MAX_SERIAL), seq=number(0, MAX_SERIAL)
    )

    def take(fields: Fields, name: str) -> StateRow:
        return StateRow(*plain.take(fields, name))

    return Codec(plain.text, plain.put, take)


@dataclass(frozen=True, slots=True)
class States(Message):
    """What nodes say of themselves, each signed by its own node."""

    TYPE: ClassVar[int] = 48
    MAX_BYTES: ClassVar[int] = (
        MAX_STATES_SENT * (MAX_STATE_ENVELOPE_BYTES + MAX_PROOF_BYTES + 64) + SMALL
    )
    OPTIONAL: ClassVar[bool] = True
    WIRE: ClassVar[Mapping[str, Codec]] = {"states": sequence(_sent_state(), MAX_STATES_SENT)}
    states: tuple[SentState, ...]


@dataclass(frozen=True, slots=True)
class StateDigest(Message):
    """Which states the sender has of those that the receiver may have, in order of node ids.

    With `answer` the receiver sends a digest of its own back.
    """

    TYPE: ClassVar[int] = 49
    MAX_BYTES: ClassVar[int] = 64 * KIB
    OPTIONAL: ClassVar[bool] = True
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "rows": sequence(_state_row(), MAX_DIGEST_ROWS),
        "answer": FLAG,
    }
    rows: tuple[StateRow, ...]
    answer: bool


@dataclass(frozen=True, slots=True)
class HeadDigest(Message):
    """The order of the newest Head that the sender has; who has a newer one announces it."""

    TYPE: ClassVar[int] = 50
    MAX_BYTES: ClassVar[int] = SMALL
    FEATURE: ClassVar[str] = HEADS
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "head_order": record(epoch=number(0, MAX_SERIAL), serial=number(0, MAX_SERIAL)),
    }
    head_order: tuple[int, int]
