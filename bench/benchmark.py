"""What a benchmark is to the harness: something that runs and gives figures, tables and pictures.

A benchmark's module knows nothing of the command line, of files or of drawing. It registers in
`bench.__main__.BENCHMARKS`; the harness prints and keeps what it returns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measuring import Spread


@dataclass(frozen=True)
class Chart:
    """Bars that may be compared with one another, all in the same unit."""

    title: str
    unit: str
    bars: Mapping[str, Spread | float]
    goal: float | None = None
    """Where archid's bar should end, in the same unit."""
    higher_is_better: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one benchmark found.

    `figures` are what JSON can hold: nested dictionaries whose leaves are numbers or spreads
    (``{"median":, "low":, "high":}``), and None for a program that is absent. Where programs are
    compared they are the keys of a dictionary called ``programs``, archid's beginning with
    "archid", and what was asked for is in ``shape``: runs are compared only if it is the same. A
    figure is better when it is lower, unless its name ends with ``per_s`` or ``_share``.
    """

    figures: dict[str, Any]
    tables: Sequence[str]
    """Markdown."""
    charts: Sequence[Chart] = field(default=())


@dataclass(frozen=True)
class Benchmark:
    """One entry of the list that ``python -m bench`` chooses from."""

    what: str
    run: Callable[[Path, argparse.Namespace], Outcome]
    """Given an empty folder, which is removed afterwards, and the arguments.

    `args.full` asks for the sizes that goals are set for, else for what ends in a minute;
    `args.size`, `args.files` and `args.rounds` override them unless they are None."""
    quick_peers: tuple[str, ...] = ()
    """Beside whom it runs at small sizes unless `--peers` says otherwise; with --full all."""
