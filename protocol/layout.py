"""A whole manifest, checked and laid out: which bytes go where, and in which spans.

Built once from a root and all its pieces; from then on the fetcher reads spans from it and the
store reads where each chunk belongs. Chunks are numbered in manifest order ("the chunk at 17"),
repeats included, and kept in flat arrays: 40 bytes a chunk and no object, since a layout of
100,000 chunks is ordinary. Nothing here touches files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, NamedTuple, TypeAlias

from protocol.errors import FormatError
from protocol.ids import DIGEST_BYTES, ChunkId, ManifestId, PieceId
from protocol.manifest import PLAIN, ManifestRoot
from protocol.paths import TreeShape
from protocol.pieces import (
    ChunkRef,
    FileContinuation,
    FileStart,
    Folder,
    Link,
    Piece,
    PieceRef,
    chunk_table,
    cut_spans,
    decode_piece,
)

_EMPTY: Final = array("I")


class FileEntry(NamedTuple):
    """`Layout.files[number]`; its chunks: the one at `first_chunk`, `chunk_count` in all."""

    path: str
    size_bytes: int
    executable: bool
    mtime_ns: int
    number: int
    first_chunk: int
    chunk_count: int

    @property
    def mode(self) -> int:
        """The mode on disk: read-only for everybody, executable or not."""
        return 0o555 if self.executable else 0o444


FolderEntry = Folder
LinkEntry = Link
Entry: TypeAlias = "FileEntry | FolderEntry | LinkEntry"


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
            first_span = len(spans)
            if ref.id not in seen:
                seen[ref.id] = None
                spans += _spans_of(ref, len(self._piece_spans), first_chunk, piece)
            self._piece_spans.append(range(first_span, len(spans)))
        assembly.finish(root)
        self._ids, self._lengths = bytes(assembly.ids), assembly.lengths
        self._file_of, self._offsets = assembly.file_of, assembly.offsets
        self.entries: Final[tuple[Entry, ...]] = tuple(assembly.entries)
        self.files: Final = tuple([e for e in self.entries if isinstance(e, FileEntry)])
        self.spans: Final[tuple[Span, ...]] = tuple(spans)
        self._first, self._repeats = self._find_repeats()

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
            file = self.files[number]
            stop = min(chunks.stop, file.first_chunk + file.chunk_count)
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

    def ids_of(self, file: FileEntry) -> bytes:
        """The ids of a file's chunks, one after the other."""
        end = file.first_chunk + file.chunk_count
        return self._ids[file.first_chunk * DIGEST_BYTES : end * DIGEST_BYTES]

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
        first, lengths = self._first, self._lengths
        return sum([lengths[at] for at in span.chunks if first[at] == at])

    def _find_repeats(self) -> tuple[array[int], dict[int, array[int]]]:
        step = DIGEST_BYTES
        ids, lengths = self._ids, self._lengths
        number_of: dict[bytes, int] = {}
        homes = array("I")
        repeats: dict[int, array[int]] = {}
        for at in range(len(lengths)):
            home = number_of.setdefault(ids[at * step : (at + 1) * step], at)
            homes.append(home)
            if home != at:
                if lengths[at] != lengths[home]:
                    raise FormatError("manifest gives one chunk two lengths")
                repeats.setdefault(home, array("I")).append(at)
        return homes, repeats


class _Assembly:
    """Puts the records of successive pieces together into entries, checking that they meet."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.ids = bytearray()
        self.lengths = array("I")
        self.file_of = array("I")
        self.offsets = array("Q")
        self._shape = TreeShape()
        self._file_index = 0
        self._open: FileStart | None = None
        self._open_first = 0
        self._folders = self._links = 0

    def take(self, piece: Piece) -> None:
        first = 0
        for at, record in enumerate(piece.records):
            if isinstance(record, FileContinuation):
                if self._open is None:
                    raise FormatError("manifest piece continues a file that did not start")
                first = self._take_chunks(piece, first, record)
                continue
            if not at and self._open is not None:
                raise FormatError(f"manifest: the file {self._open.path!r} breaks off")
            if isinstance(record, FileStart):
                self._shape.add_file(record.path)
                self._open = record
                self._open_first = len(self.lengths)
                first = self._take_chunks(piece, first, record)
            elif isinstance(record, Folder):
                self._shape.add_folder(record.path)
                self._folders += 1
                self.entries.append(record)
            else:
                self._shape.add_link(record.path, record.target)
                self._links += 1
                self.entries.append(record)
        self.ids += piece.ids

    def finish(self, root: ManifestRoot) -> None:
        if self._open is not None:
            raise FormatError(f"manifest: the file {self._open.path!r} breaks off")
        if (self._file_index, self._folders, self._links) != (
            root.files,
            root.folders,
            root.links,
        ):
            raise FormatError("manifest: its pieces do not hold the entries that it claims")
        self._shape.finish()

    def _take_chunks(self, piece: Piece, first: int, record: FileStart | FileContinuation) -> int:
        started = self._open
        if started is None:
            raise FormatError("manifest piece continues a file that did not start")
        end = first + record.chunks
        lengths = piece.lengths[first:end]
        continued = len(self.lengths) > self._open_first
        done = self.offsets[-1] + self.lengths[-1] if continued else 0
        starts = list(accumulate(lengths, initial=done))
        total = starts.pop()
        self.offsets.extend(starts)
        self.lengths.extend(lengths)
        self.file_of.extend([self._file_index] * record.chunks)
        if total > started.size_bytes or (not record.more and total != started.size_bytes):
            raise FormatError(f"manifest: the chunks of {started.path!r} do not make up its size")
        if not record.more:
            self.entries.append(
                FileEntry(
                    started.path,
                    started.size_bytes,
                    started.executable,
                    started.mtime_ns,
                    self._file_index,
                    self._open_first,
                    len(self.lengths) - self._open_first,
                )
            )
            self._file_index += 1
            self._open = None
        return end


def _spans_of(ref: PieceRef, piece_index: int, first_chunk: int, piece: Piece) -> list[Span]:
    return [
        Span(piece_index, ref.id, n, first_chunk + cut.first_chunk, cut.chunk_count, cut.size_bytes)
        for n, cut in enumerate(cut_spans(piece.lengths))
    ]
