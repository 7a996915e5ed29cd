"""What waits to be sent on one connection: a queue bounded by bytes, and the task that empties it.

Whoever has something large to send waits for room first; small things that the protocol itself
sends are put at once. Frames are handed to the stream in the order they came, several at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from archid.net.tls import TLSStream
from protocol.frames import Buffer

_BATCH_BYTES: Final = 1024 * 1024


class Outbox:
    """The outgoing frames of one connection; `run` is its only writer."""

    def __init__(self, stream: TLSStream, limit_bytes: int) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._parts: deque[Buffer] = deque()
        self._filled = trio.Event()
        self._emptied = trio.Event()
        self._turn = trio.StrictFIFOLock()
        self._finished = False
        self.queued_bytes = 0
        """Not yet taken by the kernel, the batch that is being sent included."""

    def put(self, parts: Sequence[Buffer]) -> None:
        """Queue whole frames; never waits. Ignored after `finish` and `drop`."""
        if parts and not self._finished:
            self._parts.extend(parts)
            self.queued_bytes += sum(len(part) for part in parts)
            self._filled.set()

    @property
    def has_room(self) -> bool:
        """Whether less than the limit is queued and nobody waits to queue more."""
        return self.queued_bytes < self._limit_bytes and not self._turn.locked()

    async def wait_for_room(self) -> None:
        """Return when less than the limit is queued; those who want to send go in turn."""
        await trio.lowlevel.checkpoint()
        if self.queued_bytes >= self._limit_bytes:
            async with self._turn:
                await self.wait_until_below(self._limit_bytes)

    async def wait_for_bulk_room(self) -> None:
        """The same for content, which under a limit of this node queues little.

        What is told and asked meanwhile then waits behind one span and not behind several.
        """
        await self.wait_for_room()
        most_bytes = self._stream.pacer_out.queue_bytes
        if most_bytes is not None:
            await self.wait_until_below(most_bytes)

    async def wait_until_below(self, size_bytes: int) -> None:
        """Return when less than `size_bytes` are queued, or nothing will be sent any more."""
        while self.queued_bytes >= size_bytes and not self._finished:
            await self._emptied.wait()

    def finish(self) -> None:
        """Nothing more will be put: `run` returns once all is sent."""
        self._finished = True
        self._filled.set()
        self._wake_waiters()

    def drop(self) -> None:
        """Forget what is queued, since the connection is gone."""
        self._parts.clear()
        self.queued_bytes = 0
        self.finish()

    async def run(self) -> None:
        """Send until `finish`, then TLS's goodbye. Raises PeerLost and TlsRefused."""
        while True:
            await self._filled.wait()
            while self._parts:
                batch, size_bytes = self._take()
                await self._stream.send_all(batch)
                self.queued_bytes = max(0, self.queued_bytes - size_bytes)
                self._wake_waiters()
            if self._finished:
                await self._stream.send_eof()
                return
            self._filled = trio.Event()

    def _take(self) -> tuple[list[Buffer], int]:
        batch: list[Buffer] = []
        size_bytes = 0
        while self._parts and size_bytes < _BATCH_BYTES:
            part = self._parts.popleft()
            batch.append(part)
            size_bytes += len(part)
        return batch, size_bytes

    def _wake_waiters(self) -> None:
        self._emptied.set()
        self._emptied = trio.Event()
