"""How much may have gone through by when, for one limit: a token bucket that keeps a queue.

Whoever wants to send reserves so many bytes and gets a position; it may go once the credit of the
bucket, which grows at the rate, has reached that position. So the bucket is fair by arrival, a
rate that is changed counts at once for those who wait already, and what was reserved and is not
sent can be given back. Time is an argument, in seconds on a clock that does not go back; waiting
is `archid.net.pacing`'s business. Over any stretch of time at most `rate` times it and what
`BURST_S` brings go through, which is exact within 2.5 % over 10 s.

The idea is the virtual scheduling form of the generic cell rate algorithm (ITU-T I.371).
"""

from __future__ import annotations

from typing import Final

BURST_S: Final = 0.25
"""So much of the rate can be caught up after a pause: event loops and timers are late at times."""


class TokenBucket:
    """One limit in bytes a second, None for no limit."""

    __slots__ = ("_at", "_credit", "_reserved", "rate")

    def __init__(self, rate: int | None = None, *, now: float = 0.0) -> None:
        self.rate = rate
        self._at = now
        self._credit = 0.0
        self._reserved = 0

    def set_rate(self, rate: int | None, *, now: float) -> None:
        """Another rate from now on; positions stay, only when they are due changes."""
        self._advance(now)
        self.rate = rate
        self._advance(now)

    def reserve(self, size_bytes: int, *, now: float) -> int:
        """Take the next place in the queue; returns its position for `due_at`."""
        self._reserved += size_bytes
        self._advance(now)
        return self._reserved

    def due_at(self, position: int, *, now: float) -> float:
        """When what has this position may go: not after `now` if it may go already."""
        self._advance(now)
        if self.rate is None:
            return now
        return now + (position - self._credit) / self.rate

    def give_back(self, size_bytes: int) -> None:
        """What was reserved is not going to be sent: those behind it move up."""
        self._credit += size_bytes

    def _advance(self, now: float) -> None:
        passed_s, self._at = max(0.0, now - self._at), max(now, self._at)
        if self.rate is None:
            self._credit = float(self._reserved)
        else:
            most = self._reserved + self.rate * BURST_S
            self._credit = min(self._credit + passed_s * self.rate, most)
