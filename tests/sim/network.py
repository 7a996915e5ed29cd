"""A network and a clock of the simulator: events in order of time, lines that delay and go dark.

Nothing here knows what is said. A connection carries messages in order, each after the line's
delay; a line that is cut swallows them, and both ends notice only when they have heard nothing for
long, as over TCP. Everything is drawn from one seed, and everything that happens goes into a hash:
one seed is one run.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from blake3 import blake3

from protocol.ids import NodeId

DEAD_S: Final = 60.0
"""After this long without a sign of life a connection is given up."""
DIAL_S: Final = 20.0
"""So long an attempt waits for an answer."""


class Host(Protocol):
    """What the network tells a node."""

    node: NodeId

    def connected(self, link: Link, other: NodeId, *, dialled: bool) -> None: ...

    def disconnected(self, link: Link, other: NodeId, *, busy: bool) -> None: ...

    def dial_failed(self, other: NodeId) -> None: ...


@dataclass(eq=False)
class Link:
    """A connection between two nodes; `dark` swallows what is sent."""

    dialler: NodeId
    other: NodeId
    delay_s: float
    dark: bool = False
    gone: set[NodeId] = field(default_factory=set)
    """The ends that know that it is over."""

    def far(self, node: NodeId) -> NodeId:
        return self.other if node == self.dialler else self.dialler


class Network:
    """Time, lines and who is there."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.hosts: dict[NodeId, Host] = {}
        self.silent: set[NodeId] = set()
        """Of those that are away: those that answer nothing at all, not even with a reset."""
        self.side: dict[NodeId, int] = {}
        """On which side of a cut a node is."""
        self.links: dict[frozenset[NodeId], Link] = {}
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.heard_bytes: Counter[NodeId] = Counter()
        """What has arrived at each node."""
        self.events = 0
        self._delays: dict[frozenset[NodeId], float] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._hash = blake3()

    # Time

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (max(when, self.now), self._count, action))

    def later(self, wait_s: float, action: Callable[[], None]) -> None:
        self.at(self.now + wait_s, action)

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Until `done`, which is looked at every simulated second, or a time; whether done."""
        look_at = self.now
        while self._queue and self._queue[0][0] <= until:
            if done is not None and self._queue[0][0] >= look_at:
                if done():
                    return True
                look_at = self._queue[0][0] + 1.0
            self.now, _, action = heapq.heappop(self._queue)
            self.events += 1
            action()
        self.now = until
        return done is not None and done()

    def note(self, *what: object) -> None:
        """Put something that happened into the hash."""
        self._hash.update(repr((self.now, *what)).encode())

    @property
    def log_hash(self) -> str:
        return self._hash.hexdigest()

    # Lines

    def reachable(self, one: NodeId, other: NodeId) -> bool:
        present = one in self.hosts and other in self.hosts
        return present and self.side.get(one, 0) == self.side.get(other, 0)

    def dial(self, dialler: NodeId, other: NodeId) -> None:
        """TCP and TLS, then both are told; or a refusal, or a time-out."""
        delay_s = self._delay_s(dialler, other)
        self.later(3 * delay_s, lambda: self._dialled(dialler, other, delay_s))

    def send(self, link: Link, sender: NodeId, kind: str, data: bytes | int,
             deliver: Callable[[], None]) -> None:  # fmt: skip
        """Deliver after the line's delay; `data` are the bytes, or their number."""
        size = data if isinstance(data, int) else len(data)
        self.messages[kind] += 1
        self.bytes[kind] += size
        receiver = link.far(sender)

        def arrive() -> None:
            if not link.dark and receiver not in link.gone and receiver in self.hosts:
                self.heard_bytes[receiver] += size
                self.note(sender, receiver, kind, data)
                deliver()

        self.later(link.delay_s, arrive)

    def end(self, link: Link, by: NodeId, *, busy: bool = False) -> None:
        """One end says goodbye."""
        self._over(link, by, busy=False)
        if not link.dark:
            far = link.far(by)
            self.later(link.delay_s, lambda: self._over(link, far, busy=busy))

    def cut(self, side: dict[NodeId, int]) -> None:
        """Divide the nodes; an empty mapping heals the cut."""
        self.note("cut", sorted(side.items()))
        self.side = dict(side)
        for link in list(self.links.values()):
            if not self.reachable(link.dialler, link.other):
                self._darken(link)

    def vanish(self, node: NodeId, *, silent: bool) -> None:
        """A node is gone at once: killed, so that its machine resets, or without power."""
        self.note("vanish", node, silent)
        del self.hosts[node]
        if silent:
            self.silent.add(node)
        for link in [one for one in self.links.values() if node in (one.dialler, one.other)]:
            link.gone.add(node)
            far = link.far(node)
            if silent:
                self._darken(link)
            else:
                self.links.pop(frozenset((node, far)), None)
                self.later(link.delay_s, lambda link=link, far=far: self._over(link, far))  # type: ignore[misc]

    def _dialled(self, dialler: NodeId, other: NodeId, delay_s: float) -> None:
        if dialler not in self.hosts:
            return
        both = frozenset((dialler, other))
        if both in self.links and not self.links[both].dark:
            return
        if not self.reachable(dialler, other):
            refused = other not in self.hosts and other not in self.silent
            wait_s = 0.0 if refused else DIAL_S
            self.later(wait_s, lambda: self._failed(dialler, other))
            return
        if (old := self.links.get(both)) is not None:
            for end in sorted(both):
                self._over(old, end)  # it has lost that one, whose place the new one takes
        link = self.links[both] = Link(dialler, other, delay_s)
        self.note("link", dialler, other)
        self.hosts[dialler].connected(link, other, dialled=True)
        if dialler not in link.gone:
            self.hosts[other].connected(link, dialler, dialled=False)

    def _failed(self, dialler: NodeId, other: NodeId) -> None:
        if dialler in self.hosts:
            self.hosts[dialler].dial_failed(other)

    def _darken(self, link: Link) -> None:
        link.dark = True
        for end in (link.dialler, link.other):
            self.later(
                self.random.uniform(0.5, 1.0) * DEAD_S,
                lambda end=end: self._over(link, end),  # type: ignore[misc]
            )

    def _over(self, link: Link, end: NodeId, *, busy: bool = False) -> None:
        if end in link.gone:
            return
        link.gone.add(end)
        both = frozenset((link.dialler, link.other))
        if self.links.get(both) is link and (not link.dark or len(link.gone) == 2):
            del self.links[both]
        if end in self.hosts:
            self.note("over", end, link.far(end))
            self.hosts[end].disconnected(link, link.far(end), busy=busy)

    def _delay_s(self, one: NodeId, other: NodeId) -> float:
        both = frozenset((one, other))
        if both not in self._delays:
            # From the two names alone, so that it does not depend on who came first.
            mixed = Random(int.from_bytes(min(both), "big") ^ 3 * int.from_bytes(max(both), "big"))
            self._delays[both] = mixed.uniform(0.005, 0.120)
        return self._delays[both]
