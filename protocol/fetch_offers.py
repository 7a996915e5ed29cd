"""What a fetch plan offers a server to pick from, and what became of it.

An offer is a request for any of several spans. It names the first spans in manifest order of those
that it is made of, enough of them for a choice and no more: so it stays small and cheap on both
sides whatever the version's size, and a whole swarm moves through a long version together. It
covers nothing: until the server has picked, every span of it may be asked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final

from protocol.fetch_events import SpanKey, Wanted
from protocol.fetch_spans import bits
from protocol.limits import MAX_ANY_PIECES

ENOUGH: Final = 192
"""An offer of so many spans, with what is left of the last piece, is choice enough."""


class _Piece:
    """The spans of one piece that were missing when it was looked at first, and what of them was
    offered last: from one offer to the next few of them change."""

    def __init__(self, index: int, spans: Sequence[tuple[int, int]]) -> None:
        """`spans` are (n, bit), in the order of n."""
        self.index = index
        self.mask = sum(1 << bit for _, bit in spans)
        self.offered = 0
        self._n_of = {bit: n for n, bit in spans}
        self._bitmap = bytearray(spans[-1][0] // 8 + 1)

    def offer(self, free: int) -> bytes:
        """The bitmap of those of its spans that are free, which become `offered`."""
        free &= self.mask
        for bit in bits(free ^ self.offered):
            n = self._n_of[bit]
            self._bitmap[n >> 3] ^= 1 << (n & 7)
        self.offered = free
        return bytes(self._bitmap).rstrip(b"\0")


class OfferTable:
    """The spans of one plan by their pieces, which are looked at in manifest order.

    What is missing only ever gets less: a piece of which nothing is missing is forgotten.
    """

    def __init__(self, spans: Sequence[SpanKey], bit_of: Mapping[SpanKey, int]) -> None:
        by_piece: dict[int, list[tuple[int, int]]] = {}
        for span in sorted(spans):
            by_piece.setdefault(span.piece_index, []).append((span.n, bit_of[span]))
        self._unseen = list(reversed(by_piece.items()))
        self._open: list[_Piece] = []

    def offer(self, free: int, missing: int) -> tuple[int, Wanted]:
        """The part of `free` to offer, as a mask and as bitmaps; `missing` is all not held."""
        free &= missing
        mask = count = at = 0
        wanted: list[tuple[int, bytes]] = []
        while count < ENOUGH and len(wanted) < MAX_ANY_PIECES:
            if at == len(self._open):
                if not self._unseen:
                    break
                self._open.append(_Piece(*self._unseen.pop()))
            piece = self._open[at]
            if not piece.mask & missing:
                del self._open[at]
                continue
            at += 1
            if bitmap := piece.offer(free):
                wanted.append((piece.index, bitmap))
                mask |= piece.offered
                count += piece.offered.bit_count()
        return mask, tuple(wanted)


def without(wanted: Wanted, left_out: Set[SpanKey]) -> Wanted:
    """The same bitmaps without these spans."""
    if not left_out:
        return wanted
    found = {piece_index: bytearray(bitmap) for piece_index, bitmap in wanted}
    for piece_index, n in left_out:
        bitmap = found.get(piece_index)
        if bitmap is not None and n // 8 < len(bitmap):
            bitmap[n // 8] &= ~(1 << n % 8)
    trimmed = ((piece_index, bytes(bitmap).rstrip(b"\0")) for piece_index, bitmap in found.items())
    return tuple((piece_index, bitmap) for piece_index, bitmap in trimmed if bitmap)
