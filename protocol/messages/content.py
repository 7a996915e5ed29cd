"""Messages that move content: entitlement, manifests, pieces, have-maps, spans, hints."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Self

from protocol.canonical import Fields
from protocol.errors import FormatError, LimitExceeded
from protocol.frames import Buffer
from protocol.ids import DIGEST_BYTES, ManifestId, NodeId, PieceId
from protocol.limits import (
    KIB,
    MAX_ADDRESS_BYTES,
    MAX_ADDRESSES,
    MAX_CHUNK_BYTES,
    MAX_HAVE_BITMAP_BYTES,
    MAX_HINTS,
    MAX_MANIFEST_BYTES,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    MAX_PIECES_ASKED,
    MAX_PROOF_BYTES,
    MAX_ROLE_NAME_BYTES,
    MAX_SIGNATURES_BYTES,
    MAX_SPAN_CHUNKS,
    MIB,
    SPAN_TARGET_BYTES,
)
from protocol.messages.session import SMALL
from protocol.messages.wire import (
    FLAG,
    MAX_NUMBER,
    REQUEST,
    Answer,
    Codec,
    Message,
    Request,
    blob,
    digest,
    number,
    record,
    sequence,
    text,
)

SPAN_NUMBER: Final = number(0, 65535)
MAX_PUBLICATION_BYTES: Final = MAX_MANIFEST_BYTES + MAX_SIGNATURES_BYTES
"""A manifest's root in its envelope."""


@dataclass(frozen=True, slots=True)
class Entitled(Answer):
    """The manifest may be read on this connection until a newer Head says otherwise."""

    TYPE: ClassVar[int] = 33
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST}

    request: int


@dataclass(frozen=True, slots=True)
class Entitle(Request):
    """Shows one entry of the sender's leaf, with the path: what it may read, and why.

    `proof` is empty when the facts that the sender proved already entitle it to everything.
    """

    TYPE: ClassVar[int] = 32
    MAX_BYTES: ClassVar[int] = MAX_PROOF_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "manifest": digest(ManifestId),
        "proof": blob(MAX_PROOF_BYTES),
    }
    ANSWER = Entitled

    request: int
    manifest: ManifestId
    proof: bytes


@dataclass(frozen=True, slots=True)
class ManifestAnswer(Answer):
    """A manifest's root in its envelope."""

    TYPE: ClassVar[int] = 35
    MAX_BYTES: ClassVar[int] = MAX_PUBLICATION_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "envelope": blob(MAX_PUBLICATION_BYTES),
    }

    request: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class GetManifest(Request):
    """Asks for the root of a manifest."""

    TYPE: ClassVar[int] = 34
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "manifest": digest(ManifestId)}
    ANSWER = ManifestAnswer

    request: int
    manifest: ManifestId


@dataclass(frozen=True, slots=True)
class PieceAnswer(Answer):
    """One piece of a manifest."""

    TYPE: ClassVar[int] = 37
    MAX_BYTES: ClassVar[int] = MAX_PIECE_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "piece": digest(PieceId),
        "data": blob(MAX_PIECE_BYTES),
    }

    request: int
    piece: PieceId
    data: bytes


@dataclass(frozen=True, slots=True)
class GetPieces(Request):
    """Asks for pieces of a manifest; they come one message each, in the order asked."""

    TYPE: ClassVar[int] = 36
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "manifest": digest(ManifestId),
        "piece_ids": sequence(digest(PieceId), MAX_PIECES_ASKED),
    }
    ANSWER = PieceAnswer

    request: int
    manifest: ManifestId
    piece_ids: tuple[PieceId, ...]

    def __post_init__(self) -> None:
        if not self.piece_ids:
            raise FormatError("GetPieces asks for no piece")

    @property
    def answer_count(self) -> int:
        return len(self.piece_ids)

    def accepts(self, answer: Answer, index: int) -> bool:
        return isinstance(answer, PieceAnswer) and answer.piece == self.piece_ids[index]


class PieceBitmap(NamedTuple):
    """Which spans of one piece are held: bit n is `bitmap[n // 8] >> (n % 8) & 1`."""

    piece_index: int
    bitmap: bytes


