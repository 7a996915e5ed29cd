"""What happens in the daemon, told to whoever listens.

Anything in the daemon may `publish`: it never waits and never fails, so that a slow listener can
hold up nobody. Each listener has a bounded queue; one that falls behind loses its subscription
rather than single events, because a gap that nobody notices is worse than an end that says why.
The log is for later, this is for now: `archid` and the tests wait on events instead of polling.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import trio

from archid.errors import Unavailable

QUEUE_EVENTS: Final = 4096

Event = dict[str, Any]


class SubscriberTooSlow(Unavailable):
    """This listener did not keep up and was dropped."""

    code = "too_slow"


class Subscription:
    """One listener's events, in order; iterate over it."""

    def __init__(self, *, prefixes: Sequence[str], queue_events: int) -> None:
        self._prefixes = tuple(prefixes)
        self._queue: deque[Event] = deque()
        self._queue_events = queue_events
        self._overflowed = False
        self._arrived = trio.Event()

    def _offer(self, event: Event) -> None:
        if self._overflowed or (self._prefixes and not event["event"].startswith(self._prefixes)):
            return
        if len(self._queue) >= self._queue_events:
            self._overflowed = True
            self._queue.clear()
        else:
            self._queue.append(event)
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; raises SubscriberTooSlow once, for good, if some were lost."""
        while not self._queue:
            if self._overflowed:
                raise SubscriberTooSlow(
                    f"This listener fell more than {self._queue_events} events behind",
                    remedy="Subscribe again and read faster, or to fewer kinds of events",
                )
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        return self._queue.popleft()


class EventHub:
    """Where events are published and listened to; belongs to one daemon and its trio thread."""

    def __init__(
        self, *, clock: Callable[[], float] = time.time, queue_events: int = QUEUE_EVENTS
    ) -> None:
        self._clock = clock
        self._queue_events = queue_events
        self._subscriptions: set[Subscription] = set()

    def publish(self, event: str, **fields: Any) -> None:
        """Tell every listener that `event` happened now; `fields` must be JSON values."""
        if not self._subscriptions:
            return
        told = {"event": event, "at_s": math.floor(self._clock() * 1000) / 1000, **fields}
        for subscription in self._subscriptions:
            subscription._offer(told)  # noqa: SLF001 - the hub is the only writer of the queue

    @asynccontextmanager
    async def subscribe(self, *, prefixes: Sequence[str] = ()) -> AsyncIterator[Subscription]:
        """Listen to events whose name starts with one of `prefixes` (none given: all)."""
        subscription = Subscription(prefixes=prefixes, queue_events=self._queue_events)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
