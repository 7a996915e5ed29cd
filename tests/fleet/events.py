"""Listens to a daemon's events, from a moment on, so that a test waits for what it caused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Self

from archid.control.client import ControlClient, Conversation
from archid.errors import ArchidError
from tests.fleet.local import EVENT_TIMEOUT_S, FleetNode

Event = dict[str, Any]


class EventTap:
    """Subscribes when entered; what came so far is in `seen`, in order."""

    def __init__(self, node: FleetNode) -> None:
        self.node = node
        self.seen: list[Event] = []
        self._taken = 0
        self._conversation: Conversation | None = None

    def __enter__(self) -> Self:
        client = ControlClient(self.node.socket)
        self._conversation = client.start("events.subscribe", {"prefixes": []})
        first = self._next(EVENT_TIMEOUT_S)
        assert first["event"] == "events.subscribed", first
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._conversation is not None:
            self._conversation.close()

    def wait(
        self,
        name: str,
        condition: Callable[[Event], bool] = lambda _: True,
        *,
        timeout_s: float = EVENT_TIMEOUT_S,
    ) -> Event:
        """The next event of this name for which `condition` holds, after the last one returned."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._taken < len(self.seen):
                event = self.seen[self._taken]
                self._taken += 1
                if event["event"] == name and condition(event):
                    return event
            left_s = deadline - time.monotonic()
            try:
                if left_s <= 0:
                    raise TimeoutError
                self.seen.append(self._next(left_s))
            except (TimeoutError, ArchidError) as error:
                happened = "\n".join(json.dumps(event) for event in self.seen)
                raise AssertionError(
                    f"{self.node.name}: no {name} within {timeout_s:g} s ({error})\n{happened}\n"
                    f"{self.node.process.tail()}"
                ) from error

    def names(self) -> list[str]:
        """The names of the events so far."""
        return [event["event"] for event in self.seen]

    def _next(self, limit_s: float) -> Event:
        assert self._conversation is not None, "enter it first"
        self._conversation.limit_silence(limit_s)
        event = self._conversation.next_event()
        if event is None:
            raise AssertionError(f"{self.node.name} ended the subscription")
        return event
