"""A whole manifest, checked and laid out: which bytes go where, and in which spans.

Built once from a root and all its pieces; from then on the fetcher reads spans from it and the
store reads where each chunk belongs. Chunks are numbered in manifest order ("the chunk at 17"),
repeats included, and kept in flat arrays: 40 bytes a chunk and no object, since a layout of
100,000 chunks is ordinary. Nothing here touches files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from protocol.entries import EntryTable, FileEntry, FileTable
from protocol.errors import FormatError
from protocol.ids import DIGEST_BYTES, ChunkId, ManifestId, PieceId
from protocol.manifest import PLAIN, ManifestRoot
from protocol.paths import TreeShape
from protocol.pieces import (
    ChunkRef,
    FileContinuation,
    FileStart,
    Folder,
    Piece,
    PieceRef,
    chunk_table,
    cut_spans,
    decode_piece,
)

_EMPTY: Final = array("I")
_WORD_BYTES: Final = 8


class Span(NamedTuple):
    """The unit of requests, named (`piece`, `n`); `first_chunk` numbers chunks of the manifest."""

    piece_index: int
    piece: PieceId
    n: int
    first_chunk: int
    chunk_count: int
    size_bytes: int

    @property
    def chunks(self) -> range:
        """The numbers of its chunks."""
        return range(self.first_chunk, self.first_chunk + self.chunk_count)


def asked(span: Span, skip: bytes) -> list[range]:
    """The chunks of a span that `skip` does not leave out, neighbours together."""
    if not any(skip):
        return [span.chunks] if span.chunk_count else []
    found: list[range] = []
    start: int | None = None
    for n, at in enumerate(span.chunks):
        if n // 8 < len(skip) and skip[n // 8] >> n % 8 & 1:
            if start is not None:
                found.append(range(start, at))
            start = None
        elif start is None:
            start = at
    if start is not None:
        found.append(range(start, span.chunks.stop))
    return found


class Place(NamedTuple):
    """Where a chunk's bytes stand in the tree: `Layout.files[file]`, at `offset` bytes."""

    file: int
    offset: int


class Stretch(NamedTuple):
    """Neighbouring chunks of one file: `Layout.files[file]`, from `offset` on."""

    file: int
    offset: int
    chunks: range
    size_bytes: int


class SpanChunk(NamedTuple):
    """A chunk to ask for in a span: `n` counts within the span, `places` are all it belongs to."""

    n: int
    chunk: ChunkRef
    places: list[Place]


