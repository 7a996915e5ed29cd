"""The pieces of a manifest: runs of entries and chunks, small enough to fetch one by one.

A piece is the array ``["piece", 1, records, chunk table]``. The table has one row of 36 bytes a
chunk, its id and its length; the records say, in path order, which entries the rows belong to.
A file may start in one piece and go on in the next, and no piece says where in the tree it
stands, so that an unchanged run of a changed tree stays the same piece. Where pieces are cut is
the builder's affair; what a whole tree must satisfy is `protocol.layout`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from protocol.canonical import Fields, Value, open_document, pack
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import DIGEST_BYTES, ChunkId, PieceId
from protocol.limits import (
    MAX_CHUNK_BYTES,
    MAX_FILE_BYTES,
    MAX_PATH_BYTES,
    MAX_PIECE_BYTES,
    MAX_SPAN_CHUNKS,
    SPAN_TARGET_BYTES,
)

PIECE_TYPE: Final = "piece"
CHUNK_ROW_BYTES: Final = DIGEST_BYTES + 4
MAX_PIECE_CHUNKS: Final = MAX_PIECE_BYTES // CHUNK_ROW_BYTES
MAX_MTIME_NS: Final = 2**63 - 1

_SURELY_FITS: Final = MAX_PATH_BYTES // 4
"""A path of so many characters is no longer than MAX_PATH_BYTES, whatever they are."""

FOLDER, LINK, FILE_START, FILE_CONTINUATION = range(4)
_ROW: Final = struct.Struct(f">{DIGEST_BYTES}sI")
_ROW_LENGTH: Final = struct.Struct(f">{DIGEST_BYTES}xI")
_ROW_SELECTOR: Final = struct.Struct(f">I{DIGEST_BYTES}x")


class ChunkRef(NamedTuple):
    """A chunk as a manifest names it; `length` in bytes."""

    id: ChunkId
    length: int


class Folder(NamedTuple):
    """A folder's entry."""

    path: str


class Link(NamedTuple):
    """A symbolic link's entry."""

    path: str
    target: str


class FileStart(NamedTuple):
    """A file's entry and its first `chunks` rows; `more` follow at the start of the next piece."""

    path: str
    executable: bool
    mtime_ns: int
    size_bytes: int
    chunks: int
    more: bool


class FileContinuation(NamedTuple):
    """The next `chunks` rows of the file that the piece before ended in."""

    chunks: int
    more: bool


Record: TypeAlias = "Folder | Link | FileStart | FileContinuation"


class PieceRef(NamedTuple):
    """What a manifest's root claims about one piece; checked by `decode_piece`."""

    id: PieceId
    length: int
    chunk_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A decoded piece: its records, and its chunks as bare ids in one string beside lengths."""

    records: tuple[Record, ...]
    ids: bytes
    lengths: tuple[int, ...]

    @property
    def chunks(self) -> list[ChunkRef]:
        """The rows as objects; costs memory, meant for few pieces at a time."""
        step = DIGEST_BYTES
        return [
            ChunkRef(ChunkId(self.ids[at * step : (at + 1) * step]), length)
            for at, length in enumerate(self.lengths)
        ]


class SpanCut(NamedTuple):
    """A span within its piece: the unit of requests; `first_chunk` counts rows of the piece."""

    first_chunk: int
    chunk_count: int
    size_bytes: int


def cut_spans(lengths: Sequence[int]) -> list[SpanCut]:
    """Cut a piece's chunks into spans, as every node does alike.

    A span takes chunks until it holds SPAN_TARGET_BYTES or MAX_SPAN_CHUNKS chunks; the last one
    takes what is left. What a node holds or has seen before never moves a boundary.
    """
    spans: list[SpanCut] = []
    first = size = 0
    for at, length in enumerate(lengths):
        size += length
        if size >= SPAN_TARGET_BYTES or at - first + 1 == MAX_SPAN_CHUNKS:
            spans.append(SpanCut(first, at - first + 1, size))
            first, size = at + 1, 0
    if first < len(lengths):
        spans.append(SpanCut(first, len(lengths) - first, size))
    return spans


def chunk_table(chunks: Iterable[tuple[bytes, int]]) -> bytes:
    """The rows of (chunk id, length in bytes) pairs."""
    return b"".join([_ROW.pack(chunk, length) for chunk, length in chunks])


def table_rows(table: bytes) -> Iterator[tuple[bytes, int]]:
    """The (chunk id, length in bytes) pairs of a chunk table, which must be whole rows."""
    return _ROW.iter_unpack(table)


def table_lengths(table: bytes) -> tuple[int, ...]:
    """The lengths in a chunk table, in bytes; the table must be whole rows."""
    return tuple([row[0] for row in _ROW_LENGTH.iter_unpack(table)])


def table_selectors(table: bytes) -> list[int]:
    """The first four bytes of each chunk's id in a chunk table, which must be whole rows."""
    return [row[0] for row in _ROW_SELECTOR.iter_unpack(table)]


