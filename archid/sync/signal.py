"""One thing changed, several tasks want to know: a counter that can be waited on.

A waiter says which version it has seen, so a change between looking and waiting is never lost,
and any number of changes in between cost it one wake-up.
"""

from __future__ import annotations

import trio


class Signal:
    """A version number that grows with each `fire`."""

    def __init__(self) -> None:
        self.version = 0
        self._event = trio.Event()

    def fire(self) -> None:
        """Wake every waiter."""
        self.version += 1
        self._event.set()
        self._event = trio.Event()

    async def wait(self, seen: int) -> int:
        """Return the current version as soon as it differs from `seen`."""
        while self.version == seen:
            await self._event.wait()
        return self.version


async def either(*signals: tuple[Signal, int]) -> None:
    """Return as soon as one of several (signal, seen version) pairs has moved on."""
    async with trio.open_nursery() as nursery:

        async def wait(signal: Signal, seen: int) -> None:
            await signal.wait(seen)
            nursery.cancel_scope.cancel()

        for signal, seen in signals:
            nursery.start_soon(wait, signal, seen)