@dataclass(frozen=True, slots=True)
class HaveAnswer(Answer):
    """Which spans are held: all (`complete`, no bitmaps), or the set bits of some pieces."""

    TYPE: ClassVar[int] = 39
    MAX_BYTES: ClassVar[int] = 1 * MIB
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "complete": FLAG,
        "bitmaps": sequence(
            record(piece_index=number(0, MAX_PIECES - 1), bitmap=blob(MAX_HAVE_BITMAP_BYTES)),
            MAX_PIECES,
        ),
    }

    request: int
    complete: bool
    bitmaps: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class GetHave(Request):
    """Asks which spans of a manifest are held."""

    TYPE: ClassVar[int] = 38
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "manifest": digest(ManifestId)}
    ANSWER = HaveAnswer

    request: int
    manifest: ManifestId


SPAN_HEADER: Final = struct.Struct(f">Q{DIGEST_BYTES}sI")
MAX_SPAN_BYTES: Final = SPAN_TARGET_BYTES + MAX_CHUNK_BYTES
"""A span is closed by the chunk that brings it to the target."""


@dataclass(frozen=True, slots=True)
class SpanAnswer(Answer):
    """The wanted chunks of a span, one after the other.

    Not an array like other messages: a fixed header (request u64, piece 32 bytes, n u32, all big
    endian) and then the bytes, so that nothing is copied. `data` is a view of what was received.
    """

    TYPE: ClassVar[int] = 41
    MAX_BYTES: ClassVar[int] = SPAN_HEADER.size + MAX_SPAN_BYTES

    request: int
    piece: PieceId
    n: int
    data: Buffer

    def encode_payload(self) -> tuple[Buffer, ...]:
        try:
            return (SPAN_HEADER.pack(self.request, self.piece, self.n), self.data)
        except struct.error as error:
            raise LimitExceeded(f"SpanAnswer: {error}") from error

    @classmethod
    def decode_payload(cls, payload: Buffer) -> Self:
        if len(payload) < SPAN_HEADER.size:
            raise FormatError("SpanAnswer is shorter than its header")
        if len(payload) > cls.MAX_BYTES:
            raise LimitExceeded(f"SpanAnswer of {len(payload)} bytes")
        request, piece, n = SPAN_HEADER.unpack_from(payload)
        if not 1 <= request <= MAX_NUMBER or n > 65535:
            raise LimitExceeded("SpanAnswer: request or span number is out of range")
        return cls(request, PieceId(piece), n, memoryview(payload)[SPAN_HEADER.size :])


@dataclass(frozen=True, slots=True)
class GetSpan(Request):
    """Asks for one span, without the chunks whose bits are set in `skip`.

    `skip` is empty or has one bit a chunk of the span, bit i being `skip[i // 8] >> (i % 8) & 1`;
    bits that are missing read as 0.
    """

    TYPE: ClassVar[int] = 40
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "manifest": digest(ManifestId),
        "piece": digest(PieceId),
        "n": SPAN_NUMBER,
        "skip": blob(MAX_SPAN_CHUNKS // 8),
    }
    ANSWER = SpanAnswer

    request: int
    manifest: ManifestId
    piece: PieceId
    n: int
    skip: bytes

    def accepts(self, answer: Answer, index: int) -> bool:  # noqa: ARG002 - one answer
        return isinstance(answer, SpanAnswer) and (answer.piece, answer.n) == (self.piece, self.n)


@dataclass(frozen=True, slots=True)
class HaveUpdate(Message):
    """The sender now holds this span too."""

    TYPE: ClassVar[int] = 42
    MAX_BYTES: ClassVar[int] = SMALL
    OPTIONAL: ClassVar[bool] = True
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "manifest": digest(ManifestId),
        "piece": digest(PieceId),
        "n": SPAN_NUMBER,
    }

    manifest: ManifestId
    piece: PieceId
    n: int


class PeerHint(NamedTuple):
    """A node that may be worth dialling, and where."""

    node: NodeId
    role: str
    addresses: tuple[str, ...]


def _hint_codec() -> Codec:
    plain = record(
        node=digest(NodeId),
        role=text(MAX_ROLE_NAME_BYTES),
        addresses=sequence(text(MAX_ADDRESS_BYTES), MAX_ADDRESSES),
    )

    def take(fields: Fields, name: str) -> PeerHint:
        return PeerHint(*plain.take(fields, name))

    return Codec(plain.text, plain.put, take)


@dataclass(frozen=True, slots=True)
class PeerHints(Message):
    """Other nodes and their addresses, from central or a REPO. Hints prove nothing."""

    TYPE: ClassVar[int] = 43
    MAX_BYTES: ClassVar[int] = 256 * KIB
    OPTIONAL: ClassVar[bool] = True
    WIRE: ClassVar[Mapping[str, Codec]] = {"hints": sequence(_hint_codec(), MAX_HINTS)}

    hints: tuple[PeerHint, ...]
