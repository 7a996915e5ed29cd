"""Makes a manifest from a tree's entries: cuts pieces where the content says so.

Where a piece ends depends on the items around the cut and on nothing before them, so that a
change moves the cuts near it and the pieces further on stay what they were. The rule is format:
SPEC.md chapter 5 states it, `tests/vectors/manifest.json` pins it. Reading and chunking files is
the store's part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from blake3 import blake3

from protocol.chunking_profile import DEFAULT_PROFILE
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import FleetId, PieceId
from protocol.limits import MAX_CHUNK_BYTES, MAX_FILE_BYTES
from protocol.manifest import ManifestRoot
from protocol.paths import TreeShape, check_kind, check_script_name
from protocol.pieces import (
    CHUNK_ROW_BYTES,
    MAX_MTIME_NS,
    FileContinuation,
    FileStart,
    Folder,
    Link,
    PieceRef,
    Record,
    chunk_table,
    encode_piece,
    table_lengths,
    table_selectors,
)

RECORD_WEIGHT: Final = 32
"""What a record counts for, its texts apart: more than its encoding takes."""
MIN_PIECE_WEIGHT: Final = 8 * 1024
MEAN_PIECE_WEIGHT: Final = 16 * 1024
"""The mean weight from MIN_PIECE_WEIGHT to a cut."""
MAX_PIECE_WEIGHT: Final = 64 * 1024
_ROW_ENDS_BELOW: Final = -(-(CHUNK_ROW_BYTES << 32) // MEAN_PIECE_WEIGHT)
"""A row whose selector is less ends a piece that is heavy enough: `_ends_piece` for one row."""


class ManifestBuilder:
    """Takes entries in path order, gives the root and its pieces.

    Raises PathRefused for an entry that no tree may hold, LimitExceeded for what is too large.
    """

    def __init__(
        self,
        fleet: FleetId,
        kind: str,
        name: str,
        version: int,
        *,
        profile: int = DEFAULT_PROFILE,
        shape: TreeShape | None = None,
    ) -> None:
        """With `shape`, the caller has checked every entry with it before adding it here."""
        check_kind(kind)
        check_script_name(name)
        self._fleet, self._kind, self._name = fleet, kind, name
        self._version, self._profile = version, profile
        self._shape = TreeShape() if shape is None else shape
        self._checks = shape is None
        self._files = self._folders = self._links = 0
        self._pieces: list[PieceRef] = []
        self._bytes_of: dict[PieceId, bytes] = {}
        self._records: list[Record] = []
        self._table = bytearray()
        self._weight = 0

    def add_folder(self, path: str) -> None:
        """A folder; it comes before what it holds."""
        if self._checks:
            self._shape.add_folder(path)
        self._folders += 1
        self._add_bare(Folder(path), path, RECORD_WEIGHT + len(path.encode()))

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link."""
        if self._checks:
            self._shape.add_link(path, target)
        self._links += 1
        weight = RECORD_WEIGHT + len(path.encode()) + len(target.encode())
        self._add_bare(Link(path, target), path, weight)

    def add_file(
        self, path: str, *, executable: bool, mtime_ns: int, chunks: Iterable[tuple[bytes, int]]
    ) -> None:
        """A file of (chunk id, length in bytes) pairs."""
        self.add_file_table(
            path, executable=executable, mtime_ns=mtime_ns, table=chunk_table(chunks)
        )

    def add_file_table(
        self, path: str, *, executable: bool, mtime_ns: int, table: bytes | bytearray
    ) -> None:
        """A file whose chunks come as rows of 36 bytes, see `chunk_table`."""
        lengths = table_lengths(bytes(table))
        size = sum(lengths)
        if lengths and not (min(lengths) > 0 and max(lengths) <= MAX_CHUNK_BYTES):
            raise LimitExceeded(f"{path}: a chunk is not of 1 to {MAX_CHUNK_BYTES} bytes")
        if size > MAX_FILE_BYTES:
            raise LimitExceeded(f"{path} has {size} bytes where at most {MAX_FILE_BYTES} fit")
        if not 0 <= mtime_ns <= MAX_MTIME_NS:
            raise FormatError(f"{path}: the time {mtime_ns} ns cannot be recorded")
        if self._checks:
            self._shape.add_file(path)
        self._files += 1
        record_weight = RECORD_WEIGHT + len(path.encode())
        if not lengths:
            record = FileStart(path, executable, mtime_ns, 0, 0, more=False)
            self._add_bare(record, path, record_weight)
            return
        total = len(lengths)
        selectors = table_selectors(bytes(table))
        done = 0
        while done < total:
            # One turn of this loop is one record: the rows of this file within one piece.
            weight = record_weight if not done else RECORD_WEIGHT
            self._make_room(weight + CHUNK_ROW_BYTES)
            first = done
            self._weight += weight + CHUNK_ROW_BYTES
            cut = self._ends_piece(selectors[first], weight + CHUNK_ROW_BYTES)
            done += 1
            if not cut:
                done, cut = self._take_rows(selectors, done)
            more = done < total
            rows = done - first
            self._records.append(
                FileContinuation(rows, more)
                if first
                else FileStart(path, executable, mtime_ns, size, rows, more)
            )
            self._table += table[first * CHUNK_ROW_BYTES : done * CHUNK_ROW_BYTES]
            if cut:
                self._close_piece()

    def finish(self) -> tuple[ManifestRoot, dict[PieceId, bytes]]:
        """The root and the bytes of every distinct piece; the builder is spent."""
        self._shape.finish()
        if self._records:
            self._close_piece()
        root = ManifestRoot(
            fleet=self._fleet,
            kind=self._kind,
            name=self._name,
            version=self._version,
            profile=self._profile,
            files=self._files,
            folders=self._folders,
            links=self._links,
            size_bytes=sum([ref.size_bytes for ref in self._pieces]),
            chunk_count=sum([ref.chunk_count for ref in self._pieces]),
            pieces=tuple(self._pieces),
        )
        return root, self._bytes_of

    def _take_rows(self, selectors: Sequence[int], done: int) -> tuple[int, bool]:
        """Rows of the same record from `done` on: where they end, and whether the piece does."""
        room = done + (MAX_PIECE_WEIGHT - self._weight) // CHUNK_ROW_BYTES
        stop = min(len(selectors), room)
        # The first row after which the piece is heavy enough to end.
        light = max(-(-(MIN_PIECE_WEIGHT - self._weight) // CHUNK_ROW_BYTES) - 1, 0)
        ends = (at + 1 for at in range(done + light, stop) if selectors[at] < _ROW_ENDS_BELOW)
        end = next(ends, None)
        cut = end is not None or stop < len(selectors)
        end = stop if end is None else end
        self._weight += (end - done) * CHUNK_ROW_BYTES
        return end, cut

    def _add_bare(self, record: Record, path: str, weight: int) -> None:
        self._make_room(weight)
        self._records.append(record)
        self._weight += weight
        if self._ends_piece(int.from_bytes(blake3(path.encode()).digest()[:4], "big"), weight):
            self._close_piece()

    def _make_room(self, weight: int) -> None:
        if self._weight + weight > MAX_PIECE_WEIGHT:
            self._close_piece()

    def _ends_piece(self, selector: int, item_weight: int) -> bool:
        if self._weight < MIN_PIECE_WEIGHT:
            return False
        return selector * MEAN_PIECE_WEIGHT < item_weight << 32

    def _close_piece(self) -> None:
        table = bytes(self._table)
        data = encode_piece(self._records, table)
        lengths = table_lengths(table)
        ref = PieceRef(PieceId.of(data), len(data), len(lengths), sum(lengths))
        self._pieces.append(ref)
        self._bytes_of[ref.id] = data
        self._records = []
        self._table = bytearray()
        self._weight = 0
