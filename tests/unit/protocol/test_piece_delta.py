"""A piece told by others: what is put together is the piece, and nothing else is believed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FormatError
from protocol.ids import FleetId, PieceId
from protocol.limits import MAX_DELTA_BASES, MAX_DELTA_RANGES, MAX_PIECE_BYTES
from protocol.manifest_builder import ManifestBuilder
from protocol.messages import PieceDelta
from protocol.piece_delta import DeltaMaker, apply_delta, bases_for, whole

FILES = 3000


def some_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def manifest(
    changed: frozenset[int], *, left_out: frozenset[int] = frozenset()
) -> dict[PieceId, bytes]:
    """The pieces of a tree of many files, in order, of which some are as in a next version."""
    builder = ManifestBuilder(FleetId(b"f" * 32), "feature", "Film", 1)
    for n in range(FILES):
        if n % 100 == 0:
            builder.add_folder(f"reel {n // 100:03}")
        if n in left_out:
            continue
        new = n in changed
        chunk = some_bytes(n + FILES * new, 32)
        builder.add_file(
            f"reel {n // 100:03}/frame {n:06}.led",
            executable=False,
            mtime_ns=1_700_000_000_000_000_000 + 60 * 10**9 * new,
            chunks=[(chunk, 16_384)],
        )
    return builder.finish()[1]


def told_bytes(old: dict[PieceId, bytes], new: dict[PieceId, bytes]) -> int:
    """How much goes over the wire for the new pieces, each put together again and compared."""
    missing = [piece for piece in new if piece not in old]
    total = 0
    for first in range(0, len(missing), 16):
        wanted = missing[first : first + 16]
        bases = bases_for(wanted, list(new), list(old))
        assert len(bases) <= MAX_DELTA_BASES
        maker = DeltaMaker({n: old[base] for n, base in enumerate(bases)})
        for piece in wanted:
            delta = maker.delta(new[piece])
            total += len(b"".join(PieceDelta(1, piece, delta.ranges, delta.data).encode()))
            known = [old[base] for base in bases]
            assert apply_delta(delta.ranges, delta.data, known, len(new[piece])) == new[piece]
    return total


def test_one_changed_file_in_a_hundred_costs_little_more_than_its_own_rows() -> None:
    changed = frozenset(random.Random(1).sample(range(FILES), FILES // 100))
    old, new = manifest(frozenset()), manifest(changed)
    missing = [piece for piece in new if piece not in old]
    assert len(missing) > len(new) // 2, "most pieces are to be new"
    # A row of 36 bytes, a date of 9, and the ranges around them.
    assert told_bytes(old, new) < 120 * len(changed) + 150 * len(missing)


def test_files_that_come_and_go_move_nothing_else() -> None:
    gone = frozenset(random.Random(2).sample(range(FILES), 20))
    old, new = manifest(frozenset()), manifest(frozenset(), left_out=gone)
    assert told_bytes(old, new) < sum(map(len, new.values())) // 10
    assert told_bytes(new, old) < sum(map(len, old.values())) // 10


@given(
    st.lists(st.integers(0, 3).map(lambda n: some_bytes(n, 700)), min_size=1, max_size=4),
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 3), st.integers(0, 600), st.integers(1, 300)),
            st.binary(min_size=1, max_size=60),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_whatever_a_piece_shares_with_its_bases_it_comes_out_as_it_is(
    bases: list[bytes], parts: list[tuple[int, int, int] | bytes]
) -> None:
    piece = b"".join(
        part
        if isinstance(part, bytes)
        else bases[part[0] % len(bases)][part[1] : part[1] + part[2]]
        for part in parts
    )
    delta = DeltaMaker(dict(enumerate(bases))).delta(piece)
    assert apply_delta(delta.ranges, delta.data, bases, len(piece)) == piece


def test_what_has_nothing_in_common_comes_whole() -> None:
    piece = some_bytes(7, 5000)
    assert DeltaMaker({0: some_bytes(8, 5000)}).delta(piece) == whole(piece)
    assert DeltaMaker({}).delta(piece) == whole(piece)


def test_a_base_that_the_sender_lacks_keeps_its_number_for_the_others() -> None:
    base = some_bytes(9, 3000)
    delta = DeltaMaker({2: base}).delta(base[100:2900])
    assert delta.data == b""
    assert delta.ranges == ((3, 100, 2800),)


def test_a_delta_of_too_many_ranges_is_told_whole() -> None:
    base = some_bytes(10, MAX_PIECE_BYTES)
    step, kept = 14, 13
    # Every range is longer than a window, and the ranges are more than one message may hold.
    pieces = [base[at : at + kept] for at in range(0, MAX_PIECE_BYTES - step, step)]
    piece = b"\0".join(pieces)[:MAX_PIECE_BYTES]
    delta = DeltaMaker({0: base}).delta(piece)
    assert len(delta.ranges) <= MAX_DELTA_RANGES
    assert apply_delta(delta.ranges, delta.data, [base], len(piece)) == piece


@pytest.mark.parametrize(
    ("ranges", "length"),
    [
        (((0, 0, 6),), 6),  # beyond its own bytes
        (((1, 95, 6),), 6),  # beyond the base
        (((2, 0, 1),), 1),  # no such base
        (((1, 0, 10),), 11),  # shorter than the piece
        (((1, 0, 10),), 9),  # longer than the piece
        ((), 1),
        (((1, 0, 100),) * 2000, 200_000),  # longer than any piece
    ],
)
def test_a_delta_that_does_not_add_up_is_refused_before_anything_is_made(
    ranges: tuple[tuple[int, int, int], ...], length: int
) -> None:
    with pytest.raises(FormatError, match="piece delta"):
        apply_delta(ranges, b"bytes", [some_bytes(1, 100)], length)


def test_pieces_correspond_by_what_is_common_around_them() -> None:
    def named(*numbers: int) -> list[PieceId]:
        return [PieceId(bytes([n]) * 32) for n in numbers]

    old = named(1, 2, 3, 4, 5, 6, 7)
    new = named(1, 12, 3, 14, 15, 16, 7)
    assert bases_for(named(12), new, old) == named(2)
    assert bases_for(named(15), new, old) == named(4, 5, 6)
    assert bases_for(named(12, 14), new, old) == named(2, 4, 5)
    assert bases_for(named(1), new, []) == []
    assert bases_for(named(20), named(20), named(1)) == named(1)
