"""How this process uses the interpreter and the C library: set once at start.

The settings are worth their lines because they were measured (`bench/README.md`); none of them
changes what the daemon does.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0005
"""A thread that hashes or encrypts gives up the interpreter's lock and waits up to this long to
get it back from a busy one; the usual 5 ms stall a transfer that hashes small chunks."""

KEEP_FREED_BYTES: Final = 32 * 1024 * 1024
"""Freed memory that stays with the process: given back span by span, it would be page-faulted in
again for each."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_libc: Final = ctypes.CDLL(None)


def prepare_process() -> None:
    """Use all the descriptors allowed, switch threads sooner, and keep freed memory for a while."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_TRIM_THRESHOLD, KEEP_FREED_BYTES)
        _libc.mallopt(_M_MMAP_THRESHOLD, KEEP_FREED_BYTES)
        # `malloc_trim` gives back the end of the main arena only: threads with arenas of their own
        # would each keep up to KEEP_FREED_BYTES there with nothing in it, for ever.
        _libc.mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Return what was freed to the system; for a node that has come to rest."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
