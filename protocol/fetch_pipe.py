"""How much has to be under way at a peer for its line to stay full: bandwidth times delay.

After BBR (Cardwell et al., ACM Queue 2016): what came between asking for a span and having it, over
that time, is a rate; the greatest of late is the bandwidth, the shortest such time the delay. While
too little is asked the rate grows with what is asked, and so does the window; once the line is full
only the time would grow, and the window does not. Both are forgotten after a while, so that the
window follows a line that has become slower or shorter; and now and then little is asked for a
moment, since a queue that always stands would pass for delay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

SPARE: Final = 1.25
"""Of bandwidth times delay: what keeps growing a window that was too small."""
REMEMBERED_S: Final = 10.0
"""What was measured counts for so long, and at most twice as long."""
FEW_SPANS: Final = 4
"""Windows up to this are as they were set, unless `window` is told otherwise."""
MOST_SPANS: Final = 24
"""Of the requests that a connection may have open, some are left to other things."""


class Mark(NamedTuple):
    """The moment at which something was asked for."""

    at: float
    delivered_bytes: int
    few: bool
    """Whether few requests were open then, so that none of them waited for the others."""


@dataclass(slots=True)
class _Measured:
    since: float
    rate: float = 0.0
    delay_s: float = math.inf


@dataclass(slots=True)
class Pipe:
    """What one peer has delivered; times are the plan's `now` in seconds."""

    delivered_bytes: int = 0
    _now: _Measured | None = None
    _before: _Measured | None = None
    _marks: dict[int, Mark] = field(default_factory=dict)
    """Of each span in flight."""
    _looks: bool = False
    """Little is asked until the delay is known anew."""

    def mark(self, now: float, owed: int) -> Mark:
        """To be given back with what is asked for now, as one of so many requests."""
        return Mark(now, self.delivered_bytes, owed <= FEW_SPANS)

    def asked(self, bit: int, mark: Mark) -> None:
        """A span is under way that was asked for then."""
        self._marks[bit] = mark

    def ended(self, bit: int) -> None:
        """It will not come."""
        self._marks.pop(bit, None)

    def came(self, bit: int, size_bytes: int, now: float) -> None:
        """It is there."""
        self.delivered_bytes += size_bytes
        mark = self._marks.pop(bit, None)
        if mark is None or now <= mark.at:
            return
        if self._now is None or now >= self._now.since + REMEMBERED_S:
            self._looks = self._now is not None
            self._before, self._now = self._now, _Measured(now)
        if mark.few:
            self._looks = False
        took_s = now - mark.at
        self._now.rate = max(self._now.rate, (self.delivered_bytes - mark.delivered_bytes) / took_s)
        self._now.delay_s = min(self._now.delay_s, took_s)

    @property
    def delay_s(self) -> float | None:
        """The shortest time of late between asking for a span and having it."""
        known = [one.delay_s for one in (self._now, self._before) if one is not None]
        return min(known, default=None)

    def window(self, least: int, span_bytes: float, *, few: int = FEW_SPANS) -> int:
        """How many spans of this size may be under way, `least` if nothing speaks for more than
        that and `few`."""
        known = [one for one in (self._now, self._before) if one is not None]
        if not known or not span_bytes or self._looks:
            return least
        rate = max(one.rate for one in known)
        delay_s = min(one.delay_s for one in known)
        needed = math.ceil(SPARE * rate * delay_s / span_bytes)
        return min(needed, MOST_SPANS) if needed > max(least, few) else least
