"""Messages of the feature `deltas`: pieces told by what they have in common with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from protocol.errors import FormatError
from protocol.features import DELTAS
from protocol.ids import ManifestId, PieceId
from protocol.limits import (
    KIB,
    MAX_DELTA_BASES,
    MAX_DELTA_RANGES,
    MAX_PIECE_BYTES,
    MAX_PIECES_ASKED,
)
from protocol.messages.session import SMALL
from protocol.messages.wire import (
    REQUEST,
    Answer,
    Codec,
    Request,
    blob,
    digest,
    number,
    record,
    sequence,
)

_RANGE_ROOM: Final = 16
"""More than the encoding of a range takes."""
_RANGE: Final = record(
    source=number(0, MAX_DELTA_BASES),
    offset=number(0, MAX_PIECE_BYTES - 1),
    length=number(1, MAX_PIECE_BYTES),
)


@dataclass(frozen=True, slots=True)
class PieceDelta(Answer):
    """One piece of a manifest: ranges of `data` (source 0) and of the bases (1 and on)."""

    TYPE: ClassVar[int] = 55
    MAX_BYTES: ClassVar[int] = MAX_PIECE_BYTES + _RANGE_ROOM * MAX_DELTA_RANGES + SMALL
    FEATURE: ClassVar[str] = DELTAS
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "piece": digest(PieceId),
        "ranges": sequence(_RANGE, MAX_DELTA_RANGES),
        "data": blob(MAX_PIECE_BYTES),
    }

    request: int
    piece: PieceId
    ranges: tuple[tuple[int, int, int], ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class GetPieceDeltas(Request):
    """As `GetPieces`; the asker has the pieces `bases`, and what comes may refer to them."""

    TYPE: ClassVar[int] = 54
    MAX_BYTES: ClassVar[int] = 4 * KIB
    FEATURE: ClassVar[str] = DELTAS
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "manifest": digest(ManifestId),
        "piece_ids": sequence(digest(PieceId), MAX_PIECES_ASKED),
        "bases": sequence(digest(PieceId), MAX_DELTA_BASES),
    }
    ANSWER = PieceDelta

    request: int
    manifest: ManifestId
    piece_ids: tuple[PieceId, ...]
    bases: tuple[PieceId, ...]

    def __post_init__(self) -> None:
        if not self.piece_ids:
            raise FormatError("GetPieceDeltas asks for no piece")

    @property
    def answer_count(self) -> int:
        return len(self.piece_ids)

    def accepts(self, answer: Answer, index: int) -> bool:
        return isinstance(answer, PieceDelta) and answer.piece == self.piece_ids[index]
