"""At how many sites at a time a node's line is worth sending to: a pure machine that tries it out.

A site's line and this node's own look alike from here: spans take longer, whichever is full. What
tells them apart is what all together take when more sites, or fewer, are sent to at a time. Where
the sites' lines are the narrow ones, half as many sites more take half as much more; where this
node's own is, they take what was taken before, and only later. So when sites wait for nothing but
their turn, another number is tried for some spans now and then, and kept if it pays.

Only comparisons of one moment with the next decide, since lines change. Times are the owner's `now`
in seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

LEVELS: Final = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""How many sites at a time may be tried."""
FIRST: Final = LEVELS.index(4)
"""Which of them to begin with: fewer leave lines empty, more make everything late."""
FAR: Final = 2
"""Levels that are tried at once, twice as many sites, until that does not pay."""
ROUNDS: Final = 2
"""How often a site is sent something meanwhile, at least."""
BLINK_S: Final = 1e-6
PAYS: Final = 0.6
"""More sites pay when so much of what they would take in proportion is taken in addition."""
FEWEST_SPANS: Final = 16
"""Spans that are counted before a number of sites is judged, or two for each site."""
STEADY: Final = 0.25
"""A rate that differs by less from the one before is that of the line, and not of a beginning."""
PATIENCE: Final = 8
"""How often the same is found before another number is tried; twice as often each time that
it does not pay, up to:"""
MOST_PATIENCE: Final = 64


class Breadth:
    """How many sites may be sent to at a time: `limit`."""

    def __init__(self) -> None:
        self._level = FIRST
        """What has paid."""
        self._used = 0
        """What of it is used, if fewer sites than that want anything."""
        self._tried: int | None = None
        """What is used instead, to find out whether it pays."""
        self._rate = 0.0
        """Bytes a second that were taken without a trial, the last time."""
        self._patience = PATIENCE
        self._left = 0
        """How often the same has still to be found before another number is tried."""
        self._up = True
        """Which way is tried next,"""
        self._stride = FAR
        """and how far."""
        self._settling = LEVELS[FIRST]
        """Spans that were begun when another number was in use, and do not count."""
        self._since = 0.0
        self._spans = 0
        self._took_s = 0.0
        self._bytes = 0.0

    @property
    def limit(self) -> int:
        """Sites that may be sent to now."""
        return LEVELS[self._level if self._tried is None else self._tried]

    def sent(
        self, size_bytes: int, *, took_s: float, ages_s: Iterable[float], sites: int, now: float
    ) -> None:
        """A span was taken, in `took_s`.

        `ages_s` says how long those take by now that are still being taken, `sites` how many sites
        want something, those that are sent to included.
        """
        used = min(self._level, bisect_left(LEVELS, sites))
        if used != self._used:
            self._used, self._rate = used, 0.0
            self._end_trial()
        if self._settling:
            self._settling -= 1
            self._since = now
            return
        passed_s = now - self._since
        self._spans += 1
        self._took_s += took_s
        # What was taken of it before does not count.
        self._bytes += size_bytes * min(1.0, passed_s / max(took_s, BLINK_S))
        mean_s = max(self._took_s / self._spans, BLINK_S)
        enough = max(FEWEST_SPANS, 2 * min(self.limit, sites))
        if self._spans >= enough and passed_s >= ROUNDS * mean_s:
            begun = sum(min(age_s / mean_s, 1.0) for age_s in ages_s)
            rate = (self._bytes + begun * size_bytes) / passed_s
            self._settle()
            if self._tried is None:
                self._found_again(rate, sites)
            else:
                self._judge(self._tried, rate, sites)

    def _settle(self) -> None:
        self._settling = self.limit
        self._spans = 0
        self._took_s = self._bytes = 0.0

    def _found_again(self, rate: float, sites: int) -> None:
        """What is taken at the level that has paid, once more."""
        before, self._rate = self._rate, rate
        if rate < (1 - STEADY) * before:  # a line has become narrower
            self._patience, self._left = PATIENCE, 1
            self._up, self._stride = False, FAR
        elif rate <= (1 + STEADY) * before:
            self._left -= 1
            if self._left <= 0:
                self._try_another(sites)

    def _judge(self, tried: int, rate: float, sites: int) -> None:
        """What is taken at another level."""
        lower, upper = sorted((self._used, tried))
        at_lower, at_upper = (self._rate, rate) if tried == upper else (rate, self._rate)
        in_proportion = at_lower * (min(LEVELS[upper], sites) / LEVELS[lower] - 1)
        more_pay = at_upper - at_lower > PAYS * in_proportion
        if more_pay == (tried == upper):
            self._level = self._used = tried
            self._rate = rate
            self._patience, self._stride = PATIENCE, FAR
            self._try_another(sites)  # the same way
            return
        self._up = not self._up
        self._stride = 1
        self._left, self._patience = self._patience, min(2 * self._patience, MOST_PATIENCE)
        self._end_trial()

    def _try_another(self, sites: int) -> None:
        highest = min(len(LEVELS) - 1, bisect_left(LEVELS, sites))
        if self._used == (highest if self._up else 0):
            self._up = not self._up
        level = self._used + (self._stride if self._up else -self._stride)
        self._tried = min(max(level, 0), highest)
        if self._tried == self._used:
            self._tried = None
        self._settle()

    def _end_trial(self) -> None:
        self._tried = None
        self._settle()
