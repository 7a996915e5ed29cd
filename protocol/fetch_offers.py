"""What a fetch plan offers a server to pick from, and what became of it.

An offer is a request for any of several spans. It names few pieces, the first in manifest order
that still lack something: so it stays small whatever the version's size, and a whole swarm moves
through a long version together. It covers nothing: until the server has picked, every span of
it may be asked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from protocol.fetch_events import SpanKey, Wanted
from protocol.fetch_spans import bits
from protocol.limits import MAX_ANY_PIECES

FEW: Final = 512
"""So many spans are looked up one by one rather than by going through the pieces."""


class OfferTable:
    """The spans of one plan by their pieces."""

    def __init__(self, spans: Sequence[SpanKey], bit_of: Mapping[SpanKey, int]) -> None:
        by_piece: dict[int, list[tuple[int, int]]] = {}
        for span in sorted(spans):
            by_piece.setdefault(span.piece_index, []).append((span.n, bit_of[span]))
        self._pieces = list(by_piece.items())
        self._keys = {bit: span for span, bit in bit_of.items()}
        self._first = 0

    def offer(self, free: int, missing: int) -> tuple[int, Wanted]:
        """The part of `free` to offer, as a mask and as bitmaps; `missing` is all not held."""
        found = self._few(free) if free.bit_count() <= FEW else self._many(free, missing)
        mask = bytearray((free.bit_length() + 7) // 8)
        wanted: list[tuple[int, bytes]] = []
        for piece_index, spans in found:
            bitmap = bytearray(max(n for n, _ in spans) // 8 + 1)
            for n, bit in spans:
                bitmap[n >> 3] |= 1 << (n & 7)
                mask[bit >> 3] |= 1 << (bit & 7)
            wanted.append((piece_index, bytes(bitmap)))
        return int.from_bytes(mask, "little"), tuple(wanted)

    def _few(self, free: int) -> list[tuple[int, list[tuple[int, int]]]]:
        by_piece: dict[int, list[tuple[int, int]]] = {}
        for bit in bits(free):
            span = self._keys[bit]
            by_piece.setdefault(span.piece_index, []).append((span.n, bit))
        return sorted(by_piece.items())[:MAX_ANY_PIECES]

    def _many(self, free: int, missing: int) -> list[tuple[int, list[tuple[int, int]]]]:
        size = max(free.bit_length(), missing.bit_length()) // 8 + 1
        raw, lacking = free.to_bytes(size, "little"), missing.to_bytes(size, "little")
        pieces = self._pieces
        while not any(lacking[bit >> 3] >> (bit & 7) & 1 for _, bit in pieces[self._first][1]):
            self._first += 1  # pieces that are whole are never looked at again
        found: list[tuple[int, list[tuple[int, int]]]] = []
        for piece_index, spans in pieces[self._first :]:
            open_spans = [(n, bit) for n, bit in spans if raw[bit >> 3] >> (bit & 7) & 1]
            if open_spans:
                found.append((piece_index, open_spans))
                if len(found) == MAX_ANY_PIECES:
                    break
        return found
