"""Benchmarks on hosts with networks of their own: their yardsticks, and tiny runs of them."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import crowd, long_line, sites, swarm
from bench.crowd import percentile
from bench.many import Delivery, Passed, Rounds
from bench.measuring import Usage
from bench.swarm import lower_bound_s
from tests.fleet.hosts import require_tools
from tests.fleet.lines import LineShape
from tests.fleet.namespaces import namespaces

MB = 1_000_000


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: there is not much room for the path of a socket."""
    require_tools()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("seed_up", "ups", "downs", "seconds"),
    [
        (10 * MB, [10 * MB] * 8, [10 * MB] * 8, 10.0),
        (5 * MB, [10 * MB] * 8, [10 * MB] * 8, 20.0),
        (10 * MB, [10 * MB] * 2, [4 * MB, 10 * MB], 25.0),
        (10 * MB, [0.0] * 8, [10 * MB] * 8, 80.0),
    ],
    ids=["every line alike", "the seed's line", "the slowest receiver", "nobody helps"],
)
def test_no_program_can_be_faster_than_the_lines(
    seed_up: float, ups: list[float], downs: list[float], seconds: float
) -> None:
    assert lower_bound_s(100 * MB, seed_up, ups, downs) == pytest.approx(seconds)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.999) == 100
    assert percentile([7.0], 0.5) == 7


def test_copies_and_times_are_said_of_the_last_receiver() -> None:
    usage = Usage(1.0, 50.0)
    rounds = Rounds(
        [Delivery((8.0, 12.0), usage, usage)],
        [Passed({"seed": 110 * MB, "room-1": 50 * MB, "room-2": 40 * MB}, {})],
        [{}],
    )
    figures = swarm.summary(
        {"archid": rounds, "syncthing": None},
        receivers=2, shape=LineShape("80mbit"), size_bytes=100 * MB,
    )  # fmt: skip
    found = figures["programs"]["archid"]
    assert found["time_over_lower_bound"]["median"] == pytest.approx(1.2)
    assert found["copies_from_seed"]["median"] == pytest.approx(1.1)
    told = swarm.report(figures)
    assert "| syncthing | absent |" in told
    assert "1.20 (1.20 to 1.20)" in told


def asked(**given: object) -> argparse.Namespace:
    """Arguments of the command line."""
    usual = {"full": False, "size": 1 << 20, "rounds": 1, "peers": (), "rate": None}
    return argparse.Namespace(**{**usual, **given})


@pytest.mark.long
def test_a_swarm_is_measured_beside_its_peers(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm, "QUICK_RECEIVERS", (3,))
    outcome = swarm.benchmark(short, asked(peers=("libtorrent", "syncthing")))
    found = outcome.figures["receivers_3"]["programs"]
    assert found["archid"]["copies_from_seed"]["median"] > 1
    assert found["archid"]["time_over_lower_bound"]["median"] > 1
    assert {"libtorrent", "syncthing"} < set(found)


@pytest.mark.long
def test_cinemas_behind_slow_lines_are_measured(short: Path) -> None:
    outcome = sites.benchmark(short, asked())
    assert outcome.figures["programs"]["archid"]["copies_over_a_line"]["low"] > 1


@pytest.mark.long
def test_a_long_line_is_measured_beside_tcp(short: Path) -> None:
    outcome = long_line.benchmark(short, asked(peers=("rsync",)))
    [found] = outcome.figures.values()
    for program in ("archid", long_line.TCP):
        assert 0 < found["programs"][program]["rate_share"]["median"] < 1


@pytest.mark.long
def test_a_crowd_is_measured(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "QUICK_RECEIVERS", 4)
    outcome = crowd.benchmark(short, asked())
    found = outcome.figures["programs"]["archid"]
    assert found["p999_s"]["median"] >= found["p50_s"]["median"] > 0
    assert found["origin_bytes_a_byte_delivered"]["median"] > 0.5


@pytest.mark.long
def test_a_benchmark_that_is_told_to_end_leaves_no_network(short: Path) -> None:
    words = ["swarm", "--peers", "", "--size", "1MiB", "--folder", str(short), "--rate", "5mbit"]
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "bench", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert running.stderr is not None
    for line in running.stderr:
        if " line of " in line:
            break
    mine = [name for name in namespaces() if f"-{running.pid}-" in name]
    assert len(mine) > 8
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 128 + signal.SIGTERM
    running.stderr.close()
    assert not set(mine) & set(namespaces())
    assert not os.path.exists(f"/proc/{running.pid}")
