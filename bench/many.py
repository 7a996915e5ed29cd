"""One source, many destinations: what a program under test can do, and what a delivery gave.

Hosts are network namespaces with lines of their own (`tests.fleet.hosts`), laid out by each
benchmark. The destinations run and are connected before anything is measured; every round has new
content, so that nobody has to be made anew for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from bench.measuring import ProcessMeter, Spread, Usage, say, warm_files, warm_memory
from bench.pair import compare
from bench.transfer import TransferFailed
from tests.fleet.hosts import Host, Internet, internet
from tests.fleet.namespaces import why_not
from tests.fleet.scripts import noise

SPARE_BYTES: Final = 256 << 20
"""Memory that a round touches besides the files."""
MOST_WARM_BYTES: Final = 6 << 30


@contextmanager
def networks() -> Iterator[Internet]:
    """An Internet to lay hosts out in. Raises TransferFailed where none can be made."""
    if reason := why_not():
        raise TransferFailed(reason)
    with internet() as made:
        yield made


@dataclass(frozen=True)
class Place:
    """Where a destination is."""

    name: str
    site: str
    host: Host


@dataclass(frozen=True)
class Layout:
    """Who takes part: the source, further servers that hold everything, the destinations."""

    seed: Host
    places: tuple[Place, ...]
    repos: tuple[Host, ...] = ()

    @property
    def holders(self) -> tuple[Host, ...]:
        """Everybody that has the content beforehand."""
        return (self.seed, *self.repos)


@dataclass(frozen=True)
class Delivery:
    """What happened from the moment that everybody was told until the last one had everything."""

    seconds: tuple[float, ...]
    """Of each destination, in the layout's order."""
    source: Usage
    """Of all holders together; the peak is of the largest."""
    destinations: Usage

    @property
    def last_s(self) -> float:
        return max(self.seconds)


class Spreader(Protocol):
    """A program that brings folders from one source to many destinations, one after the other."""

    name: str

    def offer(self, source: Path) -> None:
        """Take in a new folder at the source; nobody else knows of it yet."""

    def deliver(self) -> Delivery:
        """Bring what was offered last to every destination. Raises TransferFailed."""

    def tree(self, place: int) -> Path:
        """The folder that it came to at a destination."""


@dataclass(frozen=True)
class Passed:
    """Bytes that went over the lines during a delivery, headers included."""

    sent: Mapping[str, int]
    """By host, in the direction away from it; `seed` and `repo-N` are among them."""
    received: Mapping[str, int]

    @property
    def from_holders(self) -> int:
        """What all that had the content beforehand sent together."""
        return sum(
            count for name, count in self.sent.items() if name == "seed" or name.startswith("repo-")
        )


@dataclass
class Rounds:
    """What one program did."""

    deliveries: list[Delivery] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    extra: list[Mapping[str, int]] = field(default_factory=list)
    """What a benchmark counts besides, by line."""


class Counted(Protocol):
    """A line that counts what comes in over it."""

    def received_bytes(self) -> int: ...


def run(
    base: Path,
    layout: Layout,
    programs: Mapping[str, Spreader | None],
    *,
    size_bytes: int,
    rounds: int,
    lines: Mapping[str, Counted] | None = None,
) -> dict[str, Rounds | None]:
    """Alternate the programs over rounds of new content; every destination is compared.

    None for a program that is absent.
    """
    present = {name: program for name, program in programs.items() if program is not None}
    found = {name: Rounds() for name in present}
    for number in range(rounds):
        source = write_content(base / "sources", number, size_bytes)
        for name, program in present.items():
            program.offer(source)
            warm_files(source)
            warm_memory(min(size_bytes * len(layout.places) + SPARE_BYTES, MOST_WARM_BYTES))
            kept = found[name]
            with counting(layout, lines or {}) as (passed, extra):
                kept.deliveries.append(program.deliver())
            kept.passed.append(passed())
            kept.extra.append(extra())
            for place in range(len(layout.places)):
                compare(source, program.tree(place))
            say(_progress(name, number, kept))
    return {name: found.get(name) for name in programs}


def write_content(folder: Path, number: int, size_bytes: int) -> Path:
    """A folder with one file that no other round has."""
    made = folder / f"round-{number}"
    made.mkdir(parents=True)
    with (made / "film.led").open("wb") as file:
        for block in noise(f"many/{number}/{time.time_ns()}", size_bytes):
            file.write(block)
    return made


def together(meters: Sequence[ProcessMeter]) -> Usage:
    """CPU of all of them, memory of the largest."""
    used = [meter.read() for meter in meters]
    return Usage(sum(one.cpu_s for one in used), max(one.peak_mb for one in used))


@contextmanager
def counting(layout: Layout, lines: Mapping[str, Counted]) -> Iterator[tuple[Any, Any]]:
    """Two functions that say, after the block, what passed meanwhile."""
    hosts = {"seed": layout.seed}
    hosts |= {f"repo-{number}": host for number, host in enumerate(layout.repos, 1)}
    hosts |= {place.name: place.host for place in layout.places}

    def read() -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        both = {name: host.line.counters() for name, host in hosts.items()}
        return (
            {name: sent for name, (sent, _) in both.items()},
            {name: received for name, (_, received) in both.items()},
            {name: line.received_bytes() for name, line in lines.items()},
        )

    before = read()
    after: list[tuple[dict[str, int], ...]] = []
    yield (
        lambda: Passed(_less(after[0][0], before[0]), _less(after[0][1], before[1])),
        lambda: _less(after[0][2], before[2]),
    )
    after.append(read())


def _less(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in after.items()}


def _progress(name: str, number: int, kept: Rounds) -> str:
    seconds = kept.deliveries[-1].seconds
    return (
        f"round {number + 1}, {name}: first {min(seconds):.2f} s, last {max(seconds):.2f} s,"
        f" from holders {kept.passed[-1].from_holders / 1e6:.1f} MB"
    )


def usage_figures(rounds: Rounds) -> dict[str, Any]:
    """CPU (medians) and memory (greatest) for the tables."""
    deliveries = rounds.deliveries
    return {
        "cpu_s": {
            "source": Spread.of(one.source.cpu_s for one in deliveries).median,
            "destinations": Spread.of(one.destinations.cpu_s for one in deliveries).median,
        },
        "peak_mb": {
            "source": max(one.source.peak_mb for one in deliveries),
            "destination": max(one.destinations.peak_mb for one in deliveries),
        },
    }


def usage_cells(figures: Mapping[str, Any]) -> list[str]:
    """The same as two cells of a table."""
    cpu, peak = figures["cpu_s"], figures["peak_mb"]
    return [
        f"{cpu['source']:.1f} / {cpu['destinations']:.1f}",
        f"{peak['source']:.0f} / {peak['destination']:.0f}",
    ]


USAGE_HEAD: Final = ("CPU s source / all destinations", "peak MB source / largest destination")
