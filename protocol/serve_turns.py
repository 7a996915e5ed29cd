"""In which order and how many at a time spans are sent, so that each arrives soon: a pure machine.

Spans that are sent to many peers at once all arrive late, and what arrives late is passed on late.
So those who ask take turns: first who lacks most, since a swarm is as late as its last; few are
sent at a time, as many as it takes to fill this node's line; and who comes next is told what was
picked for it while others are still being sent to, which leaves it the time to say that it has it.

What the line carries is not known and is learnt. A peer is expected to take what it has taken at
its best, and another one is sent to while all that are sent to are expected to leave room: slow
peers at a fast line are many at once, fast peers at a slow line are two or three. Whoever is stuck
does not count. With one peer alone nothing waits.

Times are the owner's `now` in seconds. Whoever waits for something is told by the owner, which
calls `go_on` after everything that happens, and every `LOOK_S` while somebody waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

AT_LEAST: Final = 2
"""Peers that are sent to at a time, whatever they take."""
AHEAD: Final = 1
"""Peers that are told what was picked for them before there is room to send it."""
ROOM: Final = 1.5
"""The peers that are sent to may be expected to take so much of what the line seems to carry."""
FORGOTTEN: Final = 0.005
"""How fast a best is forgotten, with each span."""
SPAN_WEIGHT: Final = 0.2
LINE_WEIGHT: Final = 0.5
STUCK_S: Final = 2.0
STUCK_FACTOR: Final = 3.0
"""Who takes so many times longer than spans take on the average does not count."""
LOOK_S: Final = 0.25
"""How often it is looked for who is stuck while others wait."""
COMPARED: Final = 16
"""Of the peers that wait longest so many are compared."""
MAX_PEERS: Final = 4096
"""Whose best is remembered."""


@dataclass(eq=False)
class Turn:
    """One peer's turn."""

    peer: Hashable
    lacks: Callable[[], int]
    """How many spans it could be sent by now."""
    granted: bool = False
    """Whether it may be told what it will be sent."""
    since: float | None = None
    """When sending began."""
    others: float = 0.0
    """How many were sent to at that moment, this one included."""


class ServeTurns:
    """The turns of one node; those of one peer come one after the other by themselves."""

    def __init__(self) -> None:
        self._waiting: list[Turn] = []
        self._granted: list[Turn] = []
        """In the order in which they are to be sent to."""
        self._sending: list[Turn] = []
        self._best: dict[Hashable, float] = {}
        self._line: float | None = None
        self._span_s = 0.0
        self._last: tuple[Hashable, float] | None = None
        self._other: tuple[Hashable, float] | None = None

    @property
    def sending(self) -> int:
        """Peers that are sent to now."""
        return len(self._sending)

    def crowded(self, peer: Hashable, *, now: float) -> bool:
        """Whether somebody besides this peer has asked lately."""
        since = now - STUCK_S
        return any(
            one is not None and one[0] != peer and one[1] >= since
            for one in (self._last, self._other)
        ) or any(turn.peer != peer for turn in (*self._waiting, *self._granted, *self._sending))

    def wait(self, peer: Hashable, lacks: Callable[[], int], *, now: float) -> Turn:
        """A peer has asked for something."""
        if self._last is not None and self._last[0] != peer:
            self._other = self._last
        self._last = peer, now
        turn = Turn(peer, lacks)
        self._waiting.append(turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """It is over, whatever became of it."""
        for queue in (self._waiting, self._granted, self._sending):
            if turn in queue:
                queue.remove(turn)

    def sent(self, turn: Turn, size_bytes: int, *, now: float) -> None:
        """All of it was taken: learn from how long that took."""
        if turn.since is None or turn not in self._sending:
            return
        took_s = max(now - turn.since, 1e-4)
        rate = size_bytes / took_s
        count = (turn.others + len(self._sending)) / 2
        self._span_s += SPAN_WEIGHT * (took_s - self._span_s)
        line = rate * count
        self._line = line if self._line is None else self._line + LINE_WEIGHT * (line - self._line)
        self._best[turn.peer] = _best(self._best.pop(turn.peer, None), rate)
        if len(self._best) > MAX_PEERS:
            del self._best[next(iter(self._best))]

    def go_on(self, *, now: float) -> list[Turn]:
        """Begin what may begin; returns the turns for which something has changed."""
        changed: list[Turn] = []
        while True:
            if self._granted and self._may_begin(self._granted[0], now):
                turn = self._granted.pop(0)
                turn.since = now
                self._sending.append(turn)
                turn.others = len(self._sending)
            elif self._waiting and len(self._granted) < AHEAD:
                turn = self._next()
                self._waiting.remove(turn)
                self._granted.append(turn)
                turn.granted = True
            else:
                return changed
            changed.append(turn)

    # In it

    def _next(self) -> Turn:
        """Of those who wait longest, the first of those that lack most."""
        return max(self._waiting[:COMPARED], key=lambda turn: turn.lacks())

    def _may_begin(self, turn: Turn, now: float) -> bool:
        stuck_s = max(STUCK_S, STUCK_FACTOR * self._span_s)
        counted = [
            one for one in self._sending if one.since is not None and now - one.since < stuck_s
        ]
        if len(counted) < AT_LEAST:
            return True
        if self._line is None:
            return False
        expected = sum(self._expected(one.peer, self._line) for one in (*counted, turn))
        return expected <= ROOM * self._line

    def _expected(self, peer: Hashable, line: float) -> float:
        return min(self._best.get(peer, math.inf), line / 2)


def _best(before: float | None, now: float) -> float:
    return now if before is None else max(now, before + FORGOTTEN * (now - before))
