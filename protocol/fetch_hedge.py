"""The end of a fetch: whether one of the last spans is worth asking a second peer for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from protocol.fetch_peer import FetchPeer
from protocol.fetch_spans import bits

END_GAME_SPANS: Final = 8
HEDGE_S: Final = 1.0
"""How long the only copy of a last span may take before another is asked, rates unknown."""
MIN_GAIN_S: Final = 0.25
"""What a second copy must save at the least: where all is fast there is nothing to save."""


class Hedge(NamedTuple):
    """The span to ask for twice, if any, and when to look again because of unknown rates."""

    bit: int | None
    look_at: float | None


def hedge(
    peers: Iterable[FetchPeer], sizes: Sequence[int], wanted: int, peer: FetchPeer, now: float
) -> Hedge:
    """A span that another peer was asked, if `peer` would bring it sooner."""
    best: tuple[float, int] | None = None
    look_at: float | None = None
    everybody = list(peers)
    for bit in bits(wanted & peer.mask & ~peer.asked_mask):
        holders = [other for other in everybody if bit in other.asked]
        if len(holders) != 1:
            continue
        holder = holders[0]
        if holder.rate is None or peer.rate is None:
            due = holder.asked[bit] + HEDGE_S
            if now < due:
                look_at = min(due, look_at or due)
                continue
            gain = now - holder.asked[bit]
        else:
            theirs = _owed_before(holder, sizes, bit) / holder.rate
            theirs -= now - holder.last_progress
            mine = (peer.outstanding_bytes + sizes[bit]) / peer.rate
            gain = theirs - 1.5 * mine
            if gain <= MIN_GAIN_S:
                continue
        if best is None or gain > best[0]:
            best = (gain, bit)
    return Hedge(None if best is None else best[1], look_at)


def _owed_before(holder: FetchPeer, sizes: Sequence[int], bit: int) -> int:
    """The bytes that a peer sends until it has sent this span, this one included."""
    total = 0
    for asked in holder.asked:
        total += sizes[asked]
        if asked == bit:
            break
    return total
