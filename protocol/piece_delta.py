"""A manifest piece told by what it has in common with other pieces (SPEC.md 5.7).

Where few of many files changed, nearly every piece of the manifest is new and nearly all of each is
old. A delta is a list of ranges of its own bytes and of bases, which are pieces that the receiver
named and has. It proves nothing: whoever applies it checks the result against the piece's id. How
a delta is found is the sender's affair; this looks for windows of the bases that occur once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from protocol.errors import FormatError
from protocol.ids import PieceId
from protocol.limits import MAX_DELTA_BASES, MAX_DELTA_RANGES, MAX_PIECE_BYTES

WINDOW_BYTES: Final = 24
"""Shorter than a chunk's id, longer than what the records of neighbouring files share."""
STRIDE_BYTES: Final = WINDOW_BYTES
"""From one window of a base to the next. Half of it found 0.2 % more in manifests: what is common
is long, and what follows a small change is looked for first where it would stand."""
_TWICE: Final = -1
_PATIENCE_BYTES: Final = 128
_BLOCK_BYTES: Final = 256
_NEIGHBOURS: Final = 1


class Range(NamedTuple):
    """`length` bytes from `offset` on of a source: 0 is the delta's own bytes, n is base n - 1."""

    source: int
    offset: int
    length: int


class Delta(NamedTuple):
    """A piece as ranges, one after the other, of `data` and of bases."""

    ranges: tuple[Range, ...]
    data: bytes


def whole(piece: bytes) -> Delta:
    """A piece that has nothing in common with any base."""
    return Delta((Range(0, 0, len(piece)),), piece)


def apply_delta(
    ranges: Sequence[tuple[int, int, int]], data: bytes, bases: Sequence[bytes], length: int
) -> bytes:
    """The bytes of a piece of `length` bytes; raises FormatError unless it comes to just these.

    Nothing is put together before the lengths add up.
    """
    sources = (data, *bases)
    total = 0
    for source, offset, count in ranges:
        if source >= len(sources) or offset + count > len(sources[source]):
            raise FormatError("piece delta: a range is not in its source")
        total += count
    if total != length or total > MAX_PIECE_BYTES:
        raise FormatError(f"piece delta: it makes {total} bytes of a piece of {length}")
    return b"".join([sources[source][at : at + count] for source, at, count in ranges])


class DeltaMaker:
    """Finds deltas against the same bases; `bases` are by their numbers, some may be missing."""

    def __init__(self, bases: Mapping[int, bytes]) -> None:
        self._bases = bases
        self._at: dict[bytes, int] = {}
        """Number * MAX_PIECE_BYTES + offset of each window: one int, since they are many."""
        for number, base in bases.items():
            for offset in range(0, len(base) - WINDOW_BYTES + 1, STRIDE_BYTES):
                window = base[offset : offset + WINDOW_BYTES]
                # What occurs twice says nothing about where it belongs.
                place = number * MAX_PIECE_BYTES + offset
                self._at[window] = _TWICE if window in self._at else place

    def delta(self, piece: bytes) -> Delta:
        """How to tell a piece to whoever has the bases."""
        ranges: list[Range] = []
        data = bytearray()

        def tell(start: int, end: int) -> None:
            if start < end:
                ranges.append(Range(0, len(data), end - start))
                data.extend(piece[start:end])

        told = position = 0
        # After a change of a few bytes both usually go on side by side.
        beside: tuple[int, int] | None = None
        last = len(piece) - WINDOW_BYTES
        while position <= last:
            window = piece[position : position + WINDOW_BYTES]
            found = None
            if beside is not None:
                number, shift = beside
                offset = position + shift
                if self._bases[number][offset : offset + WINDOW_BYTES] == window:
                    found = number, offset
            if found is None:
                place = self._at.get(window, _TWICE)
                if place != _TWICE:
                    found = divmod(place, MAX_PIECE_BYTES)
            if found is None:
                # The longer nothing is in common the larger are the steps: in a piece that is all
                # new not every byte is looked at, and what is gone over is found backwards.
                position += 1 + (position - told) // _PATIENCE_BYTES
                continue
            number, offset = found
            base = self._bases[number]
            back = _alike_before(piece, position, base, offset, position - told)
            position, offset = position - back, offset - back
            length = _alike(piece, position, base, offset)
            tell(told, position)
            ranges.append(Range(number + 1, offset, length))
            beside = number, offset - position
            told = position = position + length
        tell(told, len(piece))
        return (
            Delta(tuple(ranges), bytes(data)) if len(ranges) <= MAX_DELTA_RANGES else whole(piece)
        )


def bases_for(
    wanted: Sequence[PieceId], new: Sequence[PieceId], old: Sequence[PieceId]
) -> list[PieceId]:
    """Pieces of an old manifest that are likely to be much like some of a new one.

    `new` and `old` are all pieces of both, in order. Between two pieces that both have, others
    correspond by their position.
    """
    places = {piece: at for at, piece in enumerate(old)}
    common = [(-1, -1)]
    for at, piece in enumerate(new):
        place = places.get(piece)
        if place is not None and place > common[-1][1]:
            common.append((at, place))
    common.append((len(new), len(old)))
    likely: set[int] = set()
    asked = set(wanted)
    for (new_start, old_start), (new_end, old_end) in pairwise(common):
        count, others = new_end - new_start - 1, old_end - old_start - 1
        for n in range(count):
            if new[new_start + 1 + n] in asked:
                middle = n * others // count
                first, end = max(0, middle - _NEIGHBOURS), min(others, middle + _NEIGHBOURS + 1)
                likely.update(range(old_start + 1 + first, old_start + 1 + end))
    return [old[at] for at in sorted(likely)][:MAX_DELTA_BASES]


def _alike(one: bytes, at: int, other: bytes, place: int) -> int:
    """How many bytes are the same from `at` and from `place` on."""
    limit = min(len(one) - at, len(other) - place)
    done = 0
    while done < limit:
        step = min(_BLOCK_BYTES, limit - done)
        a = one[at + done : at + done + step]
        b = other[place + done : place + done + step]
        if a != b:
            difference = int.from_bytes(a, "big") ^ int.from_bytes(b, "big")
            return done + step - (difference.bit_length() + 7) // 8
        done += step
    return done


def _alike_before(one: bytes, at: int, other: bytes, place: int, limit: int) -> int:
    """How many bytes are the same up to `at` and up to `place`, at most `limit`."""
    limit = min(limit, place)
    count = 0
    while count < limit and one[at - count - 1] == other[place - count - 1]:
        count += 1
    return count
