"""How well a swarm fills, in simulated time: deterministic, so the ratios are exact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.swarm import MIB, Swarm, simulate


@pytest.mark.parametrize(
    ("swarm", "slowest", "copies"),
    [
        # The last span has to go from the one that got it to everybody else, and meanwhile the
        # seed, which has nothing else to do, sends some again: so short is 32 MiB.
        (Swarm(8, 32), 1.35, 1.30),
        (Swarm(8, 128), 1.15, 1.10),
        # Of sites of their own, more than pays are sent to at first.
        (Swarm(16, 64), 1.45, 1.42),
        pytest.param(Swarm(16, 128), 1.25, 1.20, marks=pytest.mark.long),
        # Of one site they divide, so that nothing comes in twice.
        (Swarm(8, 128, site_size=8, line_rate=1e12), 1.18, 1.02),
        (Swarm(16, 64, site_size=16, line_rate=1e12), 1.40, 1.02),
    ],
    ids=str,
)
def test_a_swarm_fills_near_the_bound_and_the_seed_sends_hardly_more_than_one_copy(
    swarm: Swarm, slowest: float, copies: float
) -> None:
    result = simulate(swarm)
    assert result.seconds <= slowest * swarm.lower_bound_s
    assert result.seed_copies <= copies
    assert result.duplicate_bytes <= 0.035 * swarm.receivers * swarm.size_mib * MIB


@pytest.mark.parametrize("site_size", [0, 8])
def test_where_words_wait_in_full_queues_a_swarm_is_hardly_slower_and_nothing_comes_twice(
    site_size: int,
) -> None:
    """A line's own queue holds up every word: 60 ms there and back, as long as a span takes."""
    swarm = Swarm(8, 128, site_size=site_size, line_rate=1e12, delay_s=0.03)
    result = simulate(swarm)
    assert result.seconds <= 1.18 * swarm.lower_bound_s
    assert result.duplicate_bytes <= 0.01 * swarm.receivers * swarm.size_mib * MIB


@pytest.mark.parametrize("picks", [True, False])
def test_a_long_fast_line_is_kept_full(picks: bool) -> None:
    """A gigabit a second, 100 ms there and back: 12 spans are under way."""
    swarm = Swarm(1, 1024, rate=125e6, delay_s=0.05, jitter=0, picks=picks, window=4, offers=4)
    assert simulate(swarm).seconds <= swarm.lower_bound_s / 0.9


def test_servers_that_pick_beat_receivers_that_name() -> None:
    picking, naming = simulate(Swarm(8, 64)), simulate(Swarm(8, 64, picks=False))
    assert picking.seconds < 0.9 * naming.seconds
    assert picking.seed_copies < 0.8 * naming.seed_copies


def test_several_seeds_hardly_ever_send_one_receiver_the_same() -> None:
    swarm = Swarm(8, 64, seeds=3)
    result = simulate(swarm)
    assert result.duplicate_bytes <= 0.1 * swarm.receivers * swarm.size_mib * MIB


def test_one_seed_is_one_run_in_every_process() -> None:
    root = Path(__file__).parents[2]
    hashes = [
        subprocess.run(
            [sys.executable, "-m", "tests.sim.swarm", seed],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, hash_seed in (("1", "1"), ("1", "2"), ("2", "1"))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]
