"""One server far away: the share of a long line's rate that a transfer gets, with and without loss.

What TCP itself gets on the same line stands beside it: iperf3 with as many bytes. How much a
connection may have under way is bounded by the kernel's largest socket buffers, which hosts are
given here as an administrator would for such lines (`BUFFERS`); what the machine came with is
measured too when it is asked for.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.benchmark import Chart, Outcome
from bench.line_check import checked_line, iperf
from bench.many import USAGE_HEAD, Layout, Place, Rounds, networks, run, usage_cells, usage_figures
from bench.measuring import Spread, table
from bench.spreaders import spreaders
from tests.fleet.hosts import Host
from tests.fleet.lines import LineShape
from tests.fleet.namespaces import run_tool

ONE_WAY_MS: Final = 50.0
PEERS: Final = ("rsync", "syncthing", "libtorrent")
TCP: Final = "TCP alone (iperf3)"
BUFFERS: Final = {"tcp_rmem": "4096 131072 67108864", "tcp_wmem": "4096 65536 67108864"}
LINE_SECONDS: Final = {"full": 20, "quick": 3}
"""How long a transfer takes at the line's rate: its size follows."""


@dataclass(frozen=True)
class Case:
    """One line, and the share of it that archid should get; None for no goal."""

    shape: LineShape
    goal: float | None

    @property
    def key(self) -> str:
        """Its name among the figures."""
        return f"{self.shape.rate}_loss_{self.shape.loss * 1000:g}_permille"


CASES: Final = (
    Case(LineShape("100mbit", ONE_WAY_MS), None),
    Case(LineShape("100mbit", ONE_WAY_MS, 0.001), 0.85),
    Case(LineShape("100mbit", ONE_WAY_MS, 0.01), None),
    Case(LineShape("1gbit", ONE_WAY_MS), 0.95),
    Case(LineShape("1gbit", ONE_WAY_MS, 0.001), None),
    Case(LineShape("1gbit", ONE_WAY_MS, 0.01), None),
)
QUICK_CASES: Final = CASES[1:2]


def run_line(
    base: Path,
    *,
    shape: LineShape,
    size_bytes: int,
    rounds: int,
    peers: Sequence[str],
    buffers: Mapping[str, str] = BUFFERS,
    fetch_plans: bool = False,
) -> tuple[dict[str, Rounds | None], list[float], str]:
    """What the programs did, the seconds that TCP alone took, and what the line is."""
    with networks() as net, ExitStack() as stack:
        [seed], [far] = net.host(), net.host(shape=shape)
        for host in (seed, far):
            set_buffers(host, buffers)
        checked = checked_line(seed, far, shape)
        layout = Layout(seed, (Place("far", "far", far),))
        programs = spreaders(stack, base, layout, peers, fetch_plans=fetch_plans)
        found = run(base, layout, programs, size_bytes=size_bytes, rounds=rounds)
        return found, list(_tcp_seconds(seed, far, size_bytes, rounds)), checked


def set_buffers(host: Host, buffers: Mapping[str, str]) -> None:
    """Least, first and largest size of a TCP socket's buffers, in this namespace alone."""
    for name, value in buffers.items():
        run_tool(
            "sh", "-c", f"echo {value} >/proc/sys/net/ipv4/{name}", within=host.namespace
        )  # fmt: skip


def _tcp_seconds(seed: Host, far: Host, size_bytes: int, rounds: int) -> Iterator[float]:
    for _ in range(rounds):
        received = iperf(seed, far, "-n", str(size_bytes))["sum_received"]
        yield received["bytes"] / received["bits_per_second"] * 8 * size_bytes / received["bytes"]


def summary(
    found: Mapping[str, Rounds | None],
    tcp_s: Sequence[float],
    *,
    case: Case,
    size_bytes: int,
) -> dict[str, Any]:
    """Figures for each program; the share is of the line's rate, headers not taken off."""
    line_s = size_bytes * 8 / case.shape.bits_per_s
    programs: dict[str, Any] = {
        name: None
        if rounds is None
        else {
            "seconds": vars(Spread.of(one.last_s for one in rounds.deliveries)),
            "rate_share": vars(Spread.of(line_s / one.last_s for one in rounds.deliveries)),
            **usage_figures(rounds),
        }
        for name, rounds in found.items()
    }
    programs[TCP] = {
        "seconds": vars(Spread.of(tcp_s)),
        "rate_share": vars(Spread.of(line_s / seconds for seconds in tcp_s)),
    }
    return {"shape": {"size_bytes": size_bytes, **vars(case.shape)}, "programs": programs}


def report(figures: Mapping[str, Any], goal: float | None) -> str:
    """The same as a Markdown table."""
    head = ["program", "s", "share of the rate", *USAGE_HEAD]
    rows = []
    for name, one in figures["programs"].items():
        if one is None:
            rows.append([name, "absent", *[""] * (len(head) - 2)])
            continue
        usage = usage_cells(one) if "cpu_s" in one else ["", ""]
        rows.append(
            [
                name,
                Spread(**one["seconds"]).text(2),
                Spread(**one["rate_share"]).text(2),
                *usage,
            ]
        )
    size = figures["shape"]["size_bytes"]
    title = f"{size >> 20} MiB" + ("" if goal is None else f"; goal {goal:.2f}")
    return f"{title}\n\n{table(head, rows)}"


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """`long-line` of the command line."""
    cases = [one for one in CASES if one.shape.rate == args.rate] if args.rate else CASES
    figures: dict[str, Any] = {}
    tables: list[str] = []
    charts: list[Chart] = []
    for case in cases if args.full or args.rate else QUICK_CASES:
        seconds = LINE_SECONDS["full" if args.full else "quick"]
        size = args.size or int(case.shape.bits_per_s / 8 * seconds) >> 20 << 20
        found, tcp_s, checked = run_line(
            base / case.key, shape=case.shape, size_bytes=size, rounds=args.rounds or 3,
            peers=[one for one in args.peers if one in PEERS],
        )  # fmt: skip
        # Few files, but of gigabytes: those of all cases at once would fill most disks.
        shutil.rmtree(base / case.key)
        one = summary(found, tcp_s, case=case, size_bytes=size)
        figures[case.key] = one
        tables.append(f"{checked}\n\n{report(one, case.goal)}")
        bars = {
            name: Spread(**program["rate_share"])
            for name, program in one["programs"].items()
            if program is not None
        }
        title = f"{case.shape.rate}, {2 * ONE_WAY_MS:g} ms, {case.shape.loss:.1%} loss"
        charts.append(
            Chart(title, "share of the rate", bars, goal=case.goal, higher_is_better=True)
        )
    return Outcome(figures, tables, charts)
