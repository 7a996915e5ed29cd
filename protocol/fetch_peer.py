"""One peer as a fetch plan sees it: what it holds, what it was asked, how fast it answers.

Sets of spans are integers, one bit a span, as `protocol.fetch_spans` numbers them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from protocol.fetch_pipe import Mark, Pipe

FIRST_STALL_S: Final = 10.0
"""Silence that counts as a stall while a peer's rate is unknown."""
MIN_STALL_S: Final = 2.0
MAX_STALL_S: Final = 60.0
STALL_FACTOR: Final = 4.0
"""How many times longer than its measured rate says a span may take."""
GIVE_UP_S: Final = 300.0
"""Silence after which a peer that was asked is dropped."""
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
FIRST_WINDOW: Final = 2
"""Requests that keep a line full if nothing is known of it."""
WINDOW_S: Final = 0.5
"""A line that others use too is kept full for so long, which is more than its delay: what is asked
for later is chosen better."""
RATE_WEIGHT: Final = 0.3
"""Weight of the newest sample in the moving average of the rate."""
MIN_SAMPLE_S: Final = 0.005
ALL: Final = -1
"""Every span, as a set of bits."""


def window(rate: float, span_bytes: float) -> int:
    """How many spans of this size keep a line full, one waiting while others are sent."""
    if not span_bytes:
        return FIRST_WINDOW
    return max(FIRST_WINDOW, 1 + math.ceil(WINDOW_S * rate / span_bytes))


@dataclass(slots=True)
class Offer:
    """One open request for any of the spans in `mask`."""

    asked_at: float
    mask: int
    mark: Mark
    known: int
    """What the peer was known to hold when it was asked."""


@dataclass(slots=True)
class FetchPeer:
    """The state of one peer. Times are the plan's `now` in seconds, rates bytes a second."""

    mask: int
    counted: bool
    """Whether its spans count for rarity: holders of everything do not."""
    rank: bytes
    """Among equals the lower is asked first; another order at every node, so that load spreads."""
    near: bool = False
    """Whether it stands at this node's site: asking it costs the site's line nothing."""
    gives: int = 0
    """Of a partial holder: what is offered to it instead of others that hold it too, as long as
    those have something of their own to give."""
    assigned: int = 0
    """Of a peer that picks: what it may be offered. Holders of everything get different parts."""
    asked: dict[int, float] = field(default_factory=dict)
    """Bit of each span it was asked, in order, and when."""
    asked_mask: int = 0
    offers: dict[int, Offer] = field(default_factory=dict)
    """What it may pick from, by number."""
    picks: bool = False
    silent: bool = False
    """Its last offer has expired and nothing has come since."""
    outstanding_bytes: int = 0
    last_progress: float = 0.0
    unsampled_bytes: int = 0
    came: int = 0
    """Spans that it has sent."""
    rate: float | None = None
    busy_until: float = 0.0
    backoff_s: float = FIRST_BACKOFF_S
    corrupt_count: int = 0
    stalled: bool = False
    pipe: Pipe = field(default_factory=Pipe)

    def ask(self, bit: int, size_bytes: int, now: float, offer: Offer | None = None) -> None:
        """It is asked for a span, or has picked it from an offer."""
        self._begin(now)
        if not self.asked:
            # What it did before this turn was serving others.
            self.last_progress = now
            self.unsampled_bytes = 0
            self.stalled = False
        self.asked[bit] = now
        mark = self.pipe.mark(now, self.owes) if offer is None else offer.mark
        self.pipe.asked(bit, mark)
        self.asked_mask |= 1 << bit
        self.outstanding_bytes += size_bytes

    def offer(self, number: int, mask: int, now: float) -> None:
        """It is asked for any of `mask`."""
        self._begin(now)
        self.offers[number] = Offer(now, mask, self.pipe.mark(now, self.owes + 1), self.mask)

    def end_offer(self, number: int) -> bool:
        """An offer is over; False when there was none."""
        if self.offers.pop(number, None) is None:
            return False
        if not self.owes:
            self.stalled = False
        return True

    @property
    def offered(self) -> int:
        """What it may pick from by now."""
        mask = 0
        for offer in self.offers.values():
            mask |= offer.mask
        return mask

    @property
    def owes(self) -> int:
        """How many requests it has not answered."""
        return len(self.asked) + len(self.offers)

    def _begin(self, now: float) -> None:
        if not self.owes and not self.silent:
            self.last_progress = now
            self.unsampled_bytes = 0

    def forget(self, bit: int, size_bytes: int) -> bool:
        """A request is over; False when there was none."""
        if self.asked.pop(bit, None) is None:
            return False
        self.asked_mask &= ~(1 << bit)
        self.pipe.ended(bit)
        self.outstanding_bytes -= size_bytes
        if not self.owes:
            self.stalled = False
        return True

    def progressed(self, size_bytes: int, now: float) -> None:
        """It has sent a span that it was asked: measure, and believe in it again."""
        self.came += 1
        self.unsampled_bytes += size_bytes
        elapsed = now - self.last_progress
        if elapsed >= MIN_SAMPLE_S and self.unsampled_bytes:
            sample = self.unsampled_bytes / elapsed
            self.rate = (
                sample
                if self.rate is None
                else RATE_WEIGHT * sample + (1 - RATE_WEIGHT) * self.rate
            )
            self.unsampled_bytes = 0
            self.last_progress = now
        self.stalled = self.silent = False
        self.backoff_s = FIRST_BACKOFF_S

    def refused_busy(self, now: float) -> None:
        """It asks for patience. Refusals of one burst count once."""
        if now >= self.busy_until:
            self.busy_until = now + self.backoff_s
            self.backoff_s = min(2 * self.backoff_s, MAX_BACKOFF_S)

    def stall_at(self, size_bytes: int) -> float:
        """When its silence becomes a stall, if the span it owes has this size."""
        if self.rate is None:
            return self.last_progress + FIRST_STALL_S
        expected = STALL_FACTOR * size_bytes / self.rate
        return self.last_progress + min(max(expected, MIN_STALL_S), MAX_STALL_S)

    @property
    def give_up_at(self) -> float:
        return self.last_progress + GIVE_UP_S
