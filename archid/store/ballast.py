"""A file that only takes up space, to be given up when a full disk would stop a person's rollback.

The bytes are few: enough for a link, a journal entry and what a database writes around it. It is
made again as soon as there is space for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from archid.log import get_logger
from archid.store.errors import DiskFull

log = get_logger(__name__)

SIZE_BYTES: Final = 4 << 20

_T = TypeVar("_T")


class Ballast:
    """One file in the state folder; methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> None:
        """Make the file if it is not there whole and the disk has space for it; else do nothing."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_blocks * 512 >= SIZE_BYTES:
                return
        fd = -1
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(fd, 0, SIZE_BYTES)
        except OSError:
            self._throw()
        finally:
            if fd >= 0:
                os.close(fd)

    def spend(self, work: Callable[[], _T]) -> _T:
        """Do what must succeed: once more, without the ballast, if the disk is full."""
        try:
            return work()
        except DiskFull as error:
            if not self._throw():
                raise
            log.warning("ballast_thrown", why=error.sentence)
            return work()

    def _throw(self) -> bool:
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
