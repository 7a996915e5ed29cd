"""In which order and how many at a time spans are sent, so that each arrives soon: a pure machine.

Spans that are sent to many peers at once all arrive late, and what arrives late is passed on late.
So those who ask take turns: first who lacks most, since a swarm is as late as its last; few are
sent at a time, as many as it takes to fill the lines; and who comes next is told what was
picked for it while others are still being sent to, which leaves it the time to say that it has it.

There is this node's own line, and one to each site: peers of one site share theirs, or at this
node's own site its network. Three spans under way fill a line that nothing else uses, six hold
their own beside what neighbours send: so many are sent to a site at a time, and how many in all is
found out (`protocol.serve_breadth`). A place that becomes free goes to the
site that is sent least, of those who wait longest. Whoever is stuck does not count. With one peer
alone nothing waits.

Times are the owner's `now` in seconds. Whoever waits for something is told by the owner, which
calls `go_on` after everything that happens, and every `LOOK_S` while somebody waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import chain
from typing import Final

from protocol.serve_breadth import Breadth

A_SITE: Final = 6
"""Peers of one site that are sent to at a time."""
SPARE: Final = 2
"""A line with fewer spans under way idles when one of them ends, or is held up."""
AHEAD: Final = 1
"""Peers that are told what was picked for them before there is room to send it: so many of a site
that is sent as much as may be, and so many of all others."""
FASTER: Final = 0.2
SLOWER: Final = 0.02
"""What a span counts that took less time, or more, than spans usually do."""
FIRST_STUCK_S: Final = 3.0
"""Before anything was taken nobody is thought to be stuck for less than that for each that is sent
to: all of them share a line that may be slow."""
STUCK_S: Final = 2.0
STUCK_FACTOR: Final = 3.0
"""Who takes so many times longer than spans usually do does not count."""
LOOK_S: Final = 0.25
"""How often it is looked for who is stuck while others wait."""
COMPARED: Final = 16
"""Of the peers that wait longest, and could be sent to soonest, so many are compared. Who was
passed over so often goes first."""
MANY_SPANS: Final = 1 << 20
"""What somebody lacks who does not say it, as who asks by name: it goes before those who do."""


@dataclass(eq=False)
class Turn:
    """One peer's turn."""

    peer: Hashable
    site: Hashable
    """Peers of the same are behind the same line; a peer that shares none is its own."""
    lacks: Callable[[], int]
    """How many spans it could be sent by now."""
    granted: bool = False
    """Whether it may be told what it will be sent."""
    since: float | None = None
    """When sending began."""
    passed: int = 0
    """How often another that came later, or lacks more, was granted instead."""


class ServeTurns:
    """The turns of one node; those of one peer come one after the other by themselves."""

    def __init__(self) -> None:
        self._waiting: list[Turn] = []
        self._granted: list[Turn] = []
        """In the order in which they are to be sent to."""
        self._sending: list[Turn] = []
        self._breadth = Breadth()
        self._span_s = 0.0
        self._last: tuple[Hashable, float] | None = None
        self._other: tuple[Hashable, float] | None = None

    @property
    def sending(self) -> int:
        """Peers that are sent to now."""
        return len(self._sending)

    @property
    def at_once(self) -> int:
        """How many may be sent to at a time by now."""
        return self._breadth.limit

    def crowded(self, peer: Hashable, *, now: float) -> bool:
        """Whether somebody besides this peer has asked lately."""
        since = now - STUCK_S
        return any(
            one is not None and one[0] != peer and one[1] >= since
            for one in (self._last, self._other)
        ) or any(turn.peer != peer for turn in (*self._waiting, *self._granted, *self._sending))

    def wait(self, peer: Hashable, lacks: Callable[[], int], *, site: Hashable, now: float) -> Turn:
        """A peer has asked for something."""
        if self._last is not None and self._last[0] != peer:
            self._other = self._last
        self._last = peer, now
        turn = Turn(peer, site, lacks)
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
        took_s = now - turn.since
        self._span_s = _usual(self._span_s, took_s)
        under_way = self._under_way(now)
        self._breadth.sent(
            size_bytes,
            took_s=took_s,
            ages_s=[
                now - one.since
                for one in self._sending
                if one is not turn and one.since is not None
            ],
            binding=under_way.total() >= self._breadth.limit
            and any(under_way[one.site] < A_SITE for one in chain(self._granted, self._waiting)),
            now=now,
        )

    def go_on(self, *, now: float) -> list[Turn]:
        """Begin what may begin; returns the turns for which something has changed."""
        changed: list[Turn] = []
        under_way = self._under_way(now)
        while True:
            begins = self._first_to_begin(under_way)
            turn = None
            if begins is None or under_way[begins.site]:
                turn = self._first_to_grant(under_way)
            # Who was told what comes waits a little longer where a line would stay empty.
            if begins is not None and (
                turn is None or under_way[turn.site] >= under_way[begins.site]
            ):
                turn = begins
                self._granted.remove(turn)
                turn.since = now
                self._sending.append(turn)
                under_way[turn.site] += 1
            elif turn is not None:
                self._count_passed(turn, under_way)
                self._waiting.remove(turn)
                self._granted.append(turn)
                turn.granted = True
            else:
                return changed
            changed.append(turn)

    # In it

    def _under_way(self, now: float) -> Counter[Hashable]:
        """How many of each site are sent to; who is stuck is left out."""
        stuck_s = max(STUCK_S, STUCK_FACTOR * self._span_s)
        if not self._span_s:
            stuck_s = FIRST_STUCK_S * len(self._sending)
        return Counter(
            turn.site
            for turn in self._sending
            if turn.since is not None and now - turn.since < stuck_s
        )

    def _may_begin(self, site: Hashable, under_way: Counter[Hashable]) -> bool:
        theirs, limit = under_way[site], self._breadth.limit
        # Lines that would stay empty, now or between two spans, may have a little beyond the limit.
        beyond = limit // 2 if theirs < SPARE else 0
        return theirs < A_SITE and under_way.total() < limit + beyond

    def _first_to_begin(self, under_way: Counter[Hashable]) -> Turn | None:
        able = [one for one in self._granted if self._may_begin(one.site, under_way)]
        return min(able, key=lambda turn: under_way[turn.site], default=None)

    def _first_to_grant(self, under_way: Counter[Hashable]) -> Turn | None:
        """Of those who wait longest and could be sent to soonest the first that lacks most, of
        several sites one to which least is sent."""
        ahead = Counter(
            one.site if under_way[one.site] >= A_SITE else None for one in self._granted
        )
        soonest: list[Turn] = []
        for turn in self._waiting:
            taken = under_way[turn.site] >= A_SITE
            may_begin = self._may_begin(turn.site, under_way)
            if may_begin or ahead[turn.site if taken else None] < AHEAD:
                soonest.append(turn)
                if len(soonest) == COMPARED:
                    break
        return max(
            soonest,
            key=lambda one: (-under_way[one.site], one.passed >= COMPARED, one.lacks()),
            default=None,
        )

    def _count_passed(self, granted: Turn, under_way: Counter[Hashable]) -> None:
        """Nobody is passed over for ever: one version's few last spans beside another's many."""
        for turn in self._waiting[: self._waiting.index(granted)]:
            if under_way[turn.site] <= under_way[granted.site]:
                turn.passed += 1


def _usual(before_s: float, took_s: float) -> float:
    """How long spans take to those that take them well: slow ones hardly count."""
    if not before_s:
        return took_s
    return before_s + (FASTER if took_s < before_s else SLOWER) * (took_s - before_s)
