"""When a file need not be read again: what its times and its inode prove, and what they do not.

A file that was read is known by its facts (size, times, inode, device) the next time only if no
change after the reading can leave them as they were. Three things could, and are met here:

- Times have a grain. A file that changed just before it was read may change again within the same
  grain (git calls it racily clean); it must have been at rest for longer.
- A page that is mapped and dirty can be written again without the times moving, until it is written
  back. So the file system is synced first: whatever is written through a map after that is noted.
- A long write sets the times when it begins. `SEEK_DATA` and, on XFS, reading wait for its end.

Only file systems that were looked at are believed: ext2 to ext4, XFS and btrfs. Network file
systems show what their server says, now or later; tmpfs does not note what is written through
maps. What is on those is read each time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from archid.store import syscalls

TRUSTED_FILE_SYSTEMS: Final = frozenset({0xEF53, 0x58465342, 0x9123683E})
"""Their numbers in statfs(2): ext2 to ext4, XFS, btrfs."""
GRAIN_NS: Final = 100_000_000
"""More than a clock tick, which is the grain where nanoseconds are kept: 1 to 10 ms."""
COARSE_GRAIN_NS: Final = 2_000_000_000
"""For whole seconds: all that an inode of 128 bytes has room for."""
_LONG_AT_REST_NS: Final = 600 * 1_000_000_000
"""No write(2), which takes at most 2 GiB, is still under way after this."""


class SettledSources:
    """Judges the files of one publication; any thread may ask."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` gives nanoseconds UTC, as the kernel dates files."""
        self._clock = clock
        self._lock = threading.Lock()
        self._synced_ns: dict[int, int | None] = {}

    def is_settled(self, descriptor: int, info: os.stat_result) -> bool:
        """Whether the facts in `info` will do for the bytes that are read from now on.

        To be asked before the first read; looking again afterwards, whether the facts still are
        the same, is the caller's. May take long once for each file system: it is synced.
        """
        device = info.st_dev
        with self._lock:
            if device not in self._synced_ns:
                self._synced_ns[device] = self._sync(descriptor)
            synced_ns = self._synced_ns[device]
        if synced_ns is None:
            return False
        changed_ns = info.st_ctime_ns
        grain_ns = GRAIN_NS if changed_ns % 1_000_000_000 else COARSE_GRAIN_NS
        if changed_ns + grain_ns >= synced_ns:
            return False
        if changed_ns + _LONG_AT_REST_NS >= synced_ns:
            syscalls.wait_for_writes(descriptor)
        return True

    def _sync(self, descriptor: int) -> int | None:
        """Sync the file system; when that began, or None where facts prove nothing."""
        try:
            if syscalls.file_system_type(descriptor) not in TRUSTED_FILE_SYSTEMS:
                return None
            began_ns = self._clock()
            syscalls.syncfs(descriptor)
        except OSError:
            return None
        return began_ns
