"""Messages of the feature `swarm`: a request that leaves the choice of the span to the server.

Whoever holds everything knows best what it has sent to nobody yet. The server says what it has
picked before the bytes come, so that the asker can tell other servers, which might pick the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from protocol.errors import FormatError
from protocol.features import SWARM
from protocol.ids import ManifestId
from protocol.limits import KIB, MAX_ANY_PIECES, MAX_HAVE_BITMAP_BYTES, MAX_PIECES
from protocol.messages.content import SPAN_NUMBER, SpanAnswer
from protocol.messages.session import SMALL
from protocol.messages.wire import (
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
)

PIECE_INDEX = number(0, MAX_PIECES - 1)


@dataclass(frozen=True, slots=True)
class Picked(Answer):
    """The span that the server has picked; its bytes follow, or a refusal."""

    TYPE: ClassVar[int] = 45
    MAX_BYTES: ClassVar[int] = SMALL
    FEATURE: ClassVar[str] = SWARM
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "piece_index": PIECE_INDEX,
        "n": SPAN_NUMBER,
    }

    request: int
    piece_index: int
    n: int


@dataclass(frozen=True, slots=True)
class GetAny(Request):
    """Asks for one span out of many, whichever the server picks, with the chunks of its own.

    `wanted` are the spans to pick from, as the bitmaps of `HaveAnswer`, in ascending order of the
    pieces. The chunks of a span's own are those that occur in it first within the manifest.
    """

    TYPE: ClassVar[int] = 44
    MAX_BYTES: ClassVar[int] = 8 * KIB
    FEATURE: ClassVar[str] = SWARM
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "manifest": digest(ManifestId),
        "wanted": sequence(
            record(piece_index=PIECE_INDEX, bitmap=blob(MAX_HAVE_BITMAP_BYTES)), MAX_ANY_PIECES
        ),
    }
    ANSWER = Picked

    request: int
    manifest: ManifestId
    wanted: tuple[tuple[int, bytes], ...]

    def __post_init__(self) -> None:
        pieces = [piece_index for piece_index, _ in self.wanted]
        if pieces != sorted(set(pieces)):
            raise FormatError("GetAny: its pieces are not in ascending order")
        if not pieces or not all(any(bitmap) for _, bitmap in self.wanted):
            raise FormatError("GetAny asks for no span of a piece that it names")

    @classmethod
    def answer_kinds(cls) -> tuple[type[Answer], ...]:
        return (Picked, SpanAnswer)

    @property
    def answer_count(self) -> int:
        return 2

    def accepts(self, answer: Answer, index: int) -> bool:  # noqa: ARG002 - the kind tells
        if not isinstance(answer, Picked):
            return True
        bitmap = dict(self.wanted).get(answer.piece_index, b"")
        return answer.n // 8 < len(bitmap) and bool(bitmap[answer.n // 8] >> answer.n % 8 & 1)

    def follows(self, answer: Answer, before: Answer) -> bool:
        return (
            isinstance(answer, SpanAnswer) and isinstance(before, Picked) and answer.n == before.n
        )


@dataclass(frozen=True, slots=True)
class Unwant(Message):
    """A span has been picked or has come elsewhere: it is not to be picked any more.

    It concerns the sender's `GetAny` requests for this manifest that have numbers up to `up_to`.
    """

    TYPE: ClassVar[int] = 46
    MAX_BYTES: ClassVar[int] = SMALL
    FEATURE: ClassVar[str] = SWARM
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "up_to": REQUEST,
        "manifest": digest(ManifestId),
        "piece_index": PIECE_INDEX,
        "n": SPAN_NUMBER,
    }

    up_to: int
    manifest: ManifestId
    piece_index: int
    n: int
