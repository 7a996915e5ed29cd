"""The token bucket lets through what its rate allows, to the byte, and serves in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from archid.net.token_bucket import BURST_S, TokenBucket

MBIT = 125_000
rates = st.integers(12_500, 1_000_000_000)
slices = st.integers(1, 256 * 1024)


def moved_in(bucket: TokenBucket, *, seconds: float, slice_bytes: int, late_s: float) -> int:
    """What one sender with always something to send gets through, when timers ring late."""
    now, end, moved = 0.0, seconds, 0
    while True:
        due = bucket.due_at(bucket.reserve(slice_bytes, now=now), now=now)
        if due > now:
            now = due + late_s
        if now > end:
            return moved
        moved += slice_bytes


@settings(deadline=None)
@given(
    rate=st.sampled_from([MBIT, 8 * MBIT, 80 * MBIT, 400 * MBIT, 1000 * MBIT]),
    late_s=st.sampled_from([0.0, 0.0001, 0.001, 0.02, 0.1]),
)
def test_ten_seconds_are_exact_within_five_percent_however_late_the_timers_are(
    rate: int, late_s: float
) -> None:
    bucket = TokenBucket(rate)
    slice_bytes = max(4096, min(rate // 100, 256 * 1024))
    moved = moved_in(bucket, seconds=10.0, slice_bytes=slice_bytes, late_s=late_s)
    assert 0.95 * 10 * rate <= moved <= 1.05 * 10 * rate


@settings(deadline=None)
@given(
    rate=rates,
    steps=st.lists(st.tuples(slices, st.floats(0, 5)), min_size=1, max_size=60),
)
def test_no_stretch_of_time_lets_more_through_than_its_rate_and_one_burst(
    rate: int, steps: list[tuple[int, float]]
) -> None:
    bucket = TokenBucket(rate)
    now = 0.0
    went: list[tuple[float, int]] = []
    for size_bytes, pause_s in steps:
        now = max(now, bucket.due_at(bucket.reserve(size_bytes, now=now), now=now))
        went.append((now, size_bytes))
        now += pause_s
    for first in range(len(went)):
        total = 0
        for at, size_bytes in went[first:]:
            total += size_bytes
            # The first slice may have waited for its credit before the stretch began.
            most = rate * (at - went[first][0] + BURST_S) + went[first][1]
            assert total <= most * (1 + 1e-9) + 1


@settings(deadline=None)
@given(rate=rates, sizes=st.lists(slices, min_size=2, max_size=20))
def test_those_who_wait_are_served_in_the_order_in_which_they_came(
    rate: int, sizes: list[int]
) -> None:
    bucket = TokenBucket(rate)
    places = [bucket.reserve(size, now=1.0) for size in sizes]
    due = [bucket.due_at(place, now=1.0) for place in places]
    assert due == sorted(due)
    assert due[-1] > due[0]


def test_a_new_rate_counts_for_those_who_wait_already() -> None:
    bucket = TokenBucket(1000)
    place = bucket.reserve(10_000, now=0.0)
    assert bucket.due_at(place, now=0.0) == 10.0
    bucket.set_rate(4000, now=2.0)
    assert bucket.due_at(place, now=2.0) == 4.0
    bucket.set_rate(None, now=3.0)
    assert bucket.due_at(place, now=3.0) == 3.0


def test_what_went_before_there_was_a_limit_does_not_count() -> None:
    bucket = TokenBucket(None)
    bucket.reserve(10**12, now=0.0)
    bucket.set_rate(1000, now=1.0)
    assert bucket.due_at(bucket.reserve(1000, now=1.0), now=1.0) == 2.0


def test_a_lower_rate_leaves_no_more_to_catch_up_than_itself_allows() -> None:
    bucket = TokenBucket(1_000_000)
    assert bucket.due_at(bucket.reserve(1, now=100.0), now=100.0) <= 100.0
    bucket.set_rate(1000, now=100.0)
    place = bucket.reserve(1000, now=100.0)
    assert bucket.due_at(place, now=100.0) == 100.0 + 1 - BURST_S


def test_what_is_given_back_brings_those_behind_it_forward() -> None:
    bucket = TokenBucket(1000)
    bucket.reserve(5000, now=0.0)
    behind = bucket.reserve(1000, now=0.0)
    assert bucket.due_at(behind, now=0.0) == 6.0
    bucket.give_back(5000)
    assert bucket.due_at(behind, now=0.0) == 1.0
