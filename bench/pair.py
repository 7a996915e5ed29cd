"""How fast one node gets a script from another: one large file (`pair`) or many small (`small`).

Real processes over loopback: TLS both ways, every byte verified, synced to disk at the end. The
programs take turns, each round begins with warm memory and a warm source, and every destination
is compared with the source byte for byte. The two cores carry both ends, so a rate is CPU a byte.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.archid_pair import archid_pair
from bench.inputs import InputShape, write_input
from bench.measuring import Spread, table, warm_files, warm_memory
from bench.peers import installed_peers, opened
from bench.transfer import Contender, Transfer, TransferFailed

SPARE_BYTES: Final = 256 << 20
"""Memory that a round touches besides its files."""


@dataclass
class Runs:
    """What one program did."""

    publish_s: float
    """How long it took to take in the source, once."""
    transfers: list[Transfer] = field(default_factory=list)


def run(
    base: Path, shape: InputShape, *, peers: Sequence[str], rounds: int
) -> dict[str, Runs | None]:
    """All rounds of all programs, in turns; None for a peer that is not installed."""
    source = base / "source"
    write_input(source, shape)
    present = installed_peers(peers)
    with ExitStack() as stack:
        contenders: list[Contender] = [stack.enter_context(archid_pair(base / "archid", source))]
        contenders += [stack.enter_context(opened(name, base / name, source)) for name in present]
        runs = {contender.name: Runs(contender.publish_s) for contender in contenders}
        for _ in range(rounds):
            for contender in contenders:
                runs[contender.name].transfers.append(_round(contender, source, shape))
    absent: dict[str, Runs | None] = {name: None for name in peers if name not in present}
    return {**runs, **absent}


def _round(contender: Contender, source: Path, shape: InputShape) -> Transfer:
    with contender.ready() as destination:
        warm_files(source)
        warm_memory(2 * shape.size_bytes + SPARE_BYTES)
        done = contender.transfer(destination)
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
    cpu_s = {
        "source": Spread.of(one.source.cpu_s for one in runs.transfers).median,
        "destination": Spread.of(one.destination.cpu_s for one in runs.transfers).median,
    }
    return {
        "publish_s": runs.publish_s,
        "seconds": vars(Spread.of(times)),
        "mb_per_s": vars(Spread.of(shape.size_bytes / 1e6 / seconds for seconds in times)),
        "files_per_s": vars(Spread.of(shape.files / seconds for seconds in times)),
        "cpu_s": cpu_s,
        "peak_mb": {
            "source": max(one.source.peak_mb for one in runs.transfers),
            "destination": max(one.destination.peak_mb for one in runs.transfers),
        },
        # Neighbours on the machine move both of a round alike: ratios within rounds, then median.
        "its_time_over_archids": vars(
            Spread.of(one / other for one, other in zip(times, our_times, strict=True))
        ),
    }


def report(figures: Mapping[str, dict[str, Any] | None], shape: InputShape) -> Iterator[str]:
    """The same as a Markdown table."""
    many = shape.files > 1
    head = ["program", "taken in, s", "s", "files/s" if many else "MB/s"]
    ends = "source / destination"
    rows = []
    for name, one in figures.items():
        if one is None:
            rows.append([name, "absent", "", "", "", "", ""])
            continue
        rows.append(
            [
                name,
                f"{one['publish_s']:.1f}",
                Spread(**one["seconds"]).text(2),
                Spread(**one["files_per_s" if many else "mb_per_s"]).text(0),
                " / ".join(f"{one['cpu_s'][end]:.1f}" for end in ("source", "destination")),
                " / ".join(f"{one['peak_mb'][end]:.0f}" for end in ("source", "destination")),
                Spread(**one["its_time_over_archids"]).text(2),
            ]
        )
    yield table([*head, f"CPU s {ends}", f"peak MB {ends}", "its time over archid's"], rows)
