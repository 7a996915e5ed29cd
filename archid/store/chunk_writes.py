"""Which chunks are written in one call: those that follow one another in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from archid.store.chunk_reading import READ_BYTES
from archid.store.syscalls import Buffer


class ChunkWrite(NamedTuple):
    """The bytes of the chunk at `at`, which belong into the file numbered so, at an offset."""

    file: int
    offset: int
    at: int
    data: Buffer


class WriteRun(NamedTuple):
    """What is written from `offset` on, and the numbers of the chunks that are it."""

    offset: int
    parts: list[Buffer]
    chunks: list[int]


_POSITION: Final = itemgetter(0, 1)
_FILE: Final = itemgetter(0)


def by_file(writes: Iterable[ChunkWrite]) -> Iterator[tuple[int, list[ChunkWrite]]]:
    """The writes to each file in the order of their offsets, beside the file's number."""
    for number, group in groupby(sorted(writes, key=_POSITION), key=_FILE):
        yield number, list(group)


def write_runs(writes: Sequence[ChunkWrite], length_of: Callable[[int], int]) -> Iterator[WriteRun]:
    """Cut the writes to one file, in order, into runs of no more than about READ_BYTES."""
    first = 0
    while first < len(writes):
        offset = end = writes[first].offset
        parts: list[Buffer] = []
        last = first
        # No longer than this: what is counted after each run survives a disk that is full.
        while last < len(writes) and writes[last].offset <= end and end - offset < READ_BYTES:
            # The same chunk twice in one batch (asked of two peers) is written once.
            if writes[last].offset == end:
                parts.append(writes[last].data)
                end += length_of(writes[last].at)
            last += 1
        yield WriteRun(offset, parts, [write.at for write in writes[first:last]])
        first = last
