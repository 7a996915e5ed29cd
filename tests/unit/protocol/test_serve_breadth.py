"""How many sites are sent to at a time, found out on simulated lines."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.serve_breadth import FIRST, LEVELS, Breadth

SPAN = 1 << 20


class Sender:
    """Sends spans, to as many sites at a time as it finds out; lines are given in spans a second,
    this node's `own` and those of the sites, `theirs`."""

    def __init__(self) -> None:
        self.breadth = Breadth()
        self._now = 0.0
        self._begun: deque[float] = deque()

    def play(self, *, sites: int, own: float, theirs: float, spans: int) -> list[int]:
        """How many sites were sent to at a time, at each span."""
        used = []
        for _ in range(spans):
            used.append(self.breadth.limit)
            at_once = min(self.breadth.limit, sites)
            while len(self._begun) < at_once:
                self._begun.append(self._now)
            self._now += 1 / min(own, theirs * at_once)
            took_s = self._now - self._begun.popleft()
            ages_s = [self._now - since for since in self._begun]
            self.breadth.sent(SPAN, took_s=took_s, ages_s=ages_s, sites=sites, now=self._now)
        return used


def test_many_slow_lines_at_a_fast_one_are_used_together() -> None:
    used = Sender().play(sites=200, own=10_000, theirs=1, spans=2_000)
    assert used[0] == LEVELS[FIRST]
    assert used[-1] >= 128


@pytest.mark.parametrize("own", [1.0, 2.0, 3.0])
def test_a_line_that_is_full_with_few_is_not_shared_by_many(own: float) -> None:
    used = Sender().play(sites=200, own=own, theirs=1, spans=4_000)
    assert used[-1] <= 4
    late = used[2_000:]
    assert sum(one > 4 for one in late) < len(late) / 10


def test_what_is_tried_is_given_up_when_a_line_becomes_narrow_and_found_again() -> None:
    sender = Sender()
    sender.play(sites=60, own=10_000, theirs=1, spans=1_000)
    assert sender.breadth.limit >= 48
    sender.play(sites=60, own=4, theirs=1, spans=20_000)
    assert sender.breadth.limit <= 8
    sender.play(sites=60, own=10_000, theirs=1, spans=20_000)
    assert sender.breadth.limit >= 32


@pytest.mark.parametrize("sites", [1, 2, 3])
def test_where_no_site_waits_nothing_is_tried(sites: int) -> None:
    assert set(Sender().play(sites=sites, own=4, theirs=1, spans=1_000)) == {LEVELS[FIRST]}


def test_what_has_paid_is_remembered_while_few_want_anything() -> None:
    sender = Sender()
    sender.play(sites=60, own=10_000, theirs=1, spans=1_000)
    sender.play(sites=2, own=10_000, theirs=1, spans=1_000)
    assert sender.breadth.limit >= 48


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
