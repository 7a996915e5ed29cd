"""Messages that carry a connection: hello, proof, welcome, errors, keeping it alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from protocol.canonical import Fields, pack, unpack
from protocol.frames import Buffer
from protocol.ids import FleetId, NodeId
from protocol.limits import (
    KIB,
    MAX_ERROR_TEXT_BYTES,
    MAX_FEATURE_BYTES,
    MAX_FEATURES,
    MAX_GRANTS_ROOT_BYTES,
    MAX_HEAD_BYTES,
    MAX_PROOF_BYTES,
    MAX_SERIAL,
    MAX_SOFTWARE_BYTES,
    MAX_TIME_S,
)
from protocol.messages.codes import ErrorCode
from protocol.messages.wire import (
    REQUEST,
    Codec,
    Message,
    blob,
    error_code,
    number,
    optional_digest,
    record,
    sentence,
    sequence,
    text,
)

MAGIC: Final = "archid"
NONCE_BYTES: Final = 32
SMALL: Final = 1 * KIB
"""Room for the fixed fields of any message."""


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Who is speaking and what it can; both sides send it at once, before anything else.

    The fields of version 1 keep their place in all later versions. `fleet` and `node` are None
    for a node that joins. `head_order` is (epoch, serial) of the newest Head held, (0, 0) for
    none. `nonce` is random, for this connection only. `now_s` is the sender's clock.
    """

    TYPE: ClassVar[int] = 1
    MAX_BYTES: ClassVar[int] = 8 * KIB
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "min_version": number(1, 65535),
        "max_version": number(1, 65535),
        "features": sequence(text(MAX_FEATURE_BYTES), MAX_FEATURES),
        "fleet": optional_digest(FleetId),
        "node": optional_digest(NodeId),
        "root_version": number(0, MAX_SERIAL),
        "head_order": record(epoch=number(0, MAX_SERIAL), serial=number(0, MAX_SERIAL)),
        "nonce": blob(NONCE_BYTES, min_bytes=NONCE_BYTES),
        "software": sentence(MAX_SOFTWARE_BYTES),
        "now_s": number(0, MAX_TIME_S),
    }

    min_version: int
    max_version: int
    features: tuple[str, ...]
    fleet: FleetId | None
    node: NodeId | None
    root_version: int
    head_order: tuple[int, int]
    nonce: bytes
    software: str
    now_s: int

    def encode_payload(self) -> tuple[Buffer, ...]:
        values = [codec.put(getattr(self, name)) for name, codec in self.WIRE.items()]
        return (pack([MAGIC, *values]),)

    @classmethod
    def decode_payload(cls, payload: Buffer) -> Self:
        fields = Fields(unpack(payload, max_bytes=cls.MAX_BYTES), "Hello")
        fields.constant("magic", MAGIC)
        return cls(**{name: codec.take(fields, name) for name, codec in cls.WIRE.items()})


@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """The last message of a side: why it ends the connection."""

    TYPE: ClassVar[int] = 2
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "code": error_code(),
        "text": sentence(MAX_ERROR_TEXT_BYTES),
    }

    code: ErrorCode
    text: str


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """The answer to a request that is not granted; ends that request."""

    TYPE: ClassVar[int] = 3
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "code": error_code(),
        "text": sentence(MAX_ERROR_TEXT_BYTES),
    }

    request: int
    code: ErrorCode
    text: str


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """The asker no longer needs an answer; the request still ends with one, or a refusal."""

    TYPE: ClassVar[int] = 4
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST}

    request: int


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Asks for a Pong with the same number."""

    TYPE: ClassVar[int] = 5
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"n": number()}

    n: int


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Answers a Ping."""

    TYPE: ClassVar[int] = 6
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"n": number()}

    n: int


_HEAD_AND_GRANTS: Final[Mapping[str, Codec]] = {
    "head": blob(MAX_HEAD_BYTES),
    "grants": blob(MAX_GRANTS_ROOT_BYTES),
}


@dataclass(frozen=True, slots=True)
class Prove(Message):
    """The sender's facts: its newest Head, the Grants root its proof is under, and the proof.

    All three are encoded envelopes or documents. `head` and `grants` may be empty when the
    other side's Hello shows that it holds them.
    """

    TYPE: ClassVar[int] = 10
    MAX_BYTES: ClassVar[int] = MAX_HEAD_BYTES + MAX_GRANTS_ROOT_BYTES + MAX_PROOF_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {**_HEAD_AND_GRANTS, "proof": blob(MAX_PROOF_BYTES)}

    head: bytes
    grants: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """I believe your proof."""

    TYPE: ClassVar[int] = 11
    MAX_BYTES: ClassVar[int] = SMALL


@dataclass(frozen=True, slots=True)
class HeadAnnounce(Message):
    """A newer Head, and the Grants root that it names first; sent to every admitted peer."""

    TYPE: ClassVar[int] = 12
    MAX_BYTES: ClassVar[int] = MAX_HEAD_BYTES + MAX_GRANTS_ROOT_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = _HEAD_AND_GRANTS

    head: bytes
    grants: bytes
