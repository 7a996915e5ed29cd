"""The spans of a fetch plan as bits of integers, and which of them is rarest.

Spans get their bit in the order in which equals are taken, so "the next one" is the lowest bit.
A choice among a hundred thousand spans is a few operations on long integers, and there is no
index beside the truth that could disagree with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from blake3 import blake3

from protocol.fetch_events import SpanKey


def bits(mask: int) -> Iterator[int]:
    """The set bits, lowest first; meant for few."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def lowest(mask: int, count: int) -> int:
    """The lowest `count` bits of a set, or all of it."""
    if count <= 0:
        return 0
    low, high = 0, mask.bit_length()
    while low < high:
        middle = (low + high) // 2
        if (mask & (1 << middle) - 1).bit_count() < count:
            low = middle + 1
        else:
            high = middle
    return mask & (1 << low) - 1


class SpanTable:
    """All spans of one plan: their bits, sizes, priorities and rarity.

    Raises ValueError when spans and sizes do not go together or a span is named twice.
    """

    def __init__(
        self,
        spans: Sequence[SpanKey],
        sizes: Sequence[int],
        priorities: Mapping[SpanKey, int],
        seed: bytes,
    ) -> None:
        if len(spans) != len(sizes):
            raise ValueError(f"{len(spans)} spans with {len(sizes)} sizes")
        order = list(range(len(spans)))
        self._key = key = blake3(seed).digest() if seed else b""
        if seed:
            order.sort(key=lambda i: blake3(b"%d %d" % spans[i], key=key).digest())
        self.spans = [spans[i] for i in order]
        self.sizes = [sizes[i] for i in order]
        self.bit_of = {span: bit for bit, span in enumerate(self.spans)}
        if len(self.bit_of) != len(spans):
            raise ValueError("a span is named twice")
        self.all = (1 << len(spans)) - 1
        by_level: dict[int, list[SpanKey]] = {}
        for span in self.spans:
            by_level.setdefault(priorities.get(span, 0), []).append(span)
        self._levels = [self.mask_of(by_level[level]) for level in sorted(by_level)]
        self._rarity = [self.all]  # the spans with 0, 1, 2, ... counted holders

    def rank(self, name: bytes) -> bytes:
        """Where a peer comes in this node's own order."""
        return blake3(name, key=self._key).digest() if self._key else name

    def mask_of(self, spans: Iterable[SpanKey]) -> int:
        """The set of these spans; unknown ones are left out."""
        # Set in a byte array: setting bits one by one in a long integer is quadratic.
        raw = bytearray(len(self.spans) // 8 + 1)
        for span in spans:
            bit = self.bit_of.get(span)
            if bit is not None:
                raw[bit >> 3] |= 1 << (bit & 7)
        return int.from_bytes(raw, "little")

    def count(self, *, before: int, after: int) -> None:
        """One counted holder's set has changed."""
        rarity, gone, new = self._rarity, before & ~after, after & ~before
        rarity.append(0)
        for holders in range(1, len(rarity)):
            moved = rarity[holders] & gone
            rarity[holders] ^= moved
            rarity[holders - 1] |= moved
        for holders in range(len(rarity) - 2, -1, -1):
            moved = rarity[holders] & new
            rarity[holders] ^= moved
            rarity[holders + 1] |= moved
        while len(rarity) > 1 and not rarity[-1]:
            rarity.pop()

    def as_urgent(self, among: int, of: int) -> int:
        """Those of `of` that have the lowest priority number of a set."""
        return next((of & level for level in self._levels if among & level), 0)

    def holders(self, bit: int) -> int:
        """How many counted holders a span has."""
        return next(n for n, mask in enumerate(self._rarity) if mask >> bit & 1)

    def rarest(self, among: int) -> int | None:
        """The first of the rarest of the most urgent spans of a set."""
        if not among:
            return None
        for level in self._levels:
            urgent = among & level
            if not urgent:
                continue
            for mask in self._rarity:
                found = urgent & mask
                if found:
                    return (found & -found).bit_length() - 1
        return None
