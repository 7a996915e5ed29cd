"""How fast one node gets a script from another: one large file (`pair`) or many small (`small`).

Real processes over loopback: TLS both ways, every byte verified, synced to disk at the end. The
programs take turns, each round begins with warm memory and a warm source, and every destination
is compared with the source byte for byte. The two cores carry both ends, so a rate is CPU a byte.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

from bench import syncthing
from bench.archid_pair import archid_pair
from bench.inputs import InputShape, write_input
from bench.measuring import Spread, table, warm_files, warm_memory
from bench.transfer import Transfer, TransferFailed


class Contender(Protocol):
    """A program that can bring a folder from here to there, again and again."""

    name: str
    publish_s: float

    def ready(self) -> AbstractContextManager[Any]:
        """An empty destination."""

    def transfer(self, destination: Any) -> Transfer:
        """Bring everything to it. Raises TransferFailed."""

    def tree(self, destination: Any) -> Path:
        """The folder that the files came to."""


Opened = Callable[[Path, Path], AbstractContextManager[Contender]]

PEERS: Final[Mapping[str, tuple[Opened, Callable[[], bool]]]] = {
    "syncthing": (syncthing.syncthing_pair, syncthing.installed),
}
SPARE_BYTES: Final = 256 << 20
"""Memory that a round touches besides its files."""


def run(
    base: Path, shape: InputShape, *, peers: Sequence[str], rounds: int
) -> dict[str, list[Transfer] | None]:
    """All rounds of all programs; None for a peer that is not installed."""
    source = base / "source"
    write_input(source, shape)
    openers: dict[str, Opened] = {"archid": archid_pair}
    absent = [name for name in peers if not PEERS[name][1]()]
    openers |= {name: PEERS[name][0] for name in peers if name not in absent}
    found: dict[str, list[Transfer] | None] = {name: [] for name in openers}
    found |= dict.fromkeys(absent)
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(open_pair(base / name, source))
            for name, open_pair in openers.items()
        ]
        for _ in range(rounds):
            for contender in contenders:
                results = found[contender.name]
                assert results is not None
                results.append(_round(contender, source, shape))
    return found


def _round(contender: Contender, source: Path, shape: InputShape) -> Transfer:
    with contender.ready() as destination:
        warm_files(source)
        warm_memory(2 * shape.size_bytes + SPARE_BYTES)
        done = contender.transfer(destination)
        _compare(source, contender.tree(destination))
        return done


def _compare(source: Path, destination: Path) -> None:
    """Every byte, and nothing too much. Raises TransferFailed."""
    found = subprocess.run(
        ["diff", "-r", "--exclude=.stfolder", str(source), str(destination)],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise TransferFailed(f"{destination} differs from its source: {found.stdout[:500]}")


def summary(
    found: Mapping[str, list[Transfer] | None], shape: InputShape
) -> dict[str, dict[str, Any] | None]:
    """Figures for a program: medians, extremes, and the ratio of each peer's time to archid's."""
    ours = found["archid"]
    assert ours is not None
    return {
        name: None if runs is None else _figures(runs, ours, shape) for name, runs in found.items()
    }


def _figures(
    runs: Sequence[Transfer], ours: Sequence[Transfer], shape: InputShape
) -> dict[str, Any]:
    seconds = Spread.of(one.seconds for one in runs)
    return {
        "seconds": vars(seconds),
        "mb_per_s": vars(Spread.of(shape.size_bytes / 1e6 / one.seconds for one in runs)),
        "files_per_s": vars(Spread.of(shape.files / one.seconds for one in runs)),
        "cpu_s": {
            "source": Spread.of(one.source.cpu_s for one in runs).median,
            "destination": Spread.of(one.destination.cpu_s for one in runs).median,
        },
        "peak_mb": {
            "source": max(one.source.peak_mb for one in runs),
            "destination": max(one.destination.peak_mb for one in runs),
        },
        "archid_is_times_as_fast": seconds.median / Spread.of(one.seconds for one in ours).median,
    }


def report(figures: Mapping[str, dict[str, Any] | None], shape: InputShape) -> Iterator[str]:
    """The same as a Markdown table."""
    rate, digits = ("files_per_s", 0) if shape.files > 1 else ("mb_per_s", 0)
    unit = "files/s" if shape.files > 1 else "MB/s"
    rows = []
    for name, one in figures.items():
        if one is None:
            rows.append([name, "absent", "", "", "", ""])
            continue
        rows.append(
            [
                name,
                Spread(**one["seconds"]).text(2),
                Spread(**one[rate]).text(digits),
                " / ".join(f"{one['cpu_s'][end]:.1f}" for end in ("source", "destination")),
                " / ".join(f"{one['peak_mb'][end]:.0f}" for end in ("source", "destination")),
                f"{one['archid_is_times_as_fast']:.2f}",
            ]
        )
    yield table(
        [
            "program",
            "s",
            unit,
            "CPU s source / destination",
            "peak MB source / destination",
            "its time over archid's",
        ],
        rows,
    )
