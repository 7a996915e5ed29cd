"""Writing files that came whole: made with their last mode, written, dated and closed at once.

A tree of small files is mostly these. What they cost is system calls, which give up the
interpreter's lock, and of those what the kernel does for each new page; so a batch is shared with
a second thread. What is counted as held is `archid.store.staging`'s.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from archid.store import syscalls
from archid.store.tree_folder import TreeFolder
from protocol.entries import FileEntry

SHARED_FROM: Final = 16
"""Fewer files are not worth waking another thread for."""


class WholeFile(NamedTuple):
    """A file and all its bytes, which were verified just now."""

    file: FileEntry
    data: memoryview


class Written(NamedTuple):
    """What became of a batch: how many of the first were written, and what then went wrong."""

    done: int
    error: OSError | None


class WholeFiles:
    """Writes into one tree; one batch at a time."""

    def __init__(self, folder: TreeFolder) -> None:
        """`folder` stays the caller's, who does not use it while a batch is written."""
        self._folder = folder
        self._beside: TreeFolder | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._keeps_modes: bool | None = None
        """Whether a new file has the mode it was asked for: no umask takes any of it away."""

    def close(self) -> None:
        """Let go of the second thread and its descriptors."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def write(self, files: Sequence[WholeFile]) -> list[tuple[Sequence[WholeFile], Written]]:
        """Write a batch; answers for each part of it what became of it."""
        if len(files) < SHARED_FROM or self._keeps_modes is None:
            return [(files, self._write(self._folder, files))]
        if self._pool is None or self._beside is None:
            self._pool = ThreadPoolExecutor(1, "archid-files")
            self._beside = self._folder.again()
        first, second = files[: len(files) // 2], files[len(files) // 2 :]
        beside = self._pool.submit(self._write, self._beside, second)
        written = self._write(self._folder, first)
        return [(first, written), (second, beside.result())]

    def _write(self, folder: TreeFolder, files: Sequence[WholeFile]) -> Written:
        done = 0
        try:
            for file, data in files:
                self._write_one(folder, file, data)
                done += 1
        except OSError as error:
            return Written(done, error)
        return Written(done, None)

    def _write_one(self, folder: TreeFolder, file: FileEntry, data: memoryview) -> None:
        mode = file.mode
        fd = folder.create_file(file.path, mode)
        try:
            syscalls.pwrite_all(fd, data, 0)
            if self._keeps_modes is None:
                self._keeps_modes = stat.S_IMODE(os.fstat(fd).st_mode) == mode
            if not self._keeps_modes or file.executable:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
        finally:
            os.close(fd)
