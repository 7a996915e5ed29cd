"""How long a control command waits for its answer while a transfer runs at full speed.

One large file goes from central to a server. Meanwhile both are asked for their status over the
control socket, as `archid status` asks, each question on a connection of its own, the next one a
little after the answer. The same at rest beside it. The start of the command itself is not in it.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from archid.control.client import ControlClient
from bench.archid_pair import ArchidPair, archid_pair
from bench.benchmark import Chart, Outcome
from bench.inputs import InputShape, write_input
from bench.measuring import Spread, say, significant, table, warm_files, warm_memory
from bench.network import network
from bench.pair import SPARE_BYTES, compare

PAUSE_S: Final = 0.02
REST_S: Final = 5.0
GOAL_MS: Final = 100.0
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "max": 1.0}

Latencies = dict[str, list[float]]
"""Milliseconds by who was asked and when."""


class Asker:
    """Asks one daemon for its status again and again, in a thread of its own."""

    def __init__(self, socket: Path) -> None:
        self._client = ControlClient(socket)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.found_ms: list[float] = []
        self._thread.start()

    def _ask(self) -> None:
        while not self._ended.wait(PAUSE_S):
            began = time.perf_counter()
            self._client.call("status", {})
            self.found_ms.append((time.perf_counter() - began) * 1e3)

    def stop(self) -> list[float]:
        """Every answer's milliseconds, the one that is under way included."""
        self._ended.set()
        self._thread.join()
        return self.found_ms


@contextmanager
def _asked(sockets: Mapping[str, Path], found: Latencies) -> Iterator[None]:
    askers = {name: Asker(socket) for name, socket in sockets.items()}
    try:
        yield
    finally:
        for name, asker in askers.items():
            found.setdefault(name, []).extend(asker.stop())


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """Some transfers, and the same servers at rest."""
    size = args.size or (2 << 30 if args.full else 512 << 20)
    found: Latencies = {}
    rates = []
    write_input(base / "source", InputShape(1, size))
    with network("responsive") as own, archid_pair(base / "archid", base / "source", own) as pair:
        for _ in range(args.rounds or 3):
            rate = _round(pair, base / "source", size, found)
            rates.append(rate)
    figures = {
        "shape": {"size_bytes": size},
        "mb_per_s_meanwhile": vars(Spread.of(rates)),
        "answers_ms": {name: summary(values) for name, values in found.items()},
    }
    return Outcome(figures, [*report(figures)], list(_charts(figures)))


def _round(pair: ArchidPair, source: Path, size: int, found: Latencies) -> float:
    with pair.ready() as node:
        warm_files(source)
        warm_memory(2 * size + SPARE_BYTES)
        sockets = {"source": pair.central.socket, "destination": node.socket}
        with _asked({f"archid {name}, transfer": one for name, one in sockets.items()}, found):
            done = pair.transfer(node)
        say(f"archid: {done.seconds:.2f} s")
        compare(source, pair.tree(node))
        with _asked({f"archid {name}, at rest": one for name, one in sockets.items()}, found):
            time.sleep(REST_S)
    return size / 1e6 / done.seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Quantiles of milliseconds, and how many answers there were."""
    ordered = sorted(values)
    found = {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for name, share in QUANTILES.items()
    }
    return {**found, "answers": len(ordered)}


def report(figures: Mapping[str, Any]) -> Iterator[str]:
    """A Markdown table, and whether the goal is reached."""
    rows = [
        [name, *(significant(one[key]) for key in QUANTILES), f"{one['answers']:,}"]
        for name, one in figures["answers_ms"].items()
    ]
    yield table(["asked", *(f"{key}, ms" for key in QUANTILES), "answers"], rows)
    rate = Spread(**figures["mb_per_s_meanwhile"]).text(0)
    slowest = max(one["max"] for one in figures["answers_ms"].values())
    verdict = "reached" if slowest < GOAL_MS else "missed"
    yield (
        f"The transfers ran at {rate} MB/s while they were asked.\n\n- {slowest:.0f} ms for the"
        f" slowest answer; the goal is less than {GOAL_MS:.0f} ms: **{verdict}**"
    )


def _charts(figures: Mapping[str, Any]) -> Iterator[Chart]:
    for key, what in {"p50": "p50", "p99": "p99", "max": "the slowest"}.items():
        bars = {name: one[key] for name, one in figures["answers_ms"].items()}
        yield Chart(f"Answers to status: {what}", "ms", bars, goal=GOAL_MS)
