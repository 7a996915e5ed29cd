"""Reading chunks from a file and hashing them: the only way by which local bytes are believed.

Everything that says of bytes on disk that they are a chunk goes through `check_chunks`: resuming,
reuse of other versions, serving, verification. Reads are of about a megabyte whatever the chunks'
sizes, because a call costs more than the bytes of a small one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from blake3 import blake3

from archid.store import syscalls
from protocol.entries import FileEntry
from protocol.layout import Layout

READ_BYTES: Final = 1 << 20


class ReadRun(NamedTuple):
    """Consecutive chunks of one file that are read in one call."""

    offset: int
    length: int
    chunks: range


class CheckedChunk(NamedTuple):
    """A chunk number, and its bytes if they are what the manifest says, else None.

    The view is into a buffer that the next run reuses.
    """

    at: int
    data: memoryview | None


def read_runs(layout: Layout, chunks: range) -> Iterator[ReadRun]:
    """Cut consecutive chunk numbers, all of one file, into runs of about READ_BYTES."""
    first = chunks.start
    while first < chunks.stop:
        offset = layout.place(first).offset
        length = 0
        at = first
        while at < chunks.stop:
            size = layout.length(at)
            if length and length + size > READ_BYTES:
                break
            length += size
            at += 1
        yield ReadRun(offset, length, range(first, at))
        first = at


def check_chunks(
    fd: int, layout: Layout, chunks: range, *, buffer: bytearray | None = None
) -> Iterator[CheckedChunk]:
    """Read chunks of the file behind `fd` and hash each; raises OSError.

    A chunk beyond the file's end is one that does not hold.
    """
    if buffer is None:
        buffer = bytearray(_length(layout, chunks))
    for run in read_runs(layout, chunks):
        view = memoryview(buffer)[: run.length]
        count = syscalls.pread_into(fd, view, run.offset)
        start = 0
        for at in run.chunks:
            ref = layout.chunk(at)
            data = view[start : start + ref.length]
            start += ref.length
            holds = start <= count and blake3(data).digest() == ref.id
            yield CheckedChunk(at, data if holds else None)


def chunks_of(file: FileEntry) -> range:
    """The numbers of a file's chunks."""
    return range(file.first_chunk, file.first_chunk + file.chunk_count)


def chunks_in(layout: Layout, chunks: range, ranges: Sequence[tuple[int, int]]) -> list[range]:
    """The runs of consecutive chunks that touch one of the (start, end) byte ranges, in order."""
    runs: list[range] = []
    pending = iter(ranges)
    current = next(pending, None)
    for at in chunks:
        offset = layout.place(at).offset
        end = offset + layout.length(at)
        while current is not None and current[1] <= offset:
            current = next(pending, None)
        if current is None:
            break
        if current[0] < end:
            if runs and runs[-1].stop == at:
                runs[-1] = range(runs[-1].start, at + 1)
            else:
                runs.append(range(at, at + 1))
    return runs


def _length(layout: Layout, chunks: range) -> int:
    """The bytes of these chunks, or READ_BYTES if there are more."""
    total = 0
    for at in chunks:
        total += layout.length(at)
        if total >= READ_BYTES:
            return READ_BYTES
    return total
