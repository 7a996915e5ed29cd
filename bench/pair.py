"""How fast one node gets a script from another: one large file (`pair`) or many small (`small`).

Real processes over loopback: TLS both ways, every byte verified, synced to disk at the end. The
programs take turns, each round begins with warm memory and a warm source, and every destination
is compared with the source byte for byte. The two cores carry both ends, so a rate is CPU a byte;
`bench.floor` measures in every round what the parts of that cost alone.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import floor
from bench.benchmark import Chart, Outcome
from bench.inputs import InputShape, write_input
from bench.measuring import Spread, say, table, warm_files, warm_memory
from bench.peers import chosen, installed_peers, opened
from bench.transfer import Contender, Transfer, TransferFailed, counted_transfer

SPARE_BYTES: Final = 256 << 20
"""Memory that a round touches besides its files."""
SUITED: Final = ("syncthing", "rsync", "rsync-fsync", "rsync-ssh", "nginx", "libtorrent")
SMALL_FILE_BYTES: Final = 16 * 1024
PAIR_GOALS: Final = {"syncthing": 2.0, "rsync": 1.0}
SMALL_GOALS: Final = {"syncthing": 12.0, "rsync": 2.0}
"""How many times as fast as these archid is to be."""
FLOOR_GOAL: Final = 0.6
"""Of what the CPU allows."""


@dataclass
class Runs:
    """What one program did."""

    publish_s: float
    """How long it took to take in the source, once."""
    transfers: list[Transfer] = field(default_factory=list)


def pair(base: Path, args: argparse.Namespace) -> Outcome:
    """One large file."""
    size = args.size or (2 << 30 if args.full else 256 << 20)
    return _outcome(base, InputShape(1, size), args, PAIR_GOALS)


def small(base: Path, args: argparse.Namespace) -> Outcome:
    """Many small files."""
    files = args.files or (20_000 if args.full else 2_000)
    return _outcome(base, InputShape(files, SMALL_FILE_BYTES), args, SMALL_GOALS)


def _outcome(
    base: Path, shape: InputShape, args: argparse.Namespace, goals: Mapping[str, float]
) -> Outcome:
    peers = chosen(args.peers, SUITED)
    runs, floors = run(base, shape, peers=peers, rounds=args.rounds or 3)
    figures: dict[str, Any] = {"shape": asdict(shape), "programs": summary(runs, shape)}
    figures["floor"] = floor.summary(floors)
    figures["goals"] = dict(_reached(figures, shape, goals))
    tables = ["\n".join(report(figures["programs"], shape)), *floor.report(figures["floor"])]
    tables += goal_list(figures["goals"])
    return Outcome(figures, tables, [_chart(figures, shape)])


def run(
    base: Path, shape: InputShape, *, peers: Sequence[str], rounds: int
) -> tuple[dict[str, Runs | None], list[floor.Floor]]:
    """All rounds of all programs, in turns; None for a peer that is not installed."""
    source = base / "source"
    write_input(source, shape)
    present = installed_peers(peers)
    floors = []
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(opened(name, base / name, source)) for name in ("archid", *present)
        ]
        runs = {contender.name: Runs(contender.publish_s) for contender in contenders}
        for _ in range(rounds):
            for contender in contenders:
                runs[contender.name].transfers.append(_round(contender, source, shape))
            floors.append(floor.measure(base / "floor", shape.size_bytes))
    absent: dict[str, Runs | None] = {name: None for name in peers if name not in present}
    return {**runs, **absent}, floors


def _round(contender: Contender, source: Path, shape: InputShape) -> Transfer:
    with contender.ready() as destination:
        warm_files(source)
        warm_memory(2 * shape.size_bytes + SPARE_BYTES)
        done = counted_transfer(contender, destination)
        say(f"{contender.name}: {done.seconds:.2f} s")
        compare(source, contender.tree(destination))
        return done


def compare(source: Path, destination: Path) -> None:
    """Every byte, and nothing too much. Raises TransferFailed where they differ."""
    found = subprocess.run(
        ["diff", "-r", "--exclude=.stfolder", str(source), str(destination)],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise TransferFailed(f"{destination} differs from its source: {found.stdout[:500]}")


def summary(
    found: Mapping[str, Runs | None], shape: InputShape
) -> dict[str, dict[str, Any] | None]:
    """Figures for a program: medians, extremes, and its time over archid's."""
    ours = found["archid"]
    assert ours is not None
    return {
        name: None if runs is None else _figures(runs, ours, shape) for name, runs in found.items()
    }


