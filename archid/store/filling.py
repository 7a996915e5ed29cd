"""What is filled with verified chunks, span by span: a version being put together, or one mended.

The fetcher brings spans without knowing which of the two it fills. This is what both have in
common: which spans are wanted and which of their chunks, and that nothing is written unhashed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from blake3 import blake3

from archid.store.errors import ChunkCorrupt
from archid.store.syscalls import Buffer
from protocol.ids import DIGEST_BYTES, ChunkId
from protocol.layout import Layout, Span, asked


class SpanBytes(NamedTuple):
    """A span's chunks as a peer sent them: those whose bit in `skip` is 0, one after the other."""

    span: Span
    skip: bytes
    data: Buffer


class Verified(NamedTuple):
    """Neighbouring chunks, by their numbers, and their bytes, which were hashed just now."""

    chunks: range
    data: memoryview


class Filling(ABC):
    """One version that lacks chunks; methods block and may be called from any thread."""

    layout: Layout
    held_bytes: int

    @property
    def is_complete(self) -> bool:
        return self.held_bytes == self.layout.root.size_bytes

    @property
    def missing_bytes(self) -> int:
        return self.layout.root.size_bytes - self.held_bytes

    @abstractmethod
    def is_held(self, at: int) -> bool:
        """Whether the chunk at `at` is verified at every place where the manifest wants it."""

    @abstractmethod
    def write_chunks(self, chunks: Iterable[tuple[int, Buffer]]) -> None:
        """Write chunks, by number, whose bytes the caller has hashed; raises StorageError."""

    def is_span_held(self, span: Span) -> bool:
        """Whether nothing of this span has to be asked for."""
        home = self.layout.home
        return all(home(at) != at or self.is_held(at) for at in span.chunks)

    def held_spans(self) -> set[int]:
        """The indexes into ``layout.spans`` of the spans that are held."""
        return {n for n, span in enumerate(self.layout.spans) if self.is_span_held(span)}

    def skip(self, span: Span) -> bytes:
        """The bitmap for a request: chunks that are held or have their home in another span.

        Bit i is ``skip[i // 8] >> (i % 8) & 1``; empty when everything is wanted.
        """
        bits = bytearray((span.chunk_count + 7) // 8)
        for n, at in enumerate(span.chunks):
            if self.layout.home(at) != at or self.is_held(at):
                bits[n // 8] |= 1 << n % 8
        return bytes(bits) if any(bits) else b""

    def missing_chunks(self) -> Sequence[int]:
        """The numbers, at their homes, of all chunks that are not held."""
        return array("I", (at for at in self.layout.distinct_chunks() if not self.is_held(at)))

    def write_span(self, span: Span, skip: bytes, data: Buffer) -> None:
        """Verify and write one span; raises ChunkCorrupt (nothing is written), StorageError."""
        [fault] = self.write_spans([SpanBytes(span, skip, data)])
        if fault is not None:
            raise fault

    def write_spans(self, received: Sequence[SpanBytes]) -> list[ChunkCorrupt | None]:
        """Verify and write a batch: the larger, the fewer system calls for small files.

        Answers for each span None, or what was wrong with it; then nothing of it was written.
        Raises StorageError (DiskFull, read-only); then some may have been written, and whatever
        was written is counted.
        """
        results: list[ChunkCorrupt | None] = []
        good: list[Verified] = []
        for span, skip, data in received:
            try:
                good += self._verified(span, skip, data)
                results.append(None)
            except ChunkCorrupt as fault:
                results.append(fault)
        self.write_verified(good)
        return results

    def write_verified(self, verified: Iterable[Verified]) -> None:
        """Write what was verified just now; raises StorageError."""
        lengths = self.layout.lengths
        self.write_chunks(
            (at, part)
            for chunks, data in verified
            for at, part in zip(chunks, _parts(data, lengths(chunks)), strict=True)
        )

    def _verified(self, span: Span, skip: bytes, data: Buffer) -> list[Verified]:
        view = memoryview(data)
        verified: list[Verified] = []
        start = 0
        for chunks in asked(span, skip):
            begin = start
            for id_bytes, length in zip(
                self.layout.keys(chunks, DIGEST_BYTES), self.layout.lengths(chunks), strict=True
            ):
                if blake3(view[start : start + length]).digest() != id_bytes:
                    raise ChunkCorrupt(
                        ChunkId(id_bytes), f"in span {span.n} of piece {span.piece.short}"
                    )
                start += length
            verified.append(Verified(chunks, view[begin:start]))
        if start != len(view):
            raise ChunkCorrupt(
                self.layout.chunk(span.first_chunk).id,
                f"in span {span.n} of piece {span.piece.short}, which came with"
                f" {len(view) - start} bytes too many",
            )
        return verified


def _parts(data: memoryview, lengths: Iterable[int]) -> Iterator[memoryview]:
    start = 0
    for length in lengths:
        yield data[start : start + length]
        start += length
