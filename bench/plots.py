"""Draws what benchmarks found as PNG: horizontal bars, archid's in a colour of its own.

The line on a bar is from the minimum to the maximum. Needs matplotlib, which `make bench` installs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.benchmark import Chart
from bench.measuring import Spread, significant

OURS: Final = "#0b6e99"
OTHERS: Final = "#b9c3c9"
FLOOR: Final = "#e3d7b5"
INK: Final = "#22313a"
GOAL: Final = "#b5462f"
WIDTH_IN: Final = 8.0
BAR_IN: Final = 0.34
FRAME_IN: Final = 0.95
DPI: Final = 110
LOG_FROM: Final = 100.0
"""Bars that differ by more than this are drawn on a logarithmic axis."""


def available() -> bool:
    """Whether there is something to draw with."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(charts: Sequence[Chart], path: Path) -> None:
    """One picture with the charts below one another; without matplotlib the old one goes."""
    path.unlink(missing_ok=True)
    if not available():
        return
    from matplotlib.figure import Figure  # noqa: PLC0415 - not there unless somebody draws

    heights = [FRAME_IN + BAR_IN * len(chart.bars) for chart in charts]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(charts), 1, squeeze=False, height_ratios=heights)
    for chart, axis in zip(charts, axes[:, 0], strict=True):
        _draw_one(chart, axis)
    figure.savefig(path, facecolor="white", metadata={"Software": None})


def _draw_one(chart: Chart, axis: Any) -> None:
    names = list(chart.bars)
    spreads = [_spread(value) for value in chart.bars.values()]
    values = [one.median for one in spreads]
    axis.barh(
        names,
        values,
        height=0.66,
        color=[_colour(name) for name in names],
        xerr=[
            [one.median - one.low for one in spreads],
            [one.high - one.median for one in spreads],
        ],
        error_kw={"elinewidth": 1.0, "capsize": 2.5, "ecolor": INK},
    )
    axis.invert_yaxis()
    positive = [value for value in values if value > 0]
    if positive and max(positive) > LOG_FROM * min(positive):
        axis.set_xscale("log")
        axis.set_xlim(min(positive) / 2, max(one.high for one in spreads) * 4)
    else:
        axis.set_xlim(0, max([one.high for one in spreads] + [chart.goal or 0]) * 1.14 or 1)
    for row, one in enumerate(spreads):
        axis.annotate(
            significant(one.median),
            (max(one.high, one.median), row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    better = "more is better" if chart.higher_is_better else "less is better"
    unit = f", {chart.unit}" if chart.unit else ""
    axis.set_title(f"{chart.title}{unit} ({better})", loc="left", fontsize=10, color=INK)
    if chart.goal is not None:
        axis.axvline(chart.goal, color=GOAL, linewidth=1.2, linestyle=(0, (4, 2)))
        axis.annotate(
            f"goal {significant(chart.goal)}",
            (chart.goal, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=8,
            color=GOAL,
        )
    axis.tick_params(labelsize=9, colors=INK, length=0)
    axis.grid(axis="x", color="#e6eaec", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _spread(value: Spread | float) -> Spread:
    return value if isinstance(value, Spread) else Spread(value, value, value)


def _colour(name: str) -> str:
    if name.startswith("archid"):
        return OURS
    return FLOOR if name.startswith(("floor", "smallest")) else OTHERS
