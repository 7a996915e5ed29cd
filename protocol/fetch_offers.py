"""What a fetch plan offers a server to pick from, and what became of it.

An offer is a request for any of several spans. It names the first spans in manifest order that
are free, enough of them for a choice and no more: so it stays small and cheap on both sides
whatever the version's size, and a whole swarm moves through a long version together. It covers
nothing: until the server has picked, every span of it may be asked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final, TypeAlias

from protocol.fetch_events import SpanKey, Wanted
from protocol.limits import MAX_ANY_PIECES

ENOUGH: Final = 192
"""An offer of so many spans, with what is left of the last piece, is choice enough."""

_Piece: TypeAlias = tuple[int, list[tuple[int, int]]]


class OfferTable:
    """The spans of one plan by their pieces.

    What is missing only ever gets less: pieces are looked at in manifest order, and of each only
    what was still missing when it was looked at last.
    """

    def __init__(self, spans: Sequence[SpanKey], bit_of: Mapping[SpanKey, int]) -> None:
        by_piece: dict[int, list[tuple[int, int]]] = {}
        for span in sorted(spans):
            by_piece.setdefault(span.piece_index, []).append((span.n, bit_of[span]))
        self._unseen = list(reversed(by_piece.items()))
        self._open: list[_Piece] = []
        self._mask_bytes = len(bit_of) // 8 + 1

    def offer(self, free: int, missing: int) -> tuple[int, Wanted]:
        """The part of `free` to offer, as a mask and as bitmaps; `missing` is all not held."""
        mask = bytearray(self._mask_bytes)
        wanted: list[tuple[int, bytes]] = []
        for piece_index, spans in self._find(free, missing):
            bitmap = bytearray(spans[-1][0] // 8 + 1)
            for n, bit in spans:
                bitmap[n >> 3] |= 1 << (n & 7)
                mask[bit >> 3] |= 1 << (bit & 7)
            wanted.append((piece_index, bytes(bitmap)))
        return int.from_bytes(mask, "little"), tuple(wanted)

    def _find(self, free: int, missing: int) -> list[_Piece]:
        raw = free.to_bytes(self._mask_bytes, "little")
        lacking = missing.to_bytes(self._mask_bytes, "little")
        found: list[_Piece] = []
        count = at = 0
        while count < ENOUGH and len(found) < MAX_ANY_PIECES:
            if at == len(self._open):
                if not self._unseen:
                    break
                self._open.append(self._unseen.pop())
            piece_index, spans = self._open[at]
            spans = [(n, bit) for n, bit in spans if lacking[bit >> 3] >> (bit & 7) & 1]
            if not spans:
                del self._open[at]
                continue
            self._open[at] = piece_index, spans
            at += 1
            if offered := [(n, bit) for n, bit in spans if raw[bit >> 3] >> (bit & 7) & 1]:
                found.append((piece_index, offered))
                count += len(offered)
        return found


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
