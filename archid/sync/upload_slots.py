"""Upload slots: how many spans are read and sent at once, whoever asks for them.

A request waits in its peer's queue, which the protocol bounds, and then for a slot. A free slot
goes to the peer that holds the fewest, of several to the one that waits longest: who asks for much
at once gets no more than others. Who has waited for too long is told that this node is busy and
asks elsewhere or later. The choice among several spans is made once there is a slot, as late as it
can be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from archid.net.errors import Refusal
from protocol.messages import ErrorCode

SLOTS: Final = 200
"""Spans of about 1 MiB that are in memory for being sent, besides what connections queue; enough
that slow lines which keep a slot for seconds leave some to others."""
LONGEST_WAIT_S: Final = 8.0
"""Less than it takes until a peer that hears nothing asks elsewhere."""
SLOT_RATE: Final = 64_000
"""Bytes a second that a slot should have: a span in 16 s, well before its receiver gives it up."""
FEWEST_SLOTS: Final = 2
"""One is sent while the next is read."""


@dataclass(eq=False)
class _Waiter:
    peer: Hashable
    came: trio.Event = field(default_factory=trio.Event)


class UploadSlots:
    """The slots of one node."""

    def __init__(self, slots: int = SLOTS, *, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self.limit = slots
        """How many there are now."""
        self.refused = 0
        """Requests that were told that this node is busy, since the start."""
        self._longest_wait_s = longest_wait_s
        self._held: Counter[Hashable] = Counter()
        self._waiting: list[_Waiter] = []

    @property
    def in_use(self) -> int:
        return self._held.total()

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def set_limit(self, slots: int, rate: int | None = None) -> None:
        """So many from now on, or fewer where `rate` (bytes a second) has to do for all of them.

        Spans that are on their way are not stopped.
        """
        fitting = slots if rate is None else rate // SLOT_RATE
        self.limit = max(1, min(slots, max(FEWEST_SLOTS, fitting)))
        self._hand_out()

    @asynccontextmanager
    async def one(self, peer: Hashable) -> AsyncIterator[None]:
        """Hold a slot for a peer. Raises Refusal (busy) when none was free for too long."""
        waiter = _Waiter(peer)
        self._waiting.append(waiter)
        self._hand_out()
        try:
            with trio.move_on_after(self._longest_wait_s):
                await waiter.came.wait()
            if not waiter.came.is_set():
                self.refused += 1
                raise Refusal(ErrorCode.BUSY, "every upload slot of this node is taken")
            yield
        finally:
            if waiter.came.is_set():
                self._give_back(peer)
            else:
                self._waiting.remove(waiter)

    def _give_back(self, peer: Hashable) -> None:
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self.in_use < self.limit:
            # Of equals the first, and they stand in the order in which they came.
            chosen = min(self._waiting, key=lambda one: self._held[one.peer])
            self._waiting.remove(chosen)
            self._held[chosen.peer] += 1
            chosen.came.set()
