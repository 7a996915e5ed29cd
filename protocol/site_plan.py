"""How the nodes of one site divide a version, so that their line carries each byte about once.

The nodes of a site that fetch the same version ("siblings") each fetch their own share from outside
and give it to one another inside. Shares follow from `protocol.rendezvous`, so nobody has to
agree on them. A span of a sibling's share is awaited until that sibling has it; but

- a sibling that is gone, or whose share has not grown for long, does not count: the others divide
  anew without it;
- who has nothing of its own share left to ask for, and could ask, takes on what falls to it next
  (the next *level*), then what comes after that, until it takes everything. What a sibling has
  about in flight is left to it, unless it is far slower.

So nobody waits for another one for longer than a bounded time, and a division that is seen
differently by different nodes costs bytes, never progress. Nothing here asks anybody: it says which
spans may be asked for outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from protocol.rendezvous import Rendezvous

PATIENCE_S: Final = 0.2
"""How long a node that could ask outside leaves siblings their shares, at the least."""
FIRST_PATIENCE_S: Final = 1.0
"""The same before anything has come from outside."""
FIRST_STALL_S: Final = 30.0
"""Time without any of its share after which a sibling is left out, its pace unknown."""
MIN_STALL_S: Final = 10.0
MAX_STALL_S: Final = 120.0
STALL_FACTOR: Final = 8.0
"""How many times its mean interval a sibling may take for the next span of its share."""
IN_FLIGHT_SPANS: Final = 8
"""So many last spans of a sibling's share are taken for being in flight,"""
FAST_IN_FLIGHT_SPANS: Final = 2
"""so many where spans come sooner one after the other than"""
FAST_S: Final = 1.0
"""this: there waiting costs all of the site more than what comes twice."""
SLOWER: Final = 3.0
"""A sibling that would take so many times longer than this node is not left even those."""
PACE_WEIGHT: Final = 0.2


@dataclass(slots=True)
class Pace:
    """How often something comes: the moving average of the intervals in seconds."""

    since: float
    interval_s: float | None = None
    count: int = 0

    def came(self, now: float) -> None:
        """One more."""
        self.count += 1
        before = self.interval_s or 0.0
        weight = max(1 / self.count, PACE_WEIGHT)
        self.interval_s = before + weight * (now - self.since - before)
        self.since = now

    def expected_s(self, count: int, now: float) -> float | None:
        """How long so many more will take; None when it is not known."""
        if self.interval_s is None:
            return None
        return count * max(self.interval_s, (now - self.since) / 2)


@dataclass(slots=True)
class Sibling:
    """A node of the site that fetches the same version."""

    pace: Pace
    mask: int
    share: int = 0
    left_out: bool = False
    """It has not come forward for too long."""


