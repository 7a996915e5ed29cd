"""How well receivers help one another: one seed, many receivers, all with the same line.

The yardstick is what no program can be faster than: the seed has to send everything once, the
slowest receiver has to get everything, and all copies have to be sent by somebody. Rates are those
of the lines, of which the headers of Ethernet, IP and TCP take 4.4 % before anybody says a word.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench.benchmark import Chart, Outcome
from bench.line_check import checked_line
from bench.many import USAGE_HEAD, Layout, Place, Rounds, networks, run, usage_cells, usage_figures
from bench.measuring import Spread, table
from bench.spreaders import spreaders
from tests.fleet.lines import LineShape

GOAL_RATIO: Final = 1.10
GOAL_COPIES: Final = 1.1
FULL_RECEIVERS: Final = (8, 16)
FULL_BYTES: Final = 128 << 20
FULL_LINE: Final = LineShape("100mbit")
QUICK_RECEIVERS: Final = (8,)
QUICK_BYTES: Final = 16 << 20
QUICK_LINE: Final = FULL_LINE
PEERS: Final = ("libtorrent", "syncthing")


def lower_bound_s(
    size_bytes: float, seed_up: float, ups: Sequence[float], downs: Sequence[float]
) -> float:
    """Seconds that it takes at least until everybody has a file; rates in bytes a second.

    max(F / seed's up, F / slowest down, N F / sum of all ups): Mundinger, Weber, Weiss, "Optimal
    scheduling of peer-to-peer file dissemination", Journal of Scheduling 11 (2008).
    """
    return max(
        size_bytes / seed_up,
        size_bytes / min(downs),
        len(downs) * size_bytes / (seed_up + sum(ups)),
    )


def run_swarm(
    base: Path,
    *,
    receivers: int,
    shape: LineShape,
    size_bytes: int,
    rounds: int,
    peers: Sequence[str],
    fetch_plans: bool = False,
) -> tuple[dict[str, Rounds | None], str]:
    """What the programs did, and what the lines are."""
    with networks() as net, ExitStack() as stack:
        [seed] = net.host(shape=shape)
        hosts = [net.host(shape=shape)[0] for _ in range(receivers)]
        places = (Place(f"room-{n}", "hall", host) for n, host in enumerate(hosts, 1))
        layout = Layout(seed, tuple(places))
        checked = checked_line(seed, hosts[0], shape)
        programs = spreaders(stack, base, layout, peers, fetch_plans=fetch_plans)
        return run(base, layout, programs, size_bytes=size_bytes, rounds=rounds), checked


def summary(
    found: Mapping[str, Rounds | None], *, receivers: int, shape: LineShape, size_bytes: int
) -> dict[str, Any]:
    """Figures for each program: its time over the lower bound, and copies that the seed sent."""
    rate = shape.bits_per_s / 8
    bound_s = lower_bound_s(size_bytes, rate, [rate] * receivers, [rate] * receivers)
    return {
        "shape": {"receivers": receivers, "rate": shape.rate, "size_bytes": size_bytes},
        "lower_bound_s": bound_s,
        "programs": {
            name: None if rounds is None else _figures(rounds, bound_s, size_bytes)
            for name, rounds in found.items()
        },
    }


def _figures(rounds: Rounds, bound_s: float, size_bytes: int) -> dict[str, Any]:
    return {
        "seconds": vars(Spread.of(one.last_s for one in rounds.deliveries)),
        "time_over_lower_bound": vars(Spread.of(one.last_s / bound_s for one in rounds.deliveries)),
        "copies_from_seed": vars(Spread.of(one.sent["seed"] / size_bytes for one in rounds.passed)),
        "bytes_a_receiver_sent": vars(Spread.of(_receivers_sent(rounds))),
        **usage_figures(rounds),
    }


def _receivers_sent(rounds: Rounds) -> Iterator[float]:
    for passed in rounds.passed:
        yield from (count for name, count in passed.sent.items() if name != "seed")


def report(figures: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    head = ["program", "s", "over the lower bound", "copies the seed sent", *USAGE_HEAD]
    rows = []
    for name, one in figures["programs"].items():
        if one is None:
            rows.append([name, "absent", *[""] * (len(head) - 2)])
            continue
        rows.append(
            [
                name,
                Spread(**one["seconds"]).text(2),
                Spread(**one["time_over_lower_bound"]).text(2),
                Spread(**one["copies_from_seed"]).text(2),
                *usage_cells(one),
            ]
        )
    shape = figures["shape"]
    title = (
        f"{shape['receivers']} receivers, {shape['size_bytes'] >> 20} MiB, {shape['rate']} up and"
        f" down, lower bound {figures['lower_bound_s']:.2f} s; goal {GOAL_RATIO:.2f},"
        f" {GOAL_COPIES:.1f} copies"
    )
    return f"{title}\n\n{table(head, rows)}"


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """`swarm` of the command line."""
    shape = LineShape(args.rate) if args.rate else FULL_LINE if args.full else QUICK_LINE
    size = args.size or (FULL_BYTES if args.full else QUICK_BYTES)
    figures: dict[str, Any] = {}
    tables: list[str] = []
    charts: list[Chart] = []
    for receivers in FULL_RECEIVERS if args.full else QUICK_RECEIVERS:
        found, checked = run_swarm(
            base / str(receivers), receivers=receivers, shape=shape, size_bytes=size,
            rounds=args.rounds or 3, peers=[one for one in args.peers if one in PEERS],
        )  # fmt: skip
        one = summary(found, receivers=receivers, shape=shape, size_bytes=size)
        figures[f"receivers_{receivers}"] = one
        tables.append(f"{checked}\n\n{report(one)}")
        bars = {
            name: Spread(**program["time_over_lower_bound"])
            for name, program in one["programs"].items()
            if program is not None
        }
        title = f"swarm, {receivers} receivers: time until all have it"
        charts.append(Chart(title, "times the lower bound", bars, goal=GOAL_RATIO))
    return Outcome(figures, tables, charts)
