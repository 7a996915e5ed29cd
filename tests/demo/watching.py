"""Looks at every node over its control socket, a few times a second, each in a thread of its own.

What is shown and what is waited for comes from here: how much a node holds, how fast content
comes in and from whom, whether it has switched. Counters of daemons that end are kept.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from archid.errors import ArchidError
from tests.demo.story import NodeView, Story
from tests.fleet.local import FleetNode

LOOK_EVERY_S: Final = 0.2
RATE_WINDOW_S: Final = 1.5

_Counters = dict[tuple[str, int], int]
"""By peer and the daemon's start: what an earlier life of a daemon counted counts, too."""

Views = Mapping[str, NodeView]


class NotInTime(Exception):
    """What was waited for did not happen."""


class Watcher:
    """Follows the nodes that it was told of, until it is closed."""

    def __init__(self, story: Story, release: str) -> None:
        self._story = story
        self._release = release
        self._views: dict[str, NodeView] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def follow(self, node: FleetNode) -> None:
        """Look at this node from now on."""
        thread = threading.Thread(target=self._follow, args=(node,), name=f"watch {node.name}")
        thread.daemon = True  # a daemon that hangs must not keep the demo from ending
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=5)

    @property
    def views(self) -> Views:
        with self._changed:
            return dict(self._views)

    def wait(self, condition: Callable[[Views], bool], *, timeout_s: float) -> Views:
        """Return the first views that fulfil it. Raises NotInTime, and what `condition` raises."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition(self._views):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise NotInTime
                self._changed.wait(min(left_s, 1.0))  # Ctrl-C gets through once a second
            return dict(self._views)

    def _follow(self, node: FleetNode) -> None:
        look = _Look(node, self._release)
        while not self._closing.is_set():
            try:
                view = look.again()
            except ArchidError:
                view = replace(look.last, running=False, rate_bytes_per_s=0.0)
            with self._changed:
                self._views[node.name] = view
                self._changed.notify_all()
            self._story.put(view)
            self._closing.wait(LOOK_EVERY_S)


class _Look:
    """One node's view from call to call."""

    def __init__(self, node: FleetNode, release: str) -> None:
        self.last = NodeView(node.name)
        self._node = node
        self._release = release
        self._received: _Counters = {}
        self._given: _Counters = {}
        self._marks: deque[tuple[float, int]] = deque()

    def again(self) -> NodeView:
        """How it stands now. Raises ArchidError."""
        status = self._node.status()
        scripts = self._node.call("scripts")["scripts"]
        sources = self._count(status, self._received, "content_received_bytes")
        self._sent = self._count(status, self._given, "content_sent_bytes")
        wanted = sum(script["size_bytes"] for script in scripts)
        delivery = next((one for one in status["deliveries"] if one["name"] == self._release), None)
        if any(one["size_bytes"] is None for one in (delivery or {}).get("scripts", ())):
            wanted = 0  # a manifest is still on its way: a part of the sum would mislead
        self.last = NodeView(
            name=self._node.name,
            site=status["site"],
            running=True,
            held_bytes=sum(script["held_bytes"] for script in scripts),
            wanted_bytes=wanted,
            rate_bytes_per_s=self._rate(sum(sources.values())),
            sources=tuple(sources.most_common()),
            sent=tuple(self._sent.most_common()),
            generation=_active_generation(delivery),
            problem=_problem(delivery, status["now_s"]),
        )
        return self.last

    def _count(self, status: dict[str, Any], counters: _Counters, key: str) -> Counter[str]:
        for node in status["traffic"]["nodes"]:
            if amount := node[key]:
                counters[node["name"], status["started_s"]] = amount
        amounts: Counter[str] = Counter()
        for (name, _), amount in counters.items():
            amounts[name] += amount
        return amounts

    def _rate(self, received_bytes: int) -> float:
        now = time.monotonic()
        self._marks.append((now, received_bytes))
        while len(self._marks) > 2 and self._marks[1][0] < now - RATE_WINDOW_S:
            self._marks.popleft()
        then, before = self._marks[0]
        return (received_bytes - before) / (now - then) if now > then else 0.0


def _active_generation(delivery: dict[str, Any] | None) -> int:
    return delivery["generation"] if delivery and delivery["state"] == "active" else 0


def _problem(delivery: dict[str, Any] | None, now_s: int) -> str:
    if delivery is None:
        return ""
    if delivery["state"] == "failed":
        return str(delivery["reason"])
    if delivery["state"] == "ready" and delivery["start_s"] > now_s:
        start = time.strftime("%Y-%m-%d", time.gmtime(delivery["start_s"]))
        return f"holds the release but has not switched to it: it starts on {start}"
    return ""
