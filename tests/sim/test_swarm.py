"""How well a swarm fills, in simulated time: deterministic, so the ratios are exact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.swarm import MIB, Swarm, simulate


@pytest.mark.parametrize(
    ("swarm", "slowest"),
    [
        # The last span has to go from the one that got it to everybody else: so short is 32 MiB.
        (Swarm(8, 32), 1.30),
        (Swarm(8, 128), 1.10),
        (Swarm(16, 64), 1.30),
    ],
    ids=repr,
)
def test_a_swarm_fills_near_the_bound_and_the_seed_sends_hardly_more_than_one_copy(
    swarm: Swarm, slowest: float
) -> None:
    result = simulate(swarm)
    assert result.seconds <= slowest * swarm.lower_bound_s
    assert result.seed_copies <= 1.1
    assert result.duplicate_bytes <= 0.01 * swarm.receivers * swarm.size_mib * MIB


def test_servers_that_pick_beat_receivers_that_name() -> None:
    picking, naming = simulate(Swarm(8, 64)), simulate(Swarm(8, 64, picks=False))
    assert picking.seconds < 0.9 * naming.seconds
    assert picking.seed_copies < 0.8 * naming.seed_copies


def test_several_seeds_hardly_ever_send_one_receiver_the_same() -> None:
    swarm = Swarm(8, 64, seeds=3)
    result = simulate(swarm)
    assert result.duplicate_bytes <= 0.025 * swarm.receivers * swarm.size_mib * MIB


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
