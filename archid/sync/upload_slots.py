"""Upload slots: how many spans are read and sent at once, whoever asks for them.

A request waits in its peer's queue, which the protocol bounds, and then for a slot, in turn with
those of other peers; who has waited for too long is told that this node is busy and asks elsewhere
or later. The choice among several spans is made once there is a slot, as late as it can be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from archid.net.errors import Refusal
from protocol.messages import ErrorCode

SLOTS: Final = 200
"""Spans of about 1 MiB that are in memory for being sent, besides what connections queue; enough
that slow lines which keep a slot for seconds leave some to others."""
LONGEST_WAIT_S: Final = 8.0
"""Less than it takes until a peer that hears nothing asks elsewhere."""


class UploadSlots:
    """The slots of one node."""

    def __init__(self, slots: int = SLOTS, *, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self._limiter = trio.CapacityLimiter(slots)
        self._longest_wait_s = longest_wait_s

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a slot. Raises Refusal (busy) when none was free for too long."""
        holder = object()
        with trio.move_on_after(self._longest_wait_s) as timer:
            await self._limiter.acquire_on_behalf_of(holder)
        if timer.cancelled_caught:
            raise Refusal(ErrorCode.BUSY, "every upload slot of this node is taken")
        try:
            yield
        finally:
            self._limiter.release_on_behalf_of(holder)