class Layout:
    """A checked manifest.

    `entries` are in path order, `files` the files among them, `spans` in manifest order. A chunk
    that occurs several times has its home where it occurs first: `wanted` gives each distinct
    chunk once, in its home span, with every place that it must be written to.
    """

    def __init__(self, root: ManifestRoot, pieces: Iterable[bytes | memoryview]) -> None:
        """Check and lay out; `pieces` are the bytes of `root.pieces`, in that order.

        Raises FormatError, PathRefused or LimitExceeded; nothing is believed before it fits.
        """
        if root.encoding != PLAIN:
            raise FormatError(f"manifest of encoding {root.encoding}, which needs a newer version")
        self.root: Final = root
        self.manifest: Final[ManifestId] = root.id
        self._piece_spans: list[range] = []
        assembly = _Assembly()
        seen: dict[PieceId, None] = {}
        spans: list[Span] = []
        for ref, data in zip(root.pieces, pieces, strict=True):
            first_chunk = len(assembly.lengths)
            piece = decode_piece(data, ref)
            assembly.take(piece)
            if len(assembly.entries) > root.files + root.folders + root.links:
                # At once: what the root claims is bounded, what all its pieces may hold is not.
                raise FormatError("manifest: its pieces hold more entries than it claims")
            first_span = len(spans)
            if ref.id not in seen:
                seen[ref.id] = None
                spans += _spans_of(ref, len(self._piece_spans), first_chunk, piece)
            self._piece_spans.append(range(first_span, len(spans)))
        assembly.finish(root)
        self._ids, self._lengths = bytes(assembly.ids), assembly.lengths
        self._file_of, self._offsets = assembly.file_of, assembly.offsets
        self.entries: Final[EntryTable] = assembly.entries
        self.files: Final[FileTable] = assembly.entries.files
        self.spans: Final[tuple[Span, ...]] = tuple(spans)
        self._first, self._repeats = self._find_repeats()
        self.repeats: Final[Mapping[int, Sequence[int]]] = self._repeats
        """The numbers of a chunk's other occurrences, by that of the first, if there are any."""

    @classmethod
    def from_pieces(cls, root: ManifestRoot, pieces: Mapping[PieceId, bytes]) -> Layout:
        """As the constructor; raises KeyError when a piece is missing."""
        return cls(root, (pieces[ref.id] for ref in root.pieces))

    @property
    def chunk_count(self) -> int:
        """Chunks in the manifest, repeats included."""
        return len(self._lengths)

    def chunk(self, at: int) -> ChunkRef:
        """The chunk at a number."""
        start = at * DIGEST_BYTES
        return ChunkRef(ChunkId(self._ids[start : start + DIGEST_BYTES]), self._lengths[at])

    def keys(self, chunks: range, size_bytes: int) -> list[bytes]:
        """The first bytes of the ids of neighbouring chunks: for many at once."""
        ids = self._ids
        starts = range(chunks.start * DIGEST_BYTES, chunks.stop * DIGEST_BYTES, DIGEST_BYTES)
        return [ids[start : start + size_bytes] for start in starts]

    def first_bytes(self) -> bytes:
        """The first byte of each chunk's id."""
        return self._ids[::DIGEST_BYTES]

    def rows(self, chunks: Iterable[int], size_bytes: int) -> list[tuple[bytes, int, int]]:
        """For each of these: the first bytes of its id, the file's number, and where it stands."""
        ids, file_of, offsets = self._ids, self._file_of, self._offsets
        return [
            (ids[at * DIGEST_BYTES : at * DIGEST_BYTES + size_bytes], file_of[at], offsets[at])
            for at in chunks
        ]

    def offsets(self, chunks: range) -> array[int]:
        """Where neighbouring chunks stand in their files, in bytes."""
        return self._offsets[chunks.start : chunks.stop]

    def lengths(self, chunks: range) -> array[int]:
        """The lengths of neighbouring chunks in bytes."""
        return self._lengths[chunks.start : chunks.stop]

    def are_single(self, chunks: range) -> bool:
        """Whether none of these chunks occurs anywhere else."""
        if not self._repeats:
            return True
        first, repeats = self._first, self._repeats
        return all(first[at] == at and at not in repeats for at in chunks)

    def stretches(self, chunks: range) -> list[Stretch]:
        """The same chunks, cut where a file ends."""
        found = []
        start = chunks.start
        while start < chunks.stop:
            number = self._file_of[start]
            stop = min(chunks.stop, self.files.chunks(number).stop)
            offset, last = self._offsets[start], stop - 1
            size_bytes = self._offsets[last] + self._lengths[last] - offset
            found.append(Stretch(number, offset, range(start, stop), size_bytes))
            start = stop
        return found

    def length(self, at: int) -> int:
        """The length in bytes of the chunk at a number."""
        return self._lengths[at]

    def place(self, at: int) -> Place:
        """Where this one occurrence stands."""
        return Place(self._file_of[at], self._offsets[at])

    def places(self, at: int) -> list[Place]:
        """Where this chunk stands, every occurrence, in manifest order."""
        first = self._first[at]
        return [self.place(first), *[self.place(n) for n in self._repeats.get(first, _EMPTY)]]

    def home(self, at: int) -> int:
        """The number at which the chunk at `at` occurs first."""
        return self._first[at]

    def distinct_chunks(self) -> Iterator[int]:
        """The numbers of all chunks at their homes: every distinct chunk once."""
        return (at for at, first in enumerate(self._first) if at == first)

    def chunks_of(self, file: FileEntry) -> Iterator[tuple[int, ChunkRef]]:
        """(offset in bytes, chunk) of a file, in order."""
        for at in range(file.first_chunk, file.first_chunk + file.chunk_count):
            yield self._offsets[at], self.chunk(at)

    def ids(self, chunks: range) -> bytes:
        """The ids of neighbouring chunks, one after the other."""
        return self._ids[chunks.start * DIGEST_BYTES : chunks.stop * DIGEST_BYTES]

    def table_of(self, file: FileEntry) -> bytes:
        """The rows of a file's chunks, as `protocol.pieces.chunk_table` makes them."""
        return chunk_table(chunk for _, chunk in self.chunks_of(file))

    def spans_of_piece(self, piece_index: int) -> range:
        """Indexes into `spans`; empty for a piece that occurred before, or that has no chunks.

        Raises FormatError when there is no such piece.
        """
        if not 0 <= piece_index < len(self._piece_spans):
            raise FormatError(f"manifest has no piece {piece_index}")
        return self._piece_spans[piece_index]

    def span_index(self, piece_index: int, n: int) -> int:
        """The index into `spans` of span `n` of a piece; raises FormatError if there is none."""
        indexes = self.spans_of_piece(piece_index)
        if not 0 <= n < len(indexes):
            raise FormatError(f"piece {piece_index} of the manifest has no span {n}")
        return indexes[n]

    def wanted(self, span: Span) -> list[SpanChunk]:
        """What to ask for in a span, were nothing at hand: the chunks that have their home here.

        May be empty: such a span is held as soon as the spans before it are.
        """
        return [
            SpanChunk(at - span.first_chunk, self.chunk(at), self.places(at))
            for at in span.chunks
            if self._first[at] == at
        ]

    def others(self, span: Span) -> bytes:
        """The `skip` bitmap that leaves out what has its home in another span; maybe empty."""
        if not self._repeats:
            return b""
        bits = bytearray((span.chunk_count + 7) // 8)
        for n, at in enumerate(span.chunks):
            if self._first[at] != at:
                bits[n // 8] |= 1 << n % 8
        return bytes(bits) if any(bits) else b""

    def wanted_bytes(self, span: Span) -> int:
        """The size of `wanted` in bytes."""
        if not self._repeats:
            return span.size_bytes
        first, lengths = self._first, self._lengths
        return sum([lengths[at] for at in span.chunks if first[at] == at])

    def _find_repeats(self) -> tuple[Sequence[int], dict[int, array[int]]]:
        ids, lengths = self._ids, self._lengths
        count = len(lengths)
        words = DIGEST_BYTES // _WORD_BYTES
        # Nearly always no two ids begin alike: then none repeats, and no id becomes an object.
        beginnings = memoryview(ids).cast("Q")[::words]
        alike = {one for one, other in pairwise(sorted(beginnings)) if one == other}
        if not alike:
            return range(count), {}
        number_of: dict[bytes, int] = {}
        homes = array("I", range(count))
        repeats: dict[int, array[int]] = {}
        for at, beginning in enumerate(beginnings):
            if beginning not in alike:
                continue
            home = number_of.setdefault(ids[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES], at)
            if home != at:
                if lengths[at] != lengths[home]:
                    raise FormatError("manifest gives one chunk two lengths")
                homes[at] = home
                repeats.setdefault(home, array("I")).append(at)
        return homes, repeats


class _Assembly:
    """Puts the records of successive pieces together into entries, checking that they meet."""

    def __init__(self) -> None:
        self.entries = EntryTable()
        self.ids = bytearray()
        self.lengths = array("I")
        self.file_of = array("I")
        self.offsets = array("Q")
        self._shape = TreeShape()
        self._open: FileStart | None = None
        self._open_chunks = self._open_bytes = 0
        self._files = self._folders = self._links = 0

    def take(self, piece: Piece) -> None:
        first = 0
        for at, record in enumerate(piece.records):
            if isinstance(record, FileContinuation):
                if self._open is None:
                    raise FormatError("manifest piece continues a file that did not start")
                first = self._take_chunks(piece, first, self._open, record)
                continue
            if not at and self._open is not None:
                raise FormatError(f"manifest: the file {self._open.path!r} breaks off")
            if isinstance(record, FileStart):
                self._shape.add_file(record.path)
                self._open_chunks = self._open_bytes = 0
                first = self._take_chunks(piece, first, record, record)
            elif isinstance(record, Folder):
                self._shape.add_folder(record.path)
                self._folders += 1
                self.entries.add_folder(record.path)
            else:
                self._shape.add_link(record.path, record.target)
                self._links += 1
                self.entries.add_link(record.path, record.target)
        self.lengths.extend(piece.lengths)
        self.ids += piece.ids

    def finish(self, root: ManifestRoot) -> None:
        if self._open is not None:
            raise FormatError(f"manifest: the file {self._open.path!r} breaks off")
        if (self._files, self._folders, self._links) != (
            root.files,
            root.folders,
            root.links,
        ):
            raise FormatError("manifest: its pieces do not hold the entries that it claims")
        self._shape.finish()

    def _take_chunks(
        self, piece: Piece, first: int, started: FileStart, record: FileStart | FileContinuation
    ) -> int:
        end = first + record.chunks
        if record.chunks == 1:
            self.offsets.append(self._open_bytes)
            self._open_bytes += piece.lengths[first]
            self.file_of.append(self._files)
        else:
            starts = list(accumulate(piece.lengths[first:end], initial=self._open_bytes))
            self._open_bytes = starts.pop()
            self.offsets.extend(starts)
            self.file_of.extend([self._files] * record.chunks)
        self._open_chunks += record.chunks
        total = self._open_bytes
        if total > started.size_bytes or (not record.more and total != started.size_bytes):
            raise FormatError(f"manifest: the chunks of {started.path!r} do not make up its size")
        if record.more:
            self._open = started
            return end
        self._open = None
        self._files += 1
        self.entries.add_file(
            started.path,
            size_bytes=started.size_bytes,
            executable=started.executable,
            mtime_ns=started.mtime_ns,
            chunks=self._open_chunks,
        )
        return end


def _spans_of(ref: PieceRef, piece_index: int, first_chunk: int, piece: Piece) -> list[Span]:
    return [
        Span(piece_index, ref.id, n, first_chunk + cut.first_chunk, cut.chunk_count, cut.size_bytes)
        for n, cut in enumerate(cut_spans(piece.lengths))
    ]
