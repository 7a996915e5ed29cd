"""The demo as a picture: the steps, and under them what each node holds, fetches and from whom.

Pure functions from a `Snapshot` to what rich prints; made for 80 columns and 24 lines, and using
more columns where there are some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, OverflowMethod, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text
from rich.theme import Theme

from archid.cli import figures
from tests.demo.story import NodeView, Snapshot, Step, StepState
from tests.demo.telling import seconds

THEME: Final = Theme(
    {
        "title": "bold",
        "quiet": "dim",
        "seen": "green",
        "running": "cyan",
        "failed": "bold red",
        "bar.done": "green",
        "bar.moving": "cyan",
        "name": "bold",
    }
)
WIDE: Final = 100
"""From so many columns on, sources are shown with their amounts."""
BAR_COLUMNS: Final = 12

Marks = dict[StepState, str]
MARKS: Final[Marks] = {
    StepState.WAITING: "·",
    StepState.RUNNING: "●",
    StepState.SEEN: "✓",
    StepState.FAILED: "✗",
}
ASCII_MARKS: Final[Marks] = {
    StepState.WAITING: ".",
    StepState.RUNNING: ">",
    StepState.SEEN: "+",
    StepState.FAILED: "!",
}
STYLES: Final = {
    StepState.WAITING: "quiet",
    StepState.RUNNING: "running",
    StepState.SEEN: "seen",
    StepState.FAILED: "failed",
}


class Drawing:
    """Draws for a terminal of some width, in UTF-8 or plain ASCII."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        self._marks = ASCII_MARKS if ascii_only else MARKS
        self._bar = ("#", "-") if ascii_only else ("━", "─")
        self._dot = "-" if ascii_only else "·"
        self._overflow: OverflowMethod = "crop" if ascii_only else "ellipsis"

    def whole(self, snapshot: Snapshot, width: int) -> RenderableType:
        """Everything at one moment."""
        parts: list[RenderableType] = [
            self._head(snapshot),
            Text(),
            self.steps(snapshot),
            Text(),
            self.nodes(snapshot.nodes, wide=width >= WIDE),
        ]
        return Padding(Group(*parts), (0, 1))

    def _head(self, snapshot: Snapshot) -> RenderableType:
        head = Table.grid(Column(ratio=1), Column(justify="right"), expand=True)
        title = Text.assemble(
            ("archid", "title"), ("  a film reaches its rooms, whatever happens", "quiet")
        )
        head.add_row(title, Text(seconds(snapshot.elapsed_s), "quiet"))
        return head

    def steps(self, snapshot: Snapshot) -> RenderableType:
        """One line a step."""
        table = Table.grid(
            Column(width=1),
            Column(no_wrap=True, min_width=21),
            Column(ratio=1, no_wrap=True, overflow=self._overflow),
            Column(justify="right", no_wrap=True, min_width=6),
            padding=(0, 2, 0, 0),
            pad_edge=False,
            expand=True,
        )
        for step in snapshot.steps:
            table.add_row(*self._step(step, snapshot.now))
        return table

    def _step(self, step: Step, now: float) -> Sequence[Text]:
        style = STYLES[step.state]
        waiting = step.state is StepState.WAITING
        return (
            Text(self._marks[step.state], style),
            Text(step.title, "quiet" if waiting else "name"),
            Text(step.detail, "failed" if step.state is StepState.FAILED else ""),
            Text("" if waiting else seconds(step.lasted_s(now)), "quiet"),
        )

    def nodes(self, views: Sequence[NodeView], *, wide: bool) -> RenderableType:
        """One line a node."""
        table = Table(
            Column("node", no_wrap=True, min_width=13),
            Column("site", no_wrap=True, min_width=5),
            Column("holds", no_wrap=True, width=BAR_COLUMNS),
            Column("", no_wrap=True, justify="right", min_width=14),
            Column("fetches", no_wrap=True, justify="right", min_width=9),
            Column("from", no_wrap=True, overflow=self._overflow, ratio=1),
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
            expand=True,
            header_style="quiet",
        )
        for view in views:
            table.add_row(*self._node(view, wide=wide))
        return table

    def _node(self, view: NodeView, *, wide: bool) -> Sequence[Text]:
        name = Text(view.name, "name" if view.running else "quiet")
        site = Text(view.site or self._dot, "" if view.site else "quiet")
        if view.wanted_bytes:
            amount = figures.part(view.held_bytes, view.wanted_bytes)
            holds = Text(figures.size(view.held_bytes) if view.complete else amount)
        else:
            holds = Text("nothing" if view.running else "", "quiet")
        if not view.running:
            fetches = Text("stopped" if view.site or view.wanted_bytes else "", "quiet")
        elif view.rate_bytes_per_s >= 1000 and not view.complete:
            fetches = Text(figures.rate(view.rate_bytes_per_s), "running")
        elif view.active:
            fetches = Text("switched", "seen")
        else:
            fetches = Text("")
        return name, site, self._bar_of(view), holds, fetches, self._from(view, wide=wide)

    def _bar_of(self, view: NodeView) -> Text:
        if not view.wanted_bytes:
            return Text()
        share = min(1.0, view.held_bytes / view.wanted_bytes)
        full = BAR_COLUMNS if view.complete else int(share * BAR_COLUMNS)
        done, rest = self._bar
        return Text.assemble(
            (done * full, "bar.done" if view.complete else "bar.moving"),
            (rest * (BAR_COLUMNS - full), "quiet"),
        )

    def _from(self, view: NodeView, *, wide: bool) -> Text:
        if wide:
            listed = [f"{name} {figures.size(size)}" for name, size in view.sources]
        else:
            listed = [name for name, _ in view.sources]
        return Text(", ".join(listed))
