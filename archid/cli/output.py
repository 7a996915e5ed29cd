"""The terminal: results on standard output, everything else on standard error.

With ``--json`` standard output holds exactly one JSON document (one a line where there are many),
which is the result, or an object with the key ``error``. Colour follows the terminal and
NO_COLOR; bars and other things that move appear on a terminal only. Commands build their screens
from what is here, so that they look alike.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text
from rich.theme import Theme

from archid.cli import figures

WIDE_COLUMNS: Final = 200
THEME: Final = Theme(
    {
        "ok": "green",
        "attention": "yellow",
        "alarm": "bold red",
        "quiet": "dim",
        "name": "bold",
        "heading": "bold",
        "bar.complete": "cyan",
        "bar.finished": "green",
        "bar.back": "bright_black",
    }
)

LEVEL_STYLES: Final = {
    "ok": "ok",
    "attention": "attention",
    "alarm": "alarm",
    "failed": "alarm",
    "skipped": "quiet",
}


class Screen:
    """Where one command writes."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    def result(self, result: dict[str, Any], *screens: RenderableType) -> None:
        """Print the result: as JSON, or as `screens`."""
        if self.json:
            write_json(result)
            return
        for screen in screens:
            self.out.print(screen)

    def say(self, *parts: RenderableType) -> None:
        """Tell the person something beside the result; not with -q or --json."""
        if not self.quiet and not self.json:
            for part in parts:
                self.err.print(part)

    @property
    def moving(self) -> bool:
        """Whether bars may be shown."""
        return self.err.is_terminal and not self.quiet and not self.json

    def progress(self) -> Progress:
        """A bar with share, bytes, rate and what remains; does nothing when nothing may move."""
        return Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=28)),
            BarColumn(bar_width=None),
            _Share(table_column=Column(no_wrap=True)),
            _Bytes(table_column=Column(no_wrap=True)),
            _RateAndRest(table_column=Column(no_wrap=True)),
            console=self.err,
            transient=True,
            disable=not self.moving,
            expand=True,
            refresh_per_second=8,
        )


def _console(stream: Any) -> Console:
    # A terminal that knows few characters gets a question mark, not a crash.
    with suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(errors="replace")
    # Without a terminal there is no width to fit: lines are for grep, and stay whole.
    wide = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(
        file=stream,
        theme=THEME,
        highlight=False,
        markup=False,
        emoji=False,
        width=WIDE_COLUMNS if wide else None,
    )


def write_json(value: object, *, one_line: bool = False) -> None:
    """One JSON document on standard output."""
    text = json.dumps(value, ensure_ascii=False, indent=None if one_line else 2)
    # Names of files may hold what UTF-8 cannot say; programs still have to get valid JSON.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    sys.stdout.flush()


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table with these headings, those in `right` aligned for figures."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="heading", show_edge=False)
    for column in columns:
        # Folding rather than an ellipsis: the end of a name is often what tells two apart.
        made.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column in right,
        )
    return made


def pairs(*rows: tuple[str, RenderableType]) -> Table:
    """Names on the left, what they are on the right."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="quiet", no_wrap=True)
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def heading(text: str) -> Text:
    """The title of a part of a screen."""
    return Text(text, style="heading")


def indented(part: RenderableType) -> Padding:
    """`part`, two columns in."""
    return Padding(part, (0, 0, 0, 2), expand=False)


def bar(part: float, whole: float, *, width: int = 16) -> Text:
    """A bar that is drawn once: a share of a whole."""
    filled = width if whole <= 0 else int(width * min(1.0, part / whole))
    done = filled >= width
    return Text.assemble(
        ("━" * filled, Style.parse("green" if done else "cyan")),
        ("┄" * (width - filled), Style.parse("bright_black")),
    )


def level(text: str, name: str) -> Text:
    """`text` in the colour of a health level or a check's state."""
    return Text(text, style=LEVEL_STYLES.get(name, ""))


class _Share(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = task.total
        return Text("" if total is None else figures.share(task.completed, total).rjust(5))


class _Bytes(ProgressColumn):
    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(figures.size(task.completed))
        return Text(figures.part(task.completed, task.total))


class _RateAndRest(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        rest = "" if task.time_remaining is None else f", {figures.duration(task.time_remaining)}"
        return Text(f"{figures.rate(speed)}{rest and rest + ' left'}")
