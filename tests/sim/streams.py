"""Connections of the simulator: bytes in order, over lines that all connections share.

A node has a line each way, a site one for what comes in. What is sent at the same time shares the
lines as TCP's connections do in the end, max-min fairly (Bertsekas and Gallager, Data Networks,
6.5.2): the narrowest line is divided evenly, what is left of the others goes to the rest. A sender
may hand over more than has gone out: that much waits in its kernel, where nobody can change his
mind about it.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

NEVER: Final = math.inf
_ROUNDING: Final = 1e-3
"""Bytes: what is less than that has gone out."""

Action: TypeAlias = Callable[[], None]
Line: TypeAlias = Hashable


@dataclass(eq=False)
class _Item:
    left_bytes: float
    arrived: Action


@dataclass(eq=False)
class _Connection:
    lines: tuple[Line, ...]
    items: deque[_Item] = field(default_factory=deque)
    backlog_bytes: float = 0.0
    taken: deque[tuple[float, Action]] = field(default_factory=deque)
    """What to call once no more waits than so many bytes."""
    rate: float = 0.0


class Streams:
    """All connections; time is given, and goes forward only."""

    def __init__(self, rates: Mapping[Line, float], *, kernel_bytes: float) -> None:
        self._rates = rates
        self._kernel_bytes = kernel_bytes
        self._connections: dict[tuple[int, int], _Connection] = {}
        self._busy: list[_Connection] = []
        self._now = 0.0

    def send(
        self,
        sender: int,
        receiver: int,
        lines: tuple[Line, ...],
        size_bytes: float,
        arrived: Action,
        taken: Action | None = None,
    ) -> None:
        """Put something behind what is on its way from one to the other.

        `taken` is called when the kernel has all of it, `arrived` when it has gone through.
        """
        connection = self._connections.get((sender, receiver))
        if connection is None:
            connection = self._connections[sender, receiver] = _Connection(lines)
        if not connection.items:
            self._busy.append(connection)
        connection.items.append(_Item(size_bytes, arrived))
        connection.backlog_bytes += size_bytes
        if taken is not None:
            connection.taken.append((self._kernel_bytes, taken))
        self._share()

    def drop(self, node: int) -> None:
        """Nothing goes to or from it any more."""
        for ends, connection in list(self._connections.items()):
            if node in ends:
                del self._connections[ends]
                if connection.items:
                    self._busy.remove(connection)
        self._share()

    def next_at(self) -> float:
        """When something will have arrived or been taken."""
        at = NEVER
        for one in self._busy:
            left = one.items[0].left_bytes
            if one.taken:
                left = min(left, max(one.backlog_bytes - one.taken[0][0], 0.0))
            at = min(at, self._now + left / one.rate)
        return at

    def advance(self, now: float) -> list[Action]:
        """Let time pass; returns what is to be called, in order."""
        passed_s, self._now = now - self._now, now
        due: list[Action] = []
        for one in list(self._busy):
            moved = one.rate * passed_s
            one.backlog_bytes -= moved
            one.items[0].left_bytes -= moved
            while one.items and one.items[0].left_bytes <= _ROUNDING:
                due.append(one.items.popleft().arrived)
            if not one.items:
                one.backlog_bytes = 0.0
                self._busy.remove(one)
            while one.taken and one.backlog_bytes <= one.taken[0][0] + _ROUNDING:
                due.append(one.taken.popleft()[1])
        if due:
            self._share()
        return due

    def _share(self) -> None:
        """Divide the lines among those who send."""
        users: dict[Line, list[_Connection]] = {}
        for one in self._busy:
            one.rate = -1.0
            for line in one.lines:
                users.setdefault(line, []).append(one)
        left = {line: self._rates[line] for line in users}
        open_count = {line: len(those) for line, those in users.items()}
        order = [(left[line] / open_count[line], n, line) for n, line in enumerate(users)]
        heapq.heapify(order)
        while order:
            share, n, line = heapq.heappop(order)
            if not open_count[line]:
                continue
            now_share = left[line] / open_count[line]
            if now_share > share * (1 + 1e-12):
                heapq.heappush(order, (now_share, n, line))
                continue
            for one in users[line]:
                if one.rate < 0:
                    one.rate = now_share
                    for other in one.lines:
                        left[other] = max(left[other] - now_share, 0.0)
                        open_count[other] -= 1
