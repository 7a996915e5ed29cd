"""Cinemas behind slow, long, lossy lines: how often each carries the film, and for how long.

The source is elsewhere, with a fast line; inside a cinema the network is as fast as the machine.
Two things are told for each program: the time until the last server of all cinemas has everything,
over what one copy takes at the line's rate, and what came in over each line, as copies.
"""

from __future__ import annotations

import argparse
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

GOAL_TIME: Final = 1.15
GOAL_COPIES: Final = 1.05
FULL_CINEMAS: Final = 4
QUICK_CINEMAS: Final = 2
FULL_SERVERS: Final = 4
QUICK_SERVERS: Final = 2
"""Of each cinema."""
LINE: Final = LineShape("50mbit", delay_ms=15, loss=0.001)
FULL_BYTES: Final = 128 << 20
QUICK_BYTES: Final = 16 << 20
PEERS: Final = ("libtorrent", "syncthing")


def run_sites(
    base: Path,
    *,
    cinemas: int,
    servers: int,
    shape: LineShape,
    size_bytes: int,
    rounds: int,
    peers: Sequence[str],
    fetch_plans: bool = False,
) -> tuple[dict[str, Rounds | None], str]:
    """What the programs did, and what the lines are."""
    with networks() as net, ExitStack() as stack:
        [seed] = net.host()
        sites = {f"cinema-{number}": net.cinema(shape=shape) for number in range(1, cinemas + 1)}
        places = [
            Place(f"{site}-{server}", site, cinema.host())
            for site, cinema in sites.items()
            for server in range(1, servers + 1)
        ]
        checked = checked_line(seed, places[0].host, shape)
        lines = {site: cinema.line for site, cinema in sites.items()}
        layout = Layout(seed, tuple(places))
        programs = spreaders(stack, base, layout, peers, fetch_plans=fetch_plans)
        found = run(
            base, layout, programs, size_bytes=size_bytes, rounds=rounds, lines=lines
        )  # fmt: skip
        return found, checked


def summary(
    found: Mapping[str, Rounds | None],
    *,
    cinemas: int,
    servers: int,
    shape: LineShape,
    size_bytes: int,
) -> dict[str, Any]:
    """Figures for each program."""
    one_copy_s = size_bytes * 8 / shape.bits_per_s
    return {
        "shape": {
            "cinemas": cinemas, "servers": servers, "size_bytes": size_bytes, **vars(shape),
        },
        "one_copy_s": one_copy_s,
        "programs": {
            name: None if rounds is None else _figures(rounds, one_copy_s, size_bytes)
            for name, rounds in found.items()
        },
    }  # fmt: skip


def _figures(rounds: Rounds, one_copy_s: float, size_bytes: int) -> dict[str, Any]:
    return {
        "seconds": vars(Spread.of(one.last_s for one in rounds.deliveries)),
        "time_over_one_copy": vars(
            Spread.of(one.last_s / one_copy_s for one in rounds.deliveries)
        ),
        "copies_over_a_line": vars(
            Spread.of(count / size_bytes for came in rounds.extra for count in came.values())
        ),
        **usage_figures(rounds),
    }  # fmt: skip


def report(figures: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    head = ["program", "s", "over one copy's time", "copies over each line", *USAGE_HEAD]
    rows = []
    for name, one in figures["programs"].items():
        if one is None:
            rows.append([name, "absent", *[""] * (len(head) - 2)])
            continue
        rows.append(
            [
                name,
                Spread(**one["seconds"]).text(2),
                Spread(**one["time_over_one_copy"]).text(2),
                Spread(**one["copies_over_a_line"]).text(3),
                *usage_cells(one),
            ]
        )
    shape = figures["shape"]
    size, cinemas, servers = shape["size_bytes"], shape["cinemas"], shape["servers"]
    title = (
        f"{cinemas} cinemas of {servers} servers, {size >> 20} MiB, one copy takes"
        f" {figures['one_copy_s']:.2f} s; goals {GOAL_TIME:.2f} and {GOAL_COPIES:.2f}"
    )
    return f"{title}\n\n{table(head, rows)}"


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """`sites` of the command line."""
    shape = LineShape(args.rate or LINE.rate, delay_ms=LINE.delay_ms, loss=LINE.loss)
    size = args.size or (FULL_BYTES if args.full else QUICK_BYTES)
    cinemas = FULL_CINEMAS if args.full else QUICK_CINEMAS
    servers = FULL_SERVERS if args.full else QUICK_SERVERS
    found, checked = run_sites(
        base, cinemas=cinemas, servers=servers, shape=shape, size_bytes=size,
        rounds=args.rounds or 3, peers=[one for one in args.peers if one in PEERS],
    )  # fmt: skip
    figures = summary(found, cinemas=cinemas, servers=servers, shape=shape, size_bytes=size)
    present = {name: one for name, one in figures["programs"].items() if one is not None}
    charts = [
        Chart(
            "sites: time until all servers have it", "times one copy over the line",
            {name: Spread(**one["time_over_one_copy"]) for name, one in present.items()},
            goal=GOAL_TIME,
        ),
        Chart(
            "sites: bytes over a cinema's line", "copies",
            {name: Spread(**one["copies_over_a_line"]) for name, one in present.items()},
            goal=GOAL_COPIES,
        ),
    ]  # fmt: skip
    return Outcome(figures, [f"{checked}\n\n{report(figures)}"], charts)
