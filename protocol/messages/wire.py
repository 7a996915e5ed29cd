"""How the fields of messages are written and checked: small codecs, and the base of messages.

Every message is a frozen dataclass with a table, `WIRE`, that says for each of its fields, in
order, which codec writes and reads it. The table drives encoding and decoding and is what
SPEC.md's field lists are made from, so the three cannot disagree. Fields that a newer version
added at the end are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from protocol.canonical import Fields, Value, pack, unpack
from protocol.errors import FormatError, LimitExceeded
from protocol.frames import FLAG_OPTIONAL, Buffer, Frame, encode_frame
from protocol.ids import DIGEST_BYTES, Digest
from protocol.messages.codes import ErrorCode

MAX_NUMBER: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Codec:
    """One field's way onto the wire: `put` checks and converts, `take` reads and checks."""

    text: str
    put: Callable[[Any], Value]
    take: Callable[[Fields, str], Any]


def number(low: int = 0, high: int = MAX_NUMBER) -> Codec:
    """An integer from `low` to `high`."""

    def put(value: int) -> Value:
        if not low <= value <= high:
            raise LimitExceeded(f"{value} is outside {low} to {high}")
        return value

    text = "integer" if high == MAX_NUMBER else f"integer {low} to {high}"
    return Codec(text, put, lambda fields, name: fields.integer(name, low=low, high=high))


def text(max_bytes: int) -> Codec:
    """UTF-8 text."""

    def put(value: str) -> Value:
        if len(value.encode()) > max_bytes:
            raise LimitExceeded(f"text longer than {max_bytes} bytes")
        return value

    return Codec(
        f"text <= {max_bytes} bytes",
        put,
        lambda fields, name: fields.text(name, max_bytes=max_bytes),
    )


def printable(value: str, max_bytes: int) -> str:
    """`value` cut to `max_bytes` with everything unprintable replaced: safe to log and show."""
    clean = "".join(c if c.isprintable() else "?" for c in value)
    return clean.encode()[:max_bytes].decode(errors="ignore")


def sentence(max_bytes: int) -> Codec:
    """Text for people. It is cut and made printable on both sides: never worth a refusal."""
    return Codec(
        f"text <= {max_bytes} bytes, printable",
        lambda value: printable(value, max_bytes),
        lambda fields, name: printable(fields.text(name, max_bytes=max_bytes), max_bytes),
    )


def blob(max_bytes: int, *, min_bytes: int = 0) -> Codec:
    """A byte string."""

    def check(value: bytes) -> bytes:
        if not min_bytes <= len(value) <= max_bytes:
            raise LimitExceeded(f"{len(value)} bytes where {min_bytes} to {max_bytes} are allowed")
        return value

    exact = min_bytes == max_bytes
    return Codec(
        f"{max_bytes} bytes" if exact else f"bytes <= {max_bytes}",
        check,
        lambda fields, name: check(fields.binary(name, max_bytes=max_bytes)),
    )


def digest(kind: type[Digest]) -> Codec:
    """An identity of 32 bytes."""
    return Codec(
        kind.__name__, bytes, lambda fields, name: kind(fields.binary(name, max_bytes=DIGEST_BYTES))
    )


def optional_digest(kind: type[Digest]) -> Codec:
    """An identity, or no bytes at all for None."""

    def take(fields: Fields, name: str) -> Digest | None:
        raw = fields.binary(name, max_bytes=DIGEST_BYTES)
        return kind(raw) if raw else None

    return Codec(f"{kind.__name__} or empty", lambda value: bytes(value or b""), take)


def _take_flag(fields: Fields, name: str) -> bool:
    return fields.boolean(name)


FLAG: Final = Codec("boolean", bool, _take_flag)


def error_code() -> Codec:
    """An error code; numbers of newer versions read as OTHER."""
    return Codec(
        "ErrorCode", int, lambda fields, name: ErrorCode.of(fields.integer(name, high=65535))
    )