def _figures(runs: Runs, ours: Runs, shape: InputShape) -> dict[str, Any]:
    times = [one.seconds for one in runs.transfers]
    our_times = [one.seconds for one in ours.transfers]
    passed = [one.wire_bytes / 1e6 for one in runs.transfers if one.wire_bytes is not None]
    return {
        "publish_s": runs.publish_s,
        "seconds": vars(Spread.of(times)),
        "mb_per_s": vars(Spread.of(shape.size_bytes / 1e6 / seconds for seconds in times)),
        "files_per_s": vars(Spread.of(shape.files / seconds for seconds in times)),
        "cpu_s": {
            "source": vars(Spread.of(one.source.cpu_s for one in runs.transfers)),
            "destination": vars(Spread.of(one.destination.cpu_s for one in runs.transfers)),
        },
        "peak_mb": {
            "source": max(one.source.peak_mb for one in runs.transfers),
            "destination": max(one.destination.peak_mb for one in runs.transfers),
        },
        "wire_mb": vars(Spread.of(passed)) if passed else None,
        # Neighbours on the machine move both of a round alike: ratios within rounds, then median.
        "its_time_over_archids": vars(
            Spread.of(one / other for one, other in zip(times, our_times, strict=True))
        ),
    }


def _reached(
    figures: Mapping[str, Any], shape: InputShape, goals: Mapping[str, float]
) -> Iterator[tuple[str, dict[str, float]]]:
    for name, times in goals.items():
        one = figures["programs"].get(name)
        if one is not None:
            yield f"times as fast as {name}", {
                "goal": times, "reached": one["its_time_over_archids"]["median"]
            }  # fmt: skip
    if shape.files == 1:
        allowed = figures["floor"]["allowed_mb_per_s"]["median"]
        reached = figures["programs"]["archid"]["mb_per_s"]["median"] / allowed
        yield "of what the CPU allows", {"goal": FLOOR_GOAL, "reached": reached}


def goal_list(goals: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A Markdown list with a sentence for each goal; nothing where there is none."""
    lines = [f"- {line}" for line in _goal_lines(goals)]
    return ["\n".join(lines)] if lines else []


def _goal_lines(goals: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Each is at least so much unless it says at most."""
    for name, one in goals.items():
        at_most = bool(one.get("at_most"))
        good = one["reached"] <= one["goal"] if at_most else one["reached"] >= one["goal"]
        bound = "at most" if at_most else "at least"
        verdict = "reached" if good else "missed"
        yield f"{one['reached']:.2f} {name}; the goal is {bound} {one['goal']:.3g}: **{verdict}**"


def report(figures: Mapping[str, dict[str, Any] | None], shape: InputShape) -> Iterator[str]:
    """The same as a Markdown table."""
    many = shape.files > 1
    head = ["program", "taken in, s", "s", "files/s" if many else "MB/s"]
    ends = "source / destination"
    rows = []
    for name, one in figures.items():
        if one is None:
            rows.append([name, "absent", *[""] * 6])
            continue
        rows.append(
            [
                name,
                f"{one['publish_s']:.1f}",
                Spread(**one["seconds"]).text(2),
                Spread(**one["files_per_s" if many else "mb_per_s"]).text(0),
                " / ".join(f"{end['median']:.1f}" for end in one["cpu_s"].values()),
                " / ".join(f"{peak:.0f}" for peak in one["peak_mb"].values()),
                f"{one['wire_mb']['median']:,.1f}" if one["wire_mb"] else "not counted",
                Spread(**one["its_time_over_archids"]).text(2),
            ]
        )
    head += [f"CPU s {ends}", f"peak MB {ends}", "MB on the wire", "its time over archid's"]
    yield table(head, rows)


def _chart(figures: Mapping[str, Any], shape: InputShape) -> Chart:
    many = shape.files > 1
    key = "files_per_s" if many else "mb_per_s"
    bars: dict[str, Spread | float] = {
        name: Spread(**one[key]) for name, one in figures["programs"].items() if one is not None
    }
    title = (
        f"{shape.files:,} files of 16 KiB"
        if many
        else f"One file of {shape.size_bytes >> 20:,} MiB"
    )
    if not many:
        bars["floor: what the CPU allows"] = Spread(**figures["floor"]["allowed_mb_per_s"])
    return Chart(title, "files/s" if many else "MB/s", _sorted(bars), higher_is_better=True)


def _sorted(bars: Mapping[str, Spread | float]) -> dict[str, Spread | float]:
    def rate(item: tuple[str, Spread | float]) -> float:
        return item[1].median if isinstance(item[1], Spread) else item[1]

    ordered: Iterable[tuple[str, Spread | float]] = sorted(bars.items(), key=rate, reverse=True)
    return dict(ordered)
