"""How many spans are sent at a time, found out on simulated lines."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.serve_breadth import FIRST, LEVELS, Breadth

SPAN = 1 << 20


class Sender:
    """Sends spans, as many at a time as it finds out, and each to another site; lines are given in
    spans a second, this node's `own` and those of the sites, `theirs`."""

    def __init__(self) -> None:
        self.breadth = Breadth()
        self._now = 0.0
        self._begun: deque[float] = deque()

    def play(self, *, sites: int, own: float, theirs: float, spans: int) -> list[int]:
        """How many were sent at a time, at each span."""
        used = []
        for _ in range(spans):
            limit = self.breadth.limit
            used.append(limit)
            at_once = min(limit, sites)
            while len(self._begun) < at_once:
                self._begun.append(self._now)
            self._now += 1 / min(own, theirs * at_once)
            took_s = self._now - self._begun.popleft()
            ages_s = [self._now - since for since in self._begun]
            binding = sites > limit
            self.breadth.sent(SPAN, took_s=took_s, ages_s=ages_s, binding=binding, now=self._now)
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
    sender.play(sites=200, own=10_000, theirs=1, spans=2_000)
    assert sender.breadth.limit >= 48
    sender.play(sites=200, own=4, theirs=1, spans=20_000)
    assert sender.breadth.limit <= 8
    sender.play(sites=200, own=10_000, theirs=1, spans=20_000)
    assert sender.breadth.limit >= 32


def test_where_nobody_waits_nothing_is_tried_and_what_has_paid_is_kept() -> None:
    used = Sender().play(sites=LEVELS[FIRST], own=4, theirs=1, spans=1_000)
    assert set(used) == {LEVELS[FIRST]}
    sender = Sender()
    sender.play(sites=200, own=10_000, theirs=1, spans=2_000)
    limit = sender.breadth.limit
    assert set(sender.play(sites=2, own=10_000, theirs=1, spans=1_000)) == {limit}


def test_a_trial_after_which_nobody_waits_is_judged_all_the_same() -> None:
    used = Sender().play(sites=LEVELS[FIRST] + 1, own=3, theirs=1, spans=2_000)
    assert max(used) > LEVELS[FIRST]
    late = used[1_000:]
    assert sum(one > LEVELS[FIRST] for one in late) < len(late) / 10


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.booleans(), st.floats(0, 10)),
        max_size=300,
    )
)
def test_whatever_is_taken_and_when_the_limit_is_one_of_the_levels(
    taken: list[tuple[float, bool, float]],
) -> None:
    breadth = Breadth()
    now = 0.0
    for passed_s, binding, took_s in taken:
        now += passed_s
        breadth.sent(SPAN, took_s=took_s, ages_s=[took_s] * 3, binding=binding, now=now)
        assert breadth.limit in LEVELS