def sequence(item: Codec, max_items: int) -> Codec:
    """A tuple of items."""

    def put(value: tuple[Any, ...]) -> Value:
        if len(value) > max_items:
            raise LimitExceeded(f"{len(value)} items where at most {max_items} are allowed")
        return [item.put(each) for each in value]

    def take(fields: Fields, name: str) -> tuple[Any, ...]:
        items = fields.array(name, max_items=max_items)
        each = Fields(items, name)
        return tuple(item.take(each, name) for _ in items)

    return Codec(f"array <= {max_items} of {item.text}", put, take)


def record(**parts: Codec) -> Codec:
    """A tuple of named parts, as an array that may grow at its end."""

    def put(value: tuple[Any, ...]) -> Value:
        return [part.put(each) for part, each in zip(parts.values(), value, strict=True)]

    def take(fields: Fields, name: str) -> tuple[Any, ...]:
        inner = Fields(fields.array(name, max_items=len(parts) + 16), name)
        return tuple(part.take(inner, key) for key, part in parts.items())

    listing = ", ".join(f"{key}: {part.text}" for key, part in parts.items())
    return Codec(f"[{listing}]", put, take)


class Message:
    """What all messages share. Subclasses are frozen dataclasses whose fields `WIRE` names."""

    __slots__ = ()

    TYPE: ClassVar[int]
    MAX_BYTES: ClassVar[int]
    """The largest payload that is accepted."""
    OPTIONAL: ClassVar[bool] = False
    """Sent with the flag that lets a node which does not know the type skip it."""
    FEATURE: ClassVar[str] = ""
    """The feature that has to be in force on a connection for this to be sent; see `features`."""
    WIRE: ClassVar[Mapping[str, Codec]] = {}

    def encode_payload(self) -> tuple[Buffer, ...]:
        """The payload in parts. Raises FormatError or LimitExceeded for unfit values."""
        return (pack([codec.put(getattr(self, name)) for name, codec in self.WIRE.items()]),)

    @classmethod
    def decode_payload(cls, payload: Buffer) -> Self:
        """Raises FormatError or LimitExceeded."""
        value = unpack(payload, max_bytes=cls.MAX_BYTES)
        fields = Fields(value, cls.__name__)
        return cls(**{name: codec.take(fields, name) for name, codec in cls.WIRE.items()})

    def encode(self) -> list[Buffer]:
        """The whole frame in parts that are not joined. Raises FormatError or LimitExceeded."""
        parts = self.encode_payload()
        length = sum(len(part) for part in parts)
        if length > self.MAX_BYTES:
            raise LimitExceeded(
                f"{type(self).__name__} of {length} bytes where {self.MAX_BYTES} are allowed"
            )
        return encode_frame(self.TYPE, *parts, flags=FLAG_OPTIONAL if self.OPTIONAL else 0)

    @classmethod
    def decode(cls, frame: Frame) -> Self:
        """The message in a frame of this type. Raises FormatError or LimitExceeded."""
        if frame.type != cls.TYPE:
            raise FormatError(f"a frame of type {frame.type} is not {cls.__name__}")
        return cls.decode_payload(frame.payload)


class Request(Message):
    """A message with a number of its own that gets exactly one answer or one refusal."""

    __slots__ = ()

    request: int
    ANSWER: ClassVar[type[Answer]]

    @property
    def answer_count(self) -> int:
        """How many messages the full answer has."""
        return 1

    @classmethod
    def answer_kinds(cls) -> tuple[type[Answer], ...]:
        """What the messages of the answer are, one after the other; the last kind may repeat."""
        return (cls.ANSWER,)

    def follows(self, answer: Answer, before: Answer) -> bool:  # noqa: ARG002 - for subclasses
        """Whether `answer` may come after `before`, which is of another kind."""
        return True

    def accepts(self, answer: Answer, index: int) -> bool:  # noqa: ARG002 - for subclasses
        """Whether `answer` may be number `index` of the answer, looking at what it names."""
        return True


class Answer(Message):
    """A message that answers the request of the same number."""

    __slots__ = ()

    request: int


REQUEST: Final = number(1)
"""The number of a request: drawn by the asking side, growing."""
