"""How many spans a node sends at a time: a pure machine that tries out what pays.

What fills a line cannot be seen from here: a queue on the way swallows most of a span at once, and
the narrow line may be this node's own or those of the others. What tells them apart is what all
together take when more, or fewer, are sent to at a time. Where the others' lines are the narrow
ones, half as many more take half as much more; where this node's own is, they take what was taken
before, only later. So while somebody waits for nothing but this limit, another number is tried for
some spans now and then, and kept if it pays.

Only comparisons of one moment with the next decide, since lines change. Times are the owner's `now`
in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LEVELS: Final = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
"""How many spans at a time may be tried."""
FIRST: Final = LEVELS.index(6)
"""Which of them to begin with: fewer leave lines empty, more make everything late."""
FAR: Final = 2
"""Levels that are tried at once, twice as many spans, until that does not pay."""
PAYS: Final = 0.25
"""More at a time pay when so much of what they would take in proportion is taken in addition."""
STEADY: Final = 0.25
"""A rate that differs by less from the one before is that of the line, and not of a beginning."""
FEWEST_SPANS: Final = 16
"""Spans that are counted before a number is judged, or twice as many as are sent at a time."""
ROUNDS: Final = 2
"""How many times as long as a span takes is measured, at least."""
PATIENCE: Final = 16
"""How often the same is found before another number is tried; twice as often each time that
it does not pay, up to:"""
MOST_PATIENCE: Final = 128
BLINK_S: Final = 1e-6


class Breadth:
    """How many spans may be sent at a time: `limit`."""

    def __init__(self) -> None:
        self._level = FIRST
        """What has paid."""
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
        """Spans that may have begun when another number was in use, and do not count."""
        self._since = 0.0
        self._spans = 0
        self._took_s = 0.0
        self._bytes = 0.0

    @property
    def limit(self) -> int:
        """How many may be sent at a time now."""
        return LEVELS[self._level if self._tried is None else self._tried]

    def sent(
        self, size_bytes: int, *, took_s: float, ages_s: Iterable[float], binding: bool, now: float
    ) -> None:
        """A span was taken, in `took_s`.

        `ages_s` says how long those take by now that are still being taken, `binding` whether
        somebody waits because of `limit` alone: nothing is learnt while nobody does.
        """
        more = self._tried is not None and self._tried > self._level
        if not binding and not more:  # where more are tried nobody may wait any more
            self._settle()
            return
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
        enough = max(FEWEST_SPANS, 2 * self.limit)
        if self._spans >= enough and passed_s >= ROUNDS * mean_s:
            begun = sum(min(age_s, passed_s) / max(age_s, mean_s) for age_s in ages_s)
            rate = (self._bytes + begun * size_bytes) / passed_s
            self._settle()
            if self._tried is None:
                self._found_again(rate)
            else:
                self._judge(self._tried, rate)

    def _settle(self) -> None:
        self._settling = self.limit
        self._spans = 0
        self._took_s = self._bytes = 0.0

    def _found_again(self, rate: float) -> None:
        """What is taken at the level that has paid, once more."""
        before, self._rate = self._rate, rate
        if rate < (1 - STEADY) * before:  # a line has become narrower
            self._patience, self._left = PATIENCE, 1
            self._up, self._stride = False, FAR
        elif rate <= (1 + STEADY) * before:
            self._left -= 1
            if self._left <= 0:
                self._try_another()

    def _judge(self, tried: int, rate: float) -> None:
        """What is taken at another level."""
        lower, upper = sorted((self._level, tried))
        at_lower, at_upper = (self._rate, rate) if tried == upper else (rate, self._rate)
        in_proportion = at_lower * (LEVELS[upper] / LEVELS[lower] - 1)
        more_pay = at_upper - at_lower > PAYS * in_proportion
        if more_pay == (tried == upper):
            self._level, self._rate = tried, rate
            self._patience, self._stride = PATIENCE, FAR
            self._try_another()  # the same way
            return
        self._up = not self._up
        self._stride = 1
        self._left, self._patience = self._patience, min(2 * self._patience, MOST_PATIENCE)
        self._tried = None
        self._settle()

    def _try_another(self) -> None:
        highest = len(LEVELS) - 1
        if self._level == (highest if self._up else 0):
            self._up = not self._up
        level = self._level + (self._stride if self._up else -self._stride)
        self._tried = min(max(level, 0), highest)
        self._settle()
