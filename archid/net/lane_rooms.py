"""What the lanes of a process share: threads to work in, and room for one span each.

Room is lent to whichever lane is busy: an idle lane has none of its own. A buffer of a MiB that is
made for each span costs more in page faults than the span's cipher.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from protocol.lane import SPAN_ROOM_BYTES

KEPT: Final = 4
AT_ONCE: Final = 16
"""Lanes that receive at the same moment, and lanes that send."""


class Rooms:
    """Buffers of SPAN_ROOM_BYTES; safe in any thread, since a list's own steps are atomic."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """A buffer, with anything in it."""
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(bytearray(SPAN_ROOM_BYTES))

    def give_back(self, room: memoryview) -> None:
        """It is used no more, nor any view of it."""
        if len(self._free) < KEPT:
            self._free.append(room)

    @contextmanager
    def one(self) -> Iterator[memoryview]:
        """A buffer for the block."""
        room = self.take()
        try:
            yield room
        finally:
            self.give_back(room)

    def release(self) -> None:
        """Let go of what nobody uses; for a node that has come to rest."""
        self._free.clear()


ROOMS: Final = Rooms()
"""One for the process, as memory is."""


class Threads:
    """How many lanes do the same thing in worker threads at once, in each run of the event loop."""

    def __init__(self, name: str) -> None:
        self._of_run: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar(name)

    @property
    def limiter(self) -> trio.CapacityLimiter:
        """For this run of the event loop."""
        try:
            return self._of_run.get()
        except LookupError:
            limiter = trio.CapacityLimiter(AT_ONCE)
            self._of_run.set(limiter)
            return limiter


BURSTS: Final = Threads("lane_bursts")
RUNS: Final = Threads("lane_runs")
