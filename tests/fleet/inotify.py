"""Waits for something to happen to files, without polling: Linux' inotify by ctypes.

For tests that have to act at the moment when a process opens, makes or removes a file.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Self

OPEN: Final = 0x20
CREATE: Final = 0x100
DELETE: Final = 0x200
MOVED_TO: Final = 0x80
IS_FOLDER: Final = 0x40000000

_HEADER: Final = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Happened(NamedTuple):
    """One event: a mask of the constants above, and the file's name in the watched folder."""

    mask: int
    name: str


class FileWatch:
    """Watches one folder, or one file, from the moment it is made; a context manager."""

    def __init__(self, path: Path, mask: int) -> None:
        self.path = path
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC)
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, os.fsencode(path), mask) < 0:
            raise OSError(ctypes.get_errno(), f"inotify on {path}")
        self._waiting: list[Happened] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)

    def wait(
        self,
        condition: Callable[[Happened], bool] = lambda _: True,
        *,
        timeout_s: float = 30.0,
    ) -> Happened:
        """The next event for which `condition` holds; AssertionError when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            while self._waiting:
                event = self._waiting.pop(0)
                if condition(event):
                    return event
            if select.select([self._fd], [], [], left_s)[0]:
                self._waiting += _events(os.read(self._fd, 65536))
        raise AssertionError(f"nothing of the kind happened in {self.path} in {timeout_s:g} s")

    def happens_within(self, seconds: float) -> bool:
        """Whether anything has happened, or does in this time; it can be waited for afterwards."""
        return bool(self._waiting or select.select([self._fd], [], [], seconds)[0])


def _events(data: bytes) -> list[Happened]:
    found = []
    while data:
        _, mask, _, length = _HEADER.unpack_from(data)
        name = data[_HEADER.size : _HEADER.size + length].rstrip(b"\0")
        found.append(Happened(mask, os.fsdecode(name)))
        data = data[_HEADER.size + length :]
    return found
