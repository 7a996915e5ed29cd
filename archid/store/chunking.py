"""Cutting a stream into chunks and naming them, while it is read.

The cut points are part of the format (`protocol.chunking_profile`), so only the compiled core of
pyfastcdc that the vectors were made with is used; the pure Python one is a hundred times slower
and is refused. `cut` reads into large buffers of its own and cuts there. It gives the same chunks
as `FastCDC.cut_stream`, at the same speed, but leaves what was read alone for a while, so that
another thread can write it. Mapping the file instead would be shorter, but a file that is truncated
meanwhile then kills the process.

Where the bytes come from and go to is the caller's affair, see `archid.store.ingest`.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from blake3 import blake3
from pyfastcdc import FastCDC

from archid.errors import UsageError
from protocol.chunking_profile import DEFAULT_PROFILE, PROFILES

BUFFER_BYTES: Final = 1 << 20
"""Of each buffer. 256 KiB to 1 MiB cut equally fast; 2 and 4 MiB a tenth slower, as they no longer
fit the cache. Larger means fewer reads, and fewer handovers to a writing thread."""
BUFFERS: Final = 4
"""They take turns. With two, who cuts and who writes wait for one another at every buffer."""
ALIGNED_BYTES: Final = 4096
"""Where a buffer begins to be filled, in memory and, if every read fills it, in the stream: what is
read there can be written past the page cache."""

COMPILED_CORE: Final = "pyfastcdc.cy"


class Reader(Protocol):
    """What is cut: an open binary file, or anything that reads like one."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the start of `buffer`; the number of bytes, 0 only at the end."""
        ...


class CutChunk(NamedTuple):
    """A chunk; `id` is the digest that a ChunkId wraps, `data` is valid until the next chunk."""

    id: bytes
    length: int
    data: memoryview


class Cutter:
    """Cuts one stream after another; keeps its buffers. One thread at a time.

    The buffers take turns, so what `readinto` filled stays untouched for BUFFERS - 1 more reads: a
    reader may still be writing it elsewhere while it is cut.

    Both FastCDC and BLAKE3 release the interpreter while they work, so several threads with a
    cutter each gain from more cores.
    """

    def __init__(self, profile: int = DEFAULT_PROFILE, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Raises UsageError when pyfastcdc came without its compiled core, KeyError for an
        unknown profile."""
        require_compiled_core()
        chosen = PROFILES[profile]
        self._minimum = chosen.minimum_bytes
        self._maximum = chosen.maximum_bytes
        self._fastcdc = FastCDC(
            chosen.average_bytes,
            min_size=chosen.minimum_bytes,
            max_size=chosen.maximum_bytes,
            # pyfastcdc types this as one of four literals
            normalized_chunking=chosen.normalization,  # type: ignore[arg-type]
            seed=chosen.seed,
        )
        size = max(buffer_bytes, 2 * self._maximum)
        # What is left of the buffer before comes in front of what is read, which so stays aligned.
        self._front = -(-self._maximum // ALIGNED_BYTES) * ALIGNED_BYTES
        room = self._front + size
        self._buffers = deque(memoryview(mmap.mmap(-1, room)) for _ in range(BUFFERS))

    def cut(self, reader: Reader) -> Iterator[CutChunk]:
        """The chunks of everything that `reader` has left. Raises what `reader` raises."""
        maximum, front = self._maximum, self._front
        buffer = self._buffers[0]
        start = end = front
        ended = False
        while True:
            while end < len(buffer) and not ended:
                count = reader.readinto(buffer[end:])
                end += count or 0
                ended = not count
            if 0 < end - start <= self._minimum:
                # Only the end of a stream is this short, and it is one chunk; small files are many.
                data = buffer[start:end]
                yield CutChunk(blake3(data).digest(), len(data), data)
                return
            cuts = self._fastcdc.cut_buf(buffer[start:end])
            # Where a chunk ends depends on up to `maximum` bytes, so those must be there.
            while end - start >= maximum or (ended and start < end):
                chunk = next(cuts)
                yield CutChunk(blake3(chunk.data).digest(), chunk.length, chunk.data)
                start += chunk.length
            if ended:
                return
            left = end - start
            self._buffers.rotate()
            following = self._buffers[0]
            following[front - left : front] = buffer[start:end]
            buffer, start, end = following, front - left, front

    def cut_table(self, data: bytes) -> bytes:
        """The chunk table (`protocol.pieces`) of a whole small file; the same chunks as `cut`."""
        if len(data) <= self._minimum:
            return blake3(data).digest() + len(data).to_bytes(4, "big") if data else b""
        return b"".join(
            [
                blake3(chunk.data).digest() + chunk.length.to_bytes(4, "big")
                for chunk in self._fastcdc.cut_buf(data)
            ]
        )


def require_compiled_core() -> None:
    """Raise UsageError unless pyfastcdc runs compiled."""
    if not FastCDC.__module__.startswith(COMPILED_CORE):
        raise UsageError(
            "pyfastcdc is installed without its compiled core, which archid needs to cut files",
            remedy="Install the wheel for this Python and machine, or a C compiler and install it"
            " again",
            code="no_compiled_core",
        )
