"""Has the store verify and write spans in worker threads, several a hop when several wait.

A hop into a thread costs about as much as the hashing of half a span, and threads that write side
by side mostly wait for one another, so one thread takes all that has come while it was away.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import trio

from archid.store.errors import ChunkCorrupt
from archid.store.filling import Filling, SpanBytes


@dataclass(eq=False)
class _Waiting:
    """A span that has come and is not yet written, or whose outcome is not yet taken."""

    received: SpanBytes
    done: bool = False
    fault: ChunkCorrupt | None = None


class SpanWriter:
    """Writes into one version; any number of tasks may wait for their spans."""

    def __init__(self, filling: Filling) -> None:
        self._filling = filling
        self._turn = trio.StrictFIFOLock()
        self._waiting: list[_Waiting] = []
        self._at_work = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._taking = 0
        self._closed = False

    def take(self, received: SpanBytes) -> None:
        """Verify and write a span in the calling thread, where it has come; raises as `write`.

        Nothing is done any more after `close`: nobody waits for it then.
        """
        with self._at_work:
            if self._closed:
                return
            self._taking += 1
            self._idle.clear()
        try:
            self._filling.write_span(*received)
        finally:
            with self._at_work:
                self._taking -= 1
                if not self._taking:
                    self._idle.set()

    async def close(self) -> None:
        """From now on nothing is taken; returns when what was being taken is counted."""
        with self._at_work:
            self._closed = True
        if not self._idle.is_set():
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._idle.wait)

    async def write(self, received: SpanBytes) -> None:
        """Return when the span is verified and written.

        Raises ChunkCorrupt (nothing of it was written), StorageError. Cancelled, it returns when
        the thread is done: what is being written ends up counted.
        """
        mine = _Waiting(received)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if not mine.done:
                    await self._write_waiting()
        finally:
            if not mine.done:
                self._waiting.remove(mine)
        if mine.fault is not None:
            raise mine.fault

    async def _write_waiting(self) -> None:
        batch = tuple(self._waiting)
        faults = await trio.to_thread.run_sync(
            self._filling.write_spans, [one.received for one in batch]
        )
        for one, fault in zip(batch, faults, strict=True):
            one.done, one.fault = True, fault
            if one in self._waiting:  # whoever was cancelled meanwhile has taken itself out
                self._waiting.remove(one)
