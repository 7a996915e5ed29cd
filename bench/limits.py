"""How exact a limit is: bytes on the wire over every 10 s of a transfer, against what it allows.

One file goes from central to a server, once with the limit at the sender (`up`) and once at the
receiver (`down`), large enough to take some seconds longer than the stretch that is looked at. The
limited node is asked for its own counters ten times a second.
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
from archid.rates import format_rate
from bench.archid_pair import ArchidPair, archid_pair
from bench.benchmark import Chart, Outcome
from bench.inputs import InputShape, write_input
from bench.measuring import Spread, table
from bench.network import network
from bench.pair import compare
from bench.transfer import TransferFailed
from tests.fleet.local import FleetNode

RATES: Final = (1_000_000, 10_000_000, 50_000_000)
FULL_STRETCH_S: Final = 10.0
SHORT_STRETCH_S: Final = 5.0
LONGER: Final = 1.5
"""The transfer takes this many stretches."""
LOOK_EVERY_S: Final = 0.1
GOAL: Final = 0.05

Sample = tuple[float, int]
"""When, on this machine's clock, and how many bytes had gone through by then."""


class Watcher:
    """Reads a node's counter again and again, in a thread of its own."""

    def __init__(self, node: FleetNode, counter: str) -> None:
        self._client = ControlClient(node.socket)
        self._counter = counter
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.samples: list[Sample] = []
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            asked = time.perf_counter()
            count = self._client.call("status", {})["traffic"][self._counter]
            self.samples.append(((asked + time.perf_counter()) / 2, count))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def _watched(node: FleetNode, counter: str) -> Iterator[Watcher]:
    watcher = Watcher(node, counter)
    try:
        yield watcher
    finally:
        watcher.stop()


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """Every rate in both directions."""
    stretch_s = FULL_STRETCH_S if args.full else SHORT_STRETCH_S
    rates: Sequence[int] = RATES if args.full else RATES[:2]
    longer = LONGER
    if args.size:
        # One file of this size, at a rate that takes it three seconds.
        rates, stretch_s, longer = (args.size // 3,), 1.0, 3.0
    found: dict[str, dict[str, Any]] = {}
    sources = {}
    for rate in rates:
        sources[rate] = base / f"source-{rate}"
        write_input(sources[rate], InputShape(1, int(longer * stretch_s * rate)))
    with (
        network("limits") as own,
        archid_pair(base / "archid", sources[rates[0]], own) as pair,
    ):
        for rate in rates:
            pair.change(sources[rate])
            for key in ("up", "down"):
                samples = _transfer(pair, sources[rate], key, rate)
                shares = list(shares_of(samples, rate, stretch_s))
                if not shares:
                    raise TransferFailed(f"no {stretch_s:g} s of the transfer could be watched")
                found[f"{key}={format_rate(rate)}"] = vars(Spread.of(shares))
    figures = {
        "shape": {"stretch_s": stretch_s, "rates": list(rates)},
        "of_the_limit_share": found,
    }
    return Outcome(figures, [*report(figures)], [_chart(figures)])


def _transfer(pair: ArchidPair, source: Path, key: str, rate: int) -> list[Sample]:
    with pair.ready() as node:
        limited = pair.central if key == "up" else node
        counter = "sent_bytes" if key == "up" else "received_bytes"
        limited.call("limits.set", limits=[f"{key}={format_rate(rate)}"], until=None)
        try:
            with _watched(limited, counter) as watcher:
                pair.transfer(node)
        finally:
            limited.call("limits.clear", keys=[])
        compare(source, pair.tree(node))
    return watcher.samples


def shares_of(samples: Sequence[Sample], rate: int, stretch_s: float) -> Iterator[float]:
    """What went through in each stretch of the busy time, as a share of what the limit allows.

    The busy time is that in which the middle 90 % of the bytes went: a transfer begins and ends
    with documents and with the disk.
    """
    first, last = samples[0][1], samples[-1][1]
    low, high = first + 0.05 * (last - first), last - 0.05 * (last - first)
    busy = [sample for sample in samples if low <= sample[1] <= high]
    for n, (began, before) in enumerate(busy):
        ends = [one for one in busy[n:] if one[0] - began >= stretch_s]
        if not ends:
            return
        ended, after = ends[0]
        yield (after - before) / (rate * (ended - began))


def report(figures: Mapping[str, Any]) -> Iterator[str]:
    """A Markdown table, and whether the goal is reached."""
    found = {name: Spread(**one) for name, one in figures["of_the_limit_share"].items()}
    stretch_s = figures["shape"]["stretch_s"]
    yield table(
        ["limit", f"went through in {stretch_s:g} s, % of what is allowed"],
        [
            [name, f"{100 * one.median:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"]
            for name, one in found.items()
        ],
    )
    worst = max(max(abs(1 - one.low), abs(1 - one.high)) for one in found.values())
    verdict = "reached" if worst <= GOAL else "missed"
    yield (
        f"- {100 * worst:.1f} % off in the worst stretch; the goal is at most"
        f" {100 * GOAL:.0f} %: **{verdict}**"
    )


def _chart(figures: Mapping[str, Any]) -> Chart:
    bars: dict[str, Spread | float] = {
        name: Spread(*(100 * one[key] for key in ("median", "low", "high")))
        for name, one in figures["of_the_limit_share"].items()
    }
    return Chart("What went through, of what the limit allows", "%", bars, 100.0)