def encode_piece(records: Iterable[Record], table: bytes) -> bytes:
    """The bytes of a piece; the caller keeps to the limits."""
    rows: list[Value] = []
    for record in records:
        match record:
            case Folder():
                rows.append([FOLDER, *record])
            case Link():
                rows.append([LINK, *record])
            case FileStart():
                rows.append([FILE_START, *record])
            case FileContinuation():
                rows.append([FILE_CONTINUATION, *record])
    return pack([PIECE_TYPE, 1, rows, table])


def decode_piece(data: bytes | bytearray | memoryview, ref: PieceRef) -> Piece:
    """Check `data` against `ref`, the id first, and decode it.

    Raises FormatError or LimitExceeded. Paths are only checked for length here: whether they may
    stand together is known when all pieces are there.
    """
    if len(data) != ref.length or PieceId.of(data) != ref.id:
        raise FormatError(f"not the bytes of manifest piece {ref.id.short}")
    fields = open_document(data, PIECE_TYPE, max_bytes=MAX_PIECE_BYTES)
    rows = fields.array("records", max_items=MAX_PIECE_BYTES)
    table = fields.binary("chunk table", max_bytes=MAX_PIECE_BYTES)
    if not rows:
        raise FormatError("manifest piece holds nothing")
    if len(table) != ref.chunk_count * CHUNK_ROW_BYTES:
        raise FormatError(f"manifest piece {ref.id.short} does not hold the chunks it should")
    lengths = table_lengths(table)
    if lengths and not (min(lengths) > 0 and max(lengths) <= MAX_CHUNK_BYTES):
        raise LimitExceeded(f"manifest piece: a chunk's length is outside 1 to {MAX_CHUNK_BYTES}")
    if sum(lengths) != ref.size_bytes:
        raise FormatError(f"manifest piece {ref.id.short} does not hold the bytes it should")
    records = tuple([_record(row) for row in rows])
    _check_chunk_counts(records, len(lengths))
    ids = b"".join([row[0] for row in _ROW.iter_unpack(table)])
    return Piece(records, ids, lengths)


def _record(row: Value) -> Record:
    # What nearly every record is; whatever differs from it is looked at field by field.
    if type(row) is list and len(row) >= 7 and row[0] == FILE_START:
        _, path, executable, mtime_ns, size_bytes, chunks, more = row[:7]
        if (
            type(path) is str
            and len(path) <= _SURELY_FITS
            and type(executable) is type(more) is bool
            and type(mtime_ns) is type(size_bytes) is type(chunks) is int
            and 0 <= mtime_ns <= MAX_MTIME_NS
            and 0 <= size_bytes <= MAX_FILE_BYTES
            and 0 <= chunks <= MAX_PIECE_CHUNKS
        ):
            return FileStart(path, executable, mtime_ns, size_bytes, chunks, more)
    fields = Fields(row, "manifest record")
    kind = fields.integer("kind", high=FILE_CONTINUATION)
    if kind == FOLDER:
        return Folder(fields.text("path", max_bytes=MAX_PATH_BYTES))
    if kind == LINK:
        return Link(
            fields.text("path", max_bytes=MAX_PATH_BYTES),
            fields.text("target", max_bytes=MAX_PATH_BYTES),
        )
    if kind == FILE_START:
        return FileStart(
            fields.text("path", max_bytes=MAX_PATH_BYTES),
            fields.boolean("executable"),
            fields.integer("mtime", high=MAX_MTIME_NS),
            fields.integer("size", high=MAX_FILE_BYTES),
            fields.integer("chunks", high=MAX_PIECE_CHUNKS),
            fields.boolean("more"),
        )
    return FileContinuation(
        fields.integer("chunks", low=1, high=MAX_PIECE_CHUNKS), fields.boolean("more")
    )


def _check_chunk_counts(records: tuple[Record, ...], chunk_count: int) -> None:
    last = len(records) - 1
    claimed = 0
    for at, record in enumerate(records):
        if isinstance(record, Folder | Link):
            continue
        claimed += record.chunks
        if isinstance(record, FileStart):
            if (record.size_bytes == 0) != (record.chunks == 0):
                raise FormatError("manifest record: only an empty file has no chunks")
            if record.more and not record.size_bytes:
                raise FormatError("manifest record: an empty file cannot go on")
        elif at:
            raise FormatError("manifest piece: only its first record can continue a file")
        if record.more and at != last:
            raise FormatError("manifest piece: only its last file can go on in the next piece")
    if claimed != chunk_count:
        raise FormatError(f"manifest piece: records claim {claimed} of its {chunk_count} chunks")
