"""Reading a file that somebody else may be writing to, and copying it on the way.

A reader stops at the size that the file had when it was looked at, and says in words when the
bytes run out before. Whether the file changed otherwise is for the caller to find out from its
times when all is read. What the bytes are cut into is `archid.store.chunking`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from archid.store import syscalls
from archid.store.chunking import ALIGNED_BYTES, BUFFERS
from archid.store.errors import ChangedWhileReading, FileUnreadable, storage_error

_ZEROS: Final = memoryview(bytes(1 << 20))
_WRITEBACK_BYTES: Final = 8 << 20
"""As much is handed to the disk at a time while a file is copied, so that the sync at the end of a
tree finds little left. Smaller parts make smaller extents."""


class SourceReader:
    """Reads a descriptor to the size it had, whatever position it shares with other processes."""

    def __init__(self, path: str, fd: int, size_bytes: int, tick: Callable[[int], None]) -> None:
        self._path = path
        self._fd = fd
        self._size = size_bytes
        self._tick = tick
        self._offset = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """As io.RawIOBase.readinto."""
        wanted = min(len(buffer), self._size - self._offset)
        if not wanted:
            return 0
        count = self._read(buffer[:wanted], self._offset)
        if not count:
            raise ChangedWhileReading(self._path, "was truncated")
        self._offset += count
        self._tick(count)
        return count

    def _read(self, buffer: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._fd, [buffer], offset)
        except OSError as error:
            raise FileUnreadable(self._path, error) from error


class CopyingReader(SourceReader):
    """Also writes what it reads.

    Holes stay holes: they are neither read, which would fill the page cache with zeros, nor
    written. If one is filled meanwhile, the file's times say that it changed.
    """

    def __init__(
        self,
        path: str,
        fd: int,
        before: os.stat_result,
        tick: Callable[[int], None],
        *,
        target_fd: int,
        folder: Path,
        past_the_cache: bool = False,
    ) -> None:
        """`folder` is where the target is, for errors.

        With `past_the_cache` what is aligned is written to the disk directly, if that can be.
        """
        super().__init__(path, fd, before.st_size, tick)
        self._target_fd = target_fd
        self._folder = folder
        self._writer: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()
        self._ranges: list[tuple[int, int]] | None = None
        self._handed_over = 0
        self._past_the_cache = past_the_cache and syscalls.past_the_cache(target_fd, True)
        if before.st_blocks * 512 < before.st_size:
            try:
                self._ranges = list(syscalls.data_ranges(fd, before.st_size))
            except OSError as error:
                raise FileUnreadable(path, error) from error
            os.ftruncate(target_fd, before.st_size)

    @contextlib.contextmanager
    def writing_behind(self, writer: ThreadPoolExecutor) -> Iterator[None]:
        """Write in another thread while the caller cuts; all is written when this ends."""
        self._writer = writer
        try:
            yield
            self._wait_until_left(0)
        except BaseException:
            # The descriptor is about to be closed; nobody may write to its number then.
            for pending in self._pending:
                pending.exception()
            raise

    def _read(self, buffer: memoryview, offset: int) -> int:
        if self._ranges is not None:
            while self._ranges and self._ranges[0][1] <= offset:
                self._ranges.pop(0)
            start, stop = self._ranges[0] if self._ranges else (self._size, self._size)
            if offset < start:
                # Filling the buffer must not overtake the write of what it held before.
                self._wait_until_left(0)
                count = min(len(buffer), start - offset, len(_ZEROS))
                buffer[:count] = _ZEROS[:count]
                return count
            buffer = buffer[: stop - offset]
        count = super()._read(buffer, offset)
        if count and self._writer is None:
            self._write(buffer[:count], offset)
        elif count and self._writer is not None:
            # The buffer that the cutter fills next is to be none of those that are being written.
            self._wait_until_left(BUFFERS - 2)
            self._pending.append(self._writer.submit(self._write, buffer[:count], offset))
        return count

    def _wait_until_left(self, count: int) -> None:
        while len(self._pending) > count:
            self._pending.popleft().result()

    def _write(self, data: memoryview, offset: int) -> None:
        try:
            if self._past_the_cache and self._written_directly(data, offset):
                return
            syscalls.pwrite_all(self._target_fd, data, offset)
        except OSError as error:
            target = self._folder / self._path
            raise storage_error(error, target, needed_bytes=len(data)) from error
        end = offset + len(data)
        if end - self._handed_over >= _WRITEBACK_BYTES:
            syscalls.start_writeback(self._target_fd, self._handed_over, end - self._handed_over)
            self._handed_over = end

    def _written_directly(self, data: memoryview, offset: int) -> bool:
        """False if it has to be written through the page cache, as all that follows then is."""
        if not (len(data) % ALIGNED_BYTES or offset % ALIGNED_BYTES):
            try:
                syscalls.pwrite_all(self._target_fd, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return True
        self._past_the_cache = False
        syscalls.past_the_cache(self._target_fd, False)
        return False
