"""How many sites are sent to at a time, found out on simulated lines."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.serve_breadth import LEVELS, Breadth

SPAN = 1 << 20


def play(breadth: Breadth, *, sites: int, own: float, theirs: float, spans: int) -> list[int]:
    """Send spans over a line of `own` spans a second to sites with lines of `theirs`; what was
    in use at each."""
    used = []
    now = 0.0
    begun: deque[float] = deque()
    for _ in range(spans):
        used.append(breadth.limit)
        at_once = min(breadth.limit, sites)
        while len(begun) < at_once:
            begun.append(now)
        now += 1 / min(own, theirs * at_once)
        took_s = now - begun.popleft()
        ages_s = [now - since for since in begun]
        breadth.sent(SPAN, took_s=took_s, ages_s=ages_s, sites=sites, now=now)
    return used


def test_many_slow_lines_at_a_fast_one_are_used_together() -> None:
    used = play(Breadth(), sites=200, own=10_000, theirs=1, spans=2_000)
    assert used[0] == LEVELS[0]
    assert used[-1] >= 128


@pytest.mark.parametrize("own", [1.0, 2.0, 3.0])
def test_a_line_that_is_full_with_few_is_not_shared_by_many(own: float) -> None:
    used = play(Breadth(), sites=200, own=own, theirs=1, spans=4_000)
    assert used[-1] <= 4
    late = used[2_000:]
    assert sum(one > 4 for one in late) < len(late) / 10


def test_what_is_tried_is_given_up_when_a_line_becomes_narrow_and_found_again() -> None:
    breadth = Breadth()
    play(breadth, sites=60, own=10_000, theirs=1, spans=1_000)
    assert breadth.limit >= 48
    play(breadth, sites=60, own=4, theirs=1, spans=20_000)
    assert breadth.limit <= 8
    play(breadth, sites=60, own=10_000, theirs=1, spans=20_000)
    assert breadth.limit >= 32


@pytest.mark.parametrize("sites", [1, 2, 3])
def test_where_no_site_waits_nothing_is_tried(sites: int) -> None:
    assert set(play(Breadth(), sites=sites, own=4, theirs=1, spans=1_000)) == {LEVELS[0]}


def test_what_has_paid_is_remembered_while_few_want_anything() -> None:
    breadth = Breadth()
    play(breadth, sites=60, own=10_000, theirs=1, spans=1_000)
    play(breadth, sites=2, own=10_000, theirs=1, spans=1_000)
    assert breadth.limit >= 48


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.integers(1, 3000), st.floats(0, 10)),
        max_size=300,
    )
)
def test_whatever_is_taken_and_when_the_limit_is_one_of_the_levels(
    taken: list[tuple[float, int, float]],
) -> None:
    breadth = Breadth()
    now = 0.0
    for passed_s, sites, took_s in taken:
        now += passed_s
        breadth.sent(SPAN, took_s=took_s, ages_s=[took_s] * (sites // 2), sites=sites, now=now)
        assert breadth.limit in LEVELS
