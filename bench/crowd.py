"""A hundred servers at once, from three REPOs and central: how evenly they are served, who fails.

Real processes, each with a network and a limited line of its own; two servers are one site, as the
two of an auditorium. All have joined and are connected before anything is measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench.benchmark import Chart, Outcome
from bench.line_check import checked_line
from bench.many import USAGE_HEAD, Layout, Place, Rounds, networks, run, usage_cells, usage_figures
from bench.measuring import Spread, table
from bench.spreaders import spreaders
from tests.fleet.lines import LineShape

GOAL_P99_OVER_P50: Final = 1.8
REPOS: Final = 3
PER_SITE: Final = 2
FULL_RECEIVERS: Final = 100
QUICK_RECEIVERS: Final = 10
FULL_BYTES: Final = 8 << 20
QUICK_BYTES: Final = 4 << 20
HOLDER_LINE: Final = LineShape("50mbit")
RECEIVER_LINE: Final = LineShape("20mbit")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def run_crowd(
    base: Path,
    *,
    receivers: int,
    size_bytes: int,
    rounds: int,
    peers: Sequence[str],
    fetch_plans: bool = False,
) -> tuple[dict[str, Rounds | None], str]:
    """What the programs did, and what the lines are."""
    with networks() as net, ExitStack() as stack:
        seed, *repos = (net.host(shape=HOLDER_LINE)[0] for _ in range(1 + REPOS))
        places = []
        for number in range(receivers):
            [host] = net.host(shape=RECEIVER_LINE)
            places.append(Place(f"ice-{number + 1}", f"site-{number // PER_SITE + 1}", host))
        checked = checked_line(seed, places[0].host, RECEIVER_LINE)
        layout = Layout(seed, tuple(places), tuple(repos))
        programs = spreaders(stack, base, layout, peers, fetch_plans=fetch_plans)
        return run(base, layout, programs, size_bytes=size_bytes, rounds=rounds), checked


def summary(
    found: Mapping[str, Rounds | None], *, receivers: int, size_bytes: int
) -> dict[str, Any]:
    """Figures for each program; percentiles are over the receivers of one round."""
    return {
        "shape": {
            "receivers": receivers, "repos": REPOS, "size_bytes": size_bytes,
            "holder_rate": HOLDER_LINE.rate, "receiver_rate": RECEIVER_LINE.rate,
        },
        "programs": {
            name: None if rounds is None else _figures(rounds, receivers * size_bytes)
            for name, rounds in found.items()
        },
    }  # fmt: skip


def _figures(rounds: Rounds, delivered_bytes: int) -> dict[str, Any]:
    seconds = [one.seconds for one in rounds.deliveries]
    return {
        "p50_s": vars(Spread.of(percentile(one, 0.5) for one in seconds)),
        "p99_s": vars(Spread.of(percentile(one, 0.99) for one in seconds)),
        "p999_s": vars(Spread.of(percentile(one, 0.999) for one in seconds)),
        "p99_over_p50": vars(
            Spread.of(percentile(one, 0.99) / percentile(one, 0.5) for one in seconds)
        ),
        "origin_bytes_a_byte_delivered": vars(
            Spread.of(one.from_holders / delivered_bytes for one in rounds.passed)
        ),
        **usage_figures(rounds),
    }


def report(figures: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    times = ("p50_s", "p99_s", "p999_s", "p99_over_p50", "origin_bytes_a_byte_delivered")
    head = ["program", "p50, s", "p99, s", "p99.9, s", "p99 over p50", "origin bytes a byte",
            *USAGE_HEAD]  # fmt: skip
    rows = []
    for name, one in figures["programs"].items():
        if one is None:
            rows.append([name, "absent", *[""] * (len(head) - 2)])
            continue
        rows.append([name, *(Spread(**one[key]).text(2) for key in times), *usage_cells(one)])
    shape = figures["shape"]
    title = (
        f"{shape['receivers']} receivers in sites of {PER_SITE}, lines of {shape['receiver_rate']},"
        f" from central and {REPOS} REPOs with {shape['holder_rate']} each,"
        f" {shape['size_bytes'] >> 20} MiB; nobody failed; goal {GOAL_P99_OVER_P50}"
    )
    return f"{title}\n\n{table(head, rows)}"


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """`crowd` of the command line."""
    receivers = FULL_RECEIVERS if args.full else QUICK_RECEIVERS
    size = args.size or (FULL_BYTES if args.full else QUICK_BYTES)
    found, checked = run_crowd(
        base, receivers=receivers, size_bytes=size, rounds=args.rounds or 3, peers=()
    )
    figures = summary(found, receivers=receivers, size_bytes=size)
    bars = {
        f"{name}, {key.removesuffix('_s')}": Spread(**one[key])
        for name, one in figures["programs"].items()
        if one is not None
        for key in ("p50_s", "p99_s", "p999_s")
    }
    chart = Chart(f"crowd: {receivers} receivers at once", "s", bars)
    return Outcome(figures, [f"{checked}\n\n{report(figures)}"], [chart])
