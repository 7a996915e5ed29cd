"""Has the disk begin with what was written while more is to come, so that the sync at the end is
short.
"""

from __future__ import annotations

import os
import threading

from archid.store import syscalls


class Writeback:
    """One start at a time, in a thread of its own: a disk that is busy takes its time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self, fd: int) -> None:
        """Begin with the dirty pages of a file, unless a start is still under way."""
        if self._thread is not None and self._thread.is_alive():
            return
        own = os.dup(fd)

        def write_back() -> None:
            try:
                syscalls.start_writeback(own)
            finally:
                os.close(own)

        self._thread = threading.Thread(target=write_back, name="writeback", daemon=True)
        self._thread.start()