class SitePlan:
    """The division as one node sees it; without a name of its own a node divides with nobody."""

    def __init__(self, own: bytes, rendezvous: Rendezvous) -> None:
        self.siblings: dict[bytes, Sibling] = {}
        self.level = 0
        self._own = own
        self._rendezvous = rendezvous
        self._pace: Pace | None = None
        self._unawaited = 0
        self._levels: list[int] = []
        self._stale = True
        self._idle_since: float | None = None

    # What happens

    def joined(self, name: bytes, mask: int, now: float) -> None:
        """A node of the site fetches too and holds this much."""
        if not self._own:
            return
        self.siblings[name] = Sibling(Pace(now), mask)
        if self._pace is None:
            self._pace = Pace(now)
        self._stale = True

    def left(self, name: bytes) -> None:
        """It is gone, or has everything now."""
        if self.siblings.pop(name, None) is not None:
            self._stale = True

    def has(self, name: bytes, bit: int, wanted: int, now: float) -> None:
        """A sibling holds one more; it counts for it if it is the first of the site to have it."""
        sibling = self.siblings.get(name)
        if sibling is None or sibling.mask >> bit & 1:
            return
        first = wanted >> bit & 1 and not any(
            other.mask >> bit & 1 for other in self.siblings.values()
        )
        sibling.mask |= 1 << bit
        if first and sibling.share >> bit & 1:
            sibling.pace.came(now)
            if sibling.left_out:
                sibling.left_out = False
                self._stale = True

    def lacks(self, mask: int) -> None:
        """A node of the site did not give what it said it had: do not await others for it."""
        if self.siblings:
            self._unawaited |= mask

    def own_came(self, now: float) -> None:
        """This node got one from outside."""
        if self._pace is not None:
            self._pace.came(now)

    # What follows

    def watch(self, wanted: int, now: float) -> None:
        """Leave out siblings that do not come forward."""
        self._divide()
        for sibling in self.siblings.values():
            if not self._awaited(sibling, wanted):
                sibling.pace.since = now  # it owes nothing
            elif not sibling.left_out and now >= self._stall_at(sibling):
                sibling.left_out = True
                self._stale = True
        self._divide()

    def outside(self, wanted: int, now: float) -> int:
        """Those of `wanted` that this node may ask for outside."""
        self._divide()
        if len(self._levels) < 2:
            return wanted
        allowed = self._levels[0] | self._unawaited
        if self.level:
            further = 0
            for mask in self._levels[1 : self.level + 1]:
                further |= mask
            for sibling in self.siblings.values():
                if not sibling.left_out and self._in_flight(sibling, wanted, now):
                    further &= ~sibling.share
            allowed |= further
        return wanted & allowed

    @property
    def own(self) -> int:
        """This node's share, of all spans."""
        return self._levels[0] | self._unawaited if self._levels else -1

    def idle(self, idle: bool, now: float) -> bool:
        """Whether this node could ask outside and has nothing to ask; True when that has lasted
        and it may take on more."""
        if not idle or len(self._levels) < 2:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        elif now >= self._idle_since + self._patience_s:
            self._idle_since = now
            self.level = min(self.level + 1, len(self._levels) - 1)
            return True
        return False

    def wakes(self, wanted: int) -> Iterator[float]:
        """When to look again although nothing happens."""
        if self._idle_since is not None:
            yield self._idle_since + self._patience_s
        for sibling in self.siblings.values():
            if not sibling.left_out and self._awaited(sibling, wanted):
                yield self._stall_at(sibling)

    # In it

    def _divide(self) -> None:
        if not self._stale:
            return
        self._stale = False
        self.level = 0
        self._idle_since = None
        names = [name for name, sibling in self.siblings.items() if not sibling.left_out]
        shares = self._rendezvous.shares([self._own, *names])
        self._levels = self._rendezvous.ranks(self._own, names, shares[self._own])
        everybody: dict[bytes, int] | None = None
        for name, sibling in self.siblings.items():
            if name not in shares and everybody is None:
                everybody = self._rendezvous.shares([self._own, *self.siblings])
            # Who is left out comes back with what it would have had.
            sibling.share = shares[name] if name in shares else (everybody or {})[name]

    @staticmethod
    def _awaited(sibling: Sibling, wanted: int) -> int:
        return wanted & sibling.share & ~sibling.mask

    @property
    def _patience_s(self) -> float:
        interval_s = self._pace.interval_s if self._pace is not None else None
        return FIRST_PATIENCE_S if interval_s is None else max(PATIENCE_S, interval_s)

    def _stall_at(self, sibling: Sibling) -> float:
        paces = [sibling.pace.interval_s, self._pace.interval_s if self._pace else None]
        known = [pace for pace in paces if pace is not None]
        least = MIN_STALL_S if sibling.pace.interval_s is not None else FIRST_STALL_S
        usual = min(STALL_FACTOR * max(known, default=0.0), MAX_STALL_S)
        return sibling.pace.since + max(least, usual)

    def _in_flight(self, sibling: Sibling, wanted: int, now: float) -> bool:
        count = self._awaited(sibling, wanted).bit_count()
        if not count or self._pace is None:
            return False
        fast = self._pace.interval_s is not None and self._pace.interval_s < FAST_S
        if count > (FAST_IN_FLIGHT_SPANS if fast else IN_FLIGHT_SPANS):
            return False
        mine = self._pace.expected_s(count, self._pace.since)
        theirs = sibling.pace.expected_s(count, now)
        if mine is None or theirs is None:
            return now < sibling.pace.since + MIN_STALL_S
        return theirs <= SLOWER * mine + PATIENCE_S
