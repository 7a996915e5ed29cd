"""Dividing a version's spans among names by rendezvous hashing, as sets of bits.

Every name has a weight for every span, and a span goes to the name that weighs most for it among
those whose share is not full: so whoever knows the same names divides alike without a word, and
when a name goes its own spans change hands and few others. Shares differ by one span at the most,
since what is divided is as late as the largest. The weights of a name are one stream of BLAKE3's
extended output: a name's hundred thousand weights cost one call.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from blake3 import blake3

CONTEXT: Final = "archid v1 rendezvous weight"
WEIGHT_BYTES: Final = 8


class Rendezvous:
    """The spans of one version; `bits[number]` is the bit of the span with this number.

    `topic` (the manifest's id) sees to it that many short versions do not all go to one name.
    """

    def __init__(self, bits: Sequence[int], topic: bytes = b"") -> None:
        self._bits = bits
        self._topic = topic
        self._all = (1 << len(bits)) - 1
        self._weights: dict[bytes, tuple[int, ...]] = {}

    def weights(self, name: bytes) -> tuple[int, ...]:
        """What a name weighs for each span, by the span's number."""
        found = self._weights.get(name)
        if found is None:
            digest = blake3(self._topic + name, derive_key_context=CONTEXT)
            stream = digest.digest(length=WEIGHT_BYTES * len(self._bits))
            found = self._weights[name] = struct.unpack(f"<{len(self._bits)}Q", stream)
        return found

    def shares(self, names: Sequence[bytes]) -> dict[bytes, int]:
        """The set that falls to each name; together they are everything, and no two sizes differ
        by more than one."""
        names = sorted(set(names))
        if len(names) < 2:
            return dict.fromkeys(names, self._all)
        raws = [self._empty() for _ in names]
        least, larger = divmod(len(self._bits), len(names))
        room = [least] * len(names)
        rows = zip(*(self.weights(name) for name in names), strict=True)
        for bit, row in zip(self._bits, rows, strict=True):
            # Equal weights, which never happen, would go to the lower name.
            best = row.index(max(row))
            if not room[best] and larger:
                larger -= 1  # as many as are left over may have one more
            elif room[best] <= 0:
                able = [i for i, left in enumerate(room) if left > 0 or (larger and not left)]
                best = max(able, key=row.__getitem__)
                larger -= not room[best]
            room[best] -= 1
            raws[best][bit >> 3] |= 1 << (bit & 7)
        return {name: int.from_bytes(raw, "little") for name, raw in zip(names, raws, strict=True)}

    def ranks(self, own: bytes, others: Sequence[bytes], share: int) -> list[int]:
        """`own`'s share, and behind it what it would take next: the rest, by how many of the
        others weigh more than `own`."""
        others = sorted(set(others) - {own})
        if not others:
            return [self._all]
        raws = [self._empty() for _ in others]
        rows = zip(*(self.weights(name) for name in others), strict=True)
        for bit, mine, row in zip(self._bits, self.weights(own), rows, strict=True):
            rank = sum(
                weight > mine or (weight == mine and name < own)
                for name, weight in zip(others, row, strict=True)
            )
            # Where nobody weighs more its share was full.
            raws[max(rank - 1, 0)][bit >> 3] |= 1 << (bit & 7)
        return [share, *(int.from_bytes(raw, "little") & ~share for raw in raws)]

    def forget(self, keep: set[bytes]) -> None:
        """Drop the weights of names that are not in `keep`."""
        for name in self._weights.keys() - keep:
            del self._weights[name]

    def _empty(self) -> bytearray:
        return bytearray(len(self._bits) // 8 + 1)
