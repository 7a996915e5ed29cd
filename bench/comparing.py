"""``python -m bench compare A B``: what became slower from one commit to another.

The machine drifts by a factor of two, so a figure of archid is judged against what became of the
peers' same figure between the two runs: their drift, the median of their ratios, is taken out.
Where no peer has the figure it is compared as it is, and the table says so. A figure counts as
worse when it is so by a quarter and the two runs' ranges, the drift taken out, do not touch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import history
from bench.measuring import Spread, table

MARGIN: Final = 1.25
OURS: Final = "archid"
HIGHER_IS_BETTER: Final = ("per_s", "_share")
NOT_COMPARED: Final = ("shape", "goals", "its_time_over_archids", "floor", "least_mb", "answers")

Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """One figure of archid in two runs."""

    benchmark: str
    figure: str
    before: Spread
    after: Spread
    drift: float | None
    """How the peers' figure changed, after over before; None where there is no peer."""

    @property
    def ratio(self) -> float:
        """After over before, without the drift."""
        return self.after.median / self.before.median / (self.drift or 1.0)

    @property
    def is_worse(self) -> bool:
        return self._moved(up=not self.figure.endswith(HIGHER_IS_BETTER))

    @property
    def is_better(self) -> bool:
        return self._moved(up=self.figure.endswith(HIGHER_IS_BETTER))

    def _moved(self, *, up: bool) -> bool:
        drift = self.drift or 1.0
        if up:
            return self.ratio > MARGIN and self.after.low / drift > self.before.high
        return self.ratio < 1 / MARGIN and self.after.high / drift < self.before.low


def compare(path: Path, before: str, after: str) -> Iterator[Change]:
    """Every figure that both commits' newest runs of the same shape have."""
    first, second = history.of_commit(path, before), history.of_commit(path, after)
    for benchmark in first.keys() & second.keys():
        pair = _newest_alike(first[benchmark], second[benchmark])
        if pair is not None:
            yield from changes(benchmark, pair[0].figures, pair[1].figures)


def _newest_alike(
    first: list[history.Entry], second: list[history.Entry]
) -> tuple[history.Entry, history.Entry] | None:
    for after in reversed(second):
        for before in reversed(first):
            if before.machine == after.machine and before.figures.get("shape") == after.figures.get(
                "shape"
            ):
                return before, after
    return None


def changes(
    benchmark: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Change]:
    """The figures of archid that are in both, each with the drift of its peers."""
    first, second = dict(_figures(before, ())), dict(_figures(after, ()))
    for path, spread in first.items():
        if path not in second or not spread.median or not second[path].median:
            continue
        program = _program(path)
        if program is not None and not program.startswith(OURS):
            continue
        ratios = [
            second[other].median / one.median
            for other, one in first.items()
            if program is not None
            and other in second
            and not (_program(other) or OURS).startswith(OURS)
            and _without_program(other) == _without_program(path)
            and one.median
            and second[other].median
        ]
        drift = statistics.median(ratios) if ratios else None
        name = " ".join(part for part in path if part != "programs")
        yield Change(benchmark, name, spread, second[path], drift)


def _figures(node: Mapping[str, Any], path: Path_) -> Iterator[tuple[Path_, Spread]]:
    for key, value in node.items():
        here = (*path, key)
        if key in NOT_COMPARED or value is None or isinstance(value, str | bool | list):
            continue
        if isinstance(value, int | float):
            yield here, Spread(value, value, value)
        elif value.keys() == {"median", "low", "high"}:
            yield here, Spread(**value)
        else:
            yield from _figures(value, here)


def _program(path: Path_) -> str | None:
    """Whose figure it is."""
    return path[path.index("programs") + 1] if "programs" in path[:-1] else None


def _without_program(path: Path_) -> Path_:
    at = path.index("programs") + 1
    return path[:at] + path[at + 1 :]


def report(found: list[Change], before: str, after: str) -> Iterator[str]:
    """A Markdown table, what became worse first."""
    rows = [
        [
            change.benchmark,
            change.figure,
            change.before.short(),
            change.after.short(),
            "no peer" if change.drift is None else f"{change.drift:.2f}",
            f"{change.ratio:.2f}",
            "worse" if change.is_worse else "better" if change.is_better else "",
        ]
        for change in sorted(found, key=lambda one: (not one.is_worse, not one.is_better))
    ]
    head = ["benchmark", "figure", before, after, "peers' drift", "ratio without it", ""]
    yield table(head, rows)
