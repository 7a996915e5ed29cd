"""What a cinema's line carries when its servers fetch the same, in simulated time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.swarm import MIB, Swarm, simulate

CINEMA = Swarm(4, 64, window=4, offers=4, site_size=4)
"""Four servers behind ten megabits a second."""


def line_s(swarm: Swarm) -> float:
    """How long the line takes for one copy."""
    return swarm.size_mib * MIB / swarm.line_rate


@pytest.mark.parametrize(("size_mib", "meet_s"), [(16, 0.5), (24, 5.0)])
def test_on_a_slow_line_what_siblings_have_nearly_is_left_to_them(
    size_mib: int, meet_s: float
) -> None:
    """The mean of several runs: nothing of a short script comes over it twice."""
    swarm = replace(CINEMA, size_mib=size_mib, meet_s=meet_s)
    results = [simulate(replace(swarm, seed=seed)) for seed in (1, 2, 3)]
    assert sum(one.line_copies for one in results) / 3 <= 1.02
    assert sum(one.seconds for one in results) / 3 <= 1.06 * line_s(swarm)


@pytest.mark.parametrize("holders", [1, 2, 3])
def test_a_cinemas_line_carries_each_byte_about_once(holders: int) -> None:
    cinema = replace(CINEMA, seeds=holders)
    result = simulate(cinema)
    assert result.line_copies <= 1.05
    assert result.seconds <= 1.15 * line_s(cinema)


def test_holders_that_cannot_pick_are_asked_for_each_byte_about_once_too() -> None:
    cinema = replace(CINEMA, picks=False)
    result = simulate(cinema)
    assert result.line_copies <= 1.05
    assert result.seconds <= 1.15 * line_s(cinema)


def test_servers_that_know_nothing_of_one_another_cost_more() -> None:
    assert simulate(replace(CINEMA, seeds=2, divide=False)).line_copies > 1.1


@pytest.mark.parametrize("stuck", [{1}, {1, 2, 3}])
def test_servers_that_get_nothing_from_outside_cost_neither_bytes_nor_time(stuck: set[int]) -> None:
    cinema = replace(CINEMA, stuck=frozenset(stuck))
    result = simulate(cinema)
    assert result.line_copies <= 1.05
    assert result.seconds <= 1.15 * line_s(cinema)


def test_when_servers_vanish_the_others_fetch_what_was_theirs() -> None:
    cinema = replace(CINEMA, lost=((1, 20.0), (2, 21.0), (3, 5.0)))
    result = simulate(cinema)
    assert result.seconds <= 1.15 * line_s(cinema)


def test_each_of_three_cinemas_gets_about_one_copy() -> None:
    result = simulate(replace(CINEMA, receivers=12, seeds=2))
    assert result.line_copies <= 1.08


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    receivers=st.integers(2, 5),
    size_mib=st.integers(1, 24),
    seeds=st.integers(1, 3),
    stuck=st.sets(st.integers(1, 4), max_size=3),
    lost=st.dictionaries(st.integers(1, 4), st.floats(0, 20), max_size=3),
    line_rate=st.sampled_from([0.2e6, 1.25e6, 12e6, 200e6]),
    meet_s=st.sampled_from([0.0, 0.5, 5.0]),
    picks=st.booleans(),
)
def test_whatever_happens_to_siblings_nobody_waits_for_them_for_long(
    seed: int,
    receivers: int,
    size_mib: int,
    seeds: int,
    stuck: set[int],
    lost: dict[int, float],
    line_rate: float,
    meet_s: float,
    picks: bool,
) -> None:
    """Receiver 0 reaches a holder of everything, so everybody who stays finishes."""
    swarm = Swarm(
        receivers,
        size_mib,
        seeds=seeds,
        picks=picks,
        window=4,
        offers=4,
        seed=seed,
        site_size=receivers,
        line_rate=line_rate,
        meet_s=meet_s,
        stuck=frozenset(stuck),
        lost=tuple((one, at_s) for one, at_s in lost.items() if one < receivers),
    )
    result = simulate(swarm)
    # Alone, each would have its copy after at least one line's time: all of them together take
    # no longer than one after the other, and a bounded wait for those who never come forward.
    assert result.seconds <= receivers * (line_s(swarm) + 1) + 45
