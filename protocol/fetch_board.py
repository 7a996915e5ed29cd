"""What a fetch plan knows: the spans, which are missing, who holds and was asked what.

The parts of the machine share one board: `protocol.fetch` takes events, `protocol.fetch_watch`
looks for silence, `protocol.fetch_choice` chooses whom to ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from protocol.fetch_events import PeerName, SpanKey, UnwantSpan
from protocol.fetch_peer import FetchPeer
from protocol.fetch_spans import SpanTable, bits
from protocol.rendezvous import Rendezvous
from protocol.site_plan import SitePlan

SLOW_NEAR_S: Final = 20.0
"""Only what the site's own nodes would take longer for is ever asked outside beside them, and that
only if they are slower than"""
SLOW_NEAR: Final = 0.5
"""this part of the rate at which it comes from outside."""
MANY_REFUSALS_S: Final = 4.0
"""Who is to be left alone for so long does not count as holding anything meanwhile."""


class Board:
    """The state of one plan."""

    def __init__(
        self,
        spans: Sequence[SpanKey],
        sizes: Sequence[int],
        held: AbstractSet[SpanKey],
        *,
        by_name: AbstractSet[SpanKey],
        priorities: Mapping[SpanKey, int],
        seed: bytes,
        topic: bytes,
    ) -> None:
        self.table = SpanTable(spans, sizes, priorities, seed)
        self.sizes = self.table.sizes
        self.peers: dict[PeerName, FetchPeer] = {}
        self.wanted = self.table.all & ~self.table.mask_of(held)
        self.missing_bytes = sum(
            size for span, size in zip(spans, sizes, strict=True) if span not in held
        )
        self.by_name = self.table.mask_of(by_name)
        self.partly_held = 0
        """What partial holders are known to hold."""
        self.came_from_outside = 0
        """Spans, whether they were of use or not."""
        self.largest = max(self.sizes, default=0)
        self.own = seed
        self.rendezvous = Rendezvous([self.table.bit_of[span] for span in spans], topic)
        self.site = SitePlan(seed, self.rendezvous)

    def set_mask(self, peer: FetchPeer, mask: int) -> None:
        """A peer holds this now."""
        if peer.counted:
            self.table.count(before=peer.mask, after=mask)
            self._settle_givers(peer, mask)
        peer.mask = mask

    def _settle_givers(self, peer: FetchPeer, mask: int) -> None:
        """Each span that partial holders hold is given by one of them, the first that is known to
        hold it: another one later could cross what was offered to the first."""
        lost = peer.gives & ~mask
        peer.gives = peer.gives & mask | mask & ~self.partly_held
        self.partly_held |= mask
        if lost:
            for other in self.peers.values():
                if other is not peer and other.counted:
                    other.gives |= lost & other.mask
                    lost &= ~other.mask
            self.partly_held &= ~lost

    def lacks(self, peer: FetchPeer, mask: int) -> None:
        """A peer does not have, or does not give, these after all."""
        lost = peer.mask & mask
        self.set_mask(peer, peer.mask & ~mask)
        if peer.near and lost:
            self.site.lacks(lost)

    def remove(self, name: PeerName) -> None:
        """Forget a peer and all it was asked."""
        peer = self.peers.pop(name, None)
        if peer is not None:
            self.set_mask(peer, 0)
            self.site.left(name)
            self.rendezvous.forget({self.own, *self.peers})

    def unwant(self, bit: int) -> list[UnwantSpan]:
        """A span is in flight or held: take it out of whatever it is still offered in."""
        effects: list[UnwantSpan] = []
        for name, peer in sorted(self.peers.items()):
            effects += self.withdraw(name, peer, 1 << bit)
        return effects

    def withdraw(self, name: PeerName, peer: FetchPeer, mask: int) -> list[UnwantSpan]:
        """A peer is not to pick any of these."""
        found = peer.offered & mask
        if not found:
            return []
        for offer in peer.offers.values():
            offer.mask &= ~found
        return [UnwantSpan(name, self.table.spans[bit]) for bit in bits(found)]

    def comes(self, bit: int) -> bool:
        """Whether a span is in flight from somebody who has not stalled."""
        return any(peer.asked_mask >> bit & 1 and not peer.stalled for peer in self.peers.values())

    def given_here(self, now: float) -> int:
        """What nodes of the site hold and give, so that it need not be asked for outside."""
        here = rate = 0
        outside_rate: float | None = None
        for peer in self.peers.values():
            if not peer.near:
                if peer.rate is not None:
                    outside_rate = max(peer.rate, outside_rate or 0.0)
            elif not peer.stalled and peer.busy_until < now + MANY_REFUSALS_S:
                here |= peer.mask
                rate += int(peer.rate or 0)
        waiting = self.wanted & here
        if waiting and rate and (outside_rate is None or rate < SLOW_NEAR * outside_rate):
            size = waiting.bit_count() * self.missing_bytes // self.wanted.bit_count()
            if size > SLOW_NEAR_S * rate:
                return 0
        return here
