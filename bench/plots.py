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
WIDE_IN: Final = 12.0
MANY: Final = 3
"""So many charts stand in two columns."""
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
    # Not there unless somebody draws.
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    columns = 1 if len(charts) < MANY else 2
    rows = [charts[at : at + columns] for at in range(0, len(charts), columns)]
    heights = [FRAME_IN + BAR_IN * max(len(chart.bars) for chart in row) for row in rows]
    size = (WIDTH_IN if columns == 1 else WIDE_IN, sum(heights))
    figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axis in axes.flat[len(charts) :]:
        axis.set_axis_off()
    for chart, axis in zip(charts, axes.flat, strict=False):
        _draw_one(chart, axis)
    figure.savefig(path, facecolor="white", metadata={"Software": None})


def _draw_one(chart: Chart, axis: Any) -> None:
    names = list(chart.bars)
    spreads = [_spread(value) for value in chart.bars.values()]
    values = [one.median for one in spreads]
    axis.barh(names, values, height=0.66, color=[_colour(name) for name in names])
    for row, one in enumerate(spreads):
        if one.low != one.high:
            below, above = [[one.median - one.low], [one.high - one.median]]
            axis.errorbar(
                one.median, row, xerr=[below, above], ecolor=INK, elinewidth=1.0, capsize=2.5
            )
    axis.invert_yaxis()
    scale = ""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > LOG_FROM * min(positive):
        axis.set_xscale("log")
        scale = ", logarithmic"
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
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    better = "more is better" if chart.higher_is_better else "less is better"
    unit = f", {chart.unit}" if chart.unit else ""
    axis.set_title(f"{chart.title}{unit} ({better}{scale})", loc="left", fontsize=10, color=INK)
    if chart.goal is not None:
        axis.axvline(chart.goal, color=GOAL, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2)
        axis.set_xlabel(f"goal {chart.goal:,.4g}", loc="right", fontsize=8.5, color=GOAL)
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
