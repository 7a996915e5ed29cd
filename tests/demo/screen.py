"""Where the demo is seen: moving on a terminal, else as a line for each thing that happened.

With ``--json`` standard output is the program's, and what a person may want goes to standard
error. Colour follows NO_COLOR, as rich has it.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Final

from rich import _export_format
from rich.console import Console, RenderableType
from rich.live import Live
from rich.terminal_theme import TerminalTheme

from archid.cli import figures
from tests.demo.drawing import ASCII_MARKS, MARKS, THEME, Drawing
from tests.demo.story import NodeView, Snapshot, StepState, Story
from tests.demo.summary import Summary
from tests.demo.telling import seconds, summary_table

FRAMES_A_SECOND: Final = 8
LOG_COLUMNS: Final = 1000  # nothing is folded where nobody looks at a terminal
QUARTERS: Final = 4


class Screen:
    """Shows a story while it happens, and the summary at its end."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
        self.console = Console(
            stderr=to_stderr,
            theme=THEME,
            highlight=False,
            width=None if terminal else LOG_COLUMNS,
        )
        self.ascii_only = not (self.console.encoding or "").lower().startswith("utf")
        self.drawing = Drawing(ascii_only=self.ascii_only)

    @contextmanager
    def showing(self, story: Story) -> Iterator[None]:
        """Show the story during the body."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            story.listen(_Lines(self.console, self.drawing).tell)
            yield
            return
        console, drawing = self.console, self.drawing

        def now() -> RenderableType:
            return drawing.whole(story.snapshot(), console.width)

        with Live(
            console=console, get_renderable=now, refresh_per_second=FRAMES_A_SECOND, screen=False
        ):
            yield

    def say(self, text: str, style: str = "") -> None:
        """One sentence for the person; never folded, so that commands can be copied."""
        self.console.print(text, style=style, soft_wrap=True, markup=False)

    def summary(self, summary: Summary) -> None:
        """The end."""
        marks = ASCII_MARKS if self.ascii_only else MARKS
        table = summary_table(summary, seen=marks[StepState.SEEN], failed=marks[StepState.FAILED])
        if self.console.is_terminal:
            self.console.print(table)
            return
        for line in self.console.render_lines(table, pad=False):
            self._say_plainly("".join(segment.text for segment in line).rstrip())

    def _say_plainly(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)


class _Lines:
    """Says each step when it has ended, and how far a fetch is, by quarters."""

    def __init__(self, console: Console, drawing: Drawing) -> None:
        self._console = console
        self._drawing = drawing
        self._lock = threading.Lock()
        self._told: set[int] = set()
        self._quarters: dict[str, int] = {}

    def tell(self, snapshot: Snapshot) -> None:
        """Say what is new in it."""
        with self._lock:
            for view in snapshot.nodes:
                self._tell_node(view)
            for number, step in enumerate(snapshot.steps):
                if step.state in (StepState.SEEN, StepState.FAILED) and number not in self._told:
                    self._told.add(number)
                    failed = " FAILED" if step.state is StepState.FAILED else ""
                    took = seconds(step.seconds)
                    self._say(f"{step.title}{failed} ({took}): {step.detail}")

    def _tell_node(self, view: NodeView) -> None:
        if not view.sources or not view.wanted_bytes:
            return
        quarter = QUARTERS * view.held_bytes // view.wanted_bytes
        before = self._quarters.get(view.name, 0)
        if quarter == before:
            return
        self._quarters[view.name] = quarter
        if quarter > before:
            names = ", ".join(name for name, _ in view.sources)
            amount = figures.part(view.held_bytes, view.wanted_bytes)
            self._say(f"  {view.name} holds {amount}, from {names}")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)


PICTURE_COLUMNS: Final = 100
CHARACTER_WIDTH: Final = 12.2  # as rich counts it in its SVGs
BLANK: Final = "\u00a0"
PICTURE_THEME: Final = TerminalTheme(
    (22, 24, 29),
    (214, 217, 222),
    [
        (22, 24, 29),
        (230, 108, 100),
        (124, 190, 120),
        (220, 180, 100),
        (110, 160, 220),
        (190, 140, 210),
        (100, 190, 200),
        (214, 217, 222),
    ],
)


class Picture:
    """An SVG for the README: the moment in which most was fetched, and the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._best: tuple[float, Snapshot] | None = None

    def look(self, snapshot: Snapshot) -> None:
        """Keep the moment if more of the nodes are half-way than in the one that is kept."""
        moving = [view for view in snapshot.nodes if view.rate_bytes_per_s > 0]
        score = sum(1 - abs(_share(view) - 0.6) for view in moving if 0 < _share(view) < 1)
        if moving and (self._best is None or score > self._best[0]):
            self._best = (score, snapshot)

    def save(self, story: Story, summary: Summary, command: str) -> None:
        """Write it. Raises OSError."""
        console = Console(
            file=StringIO(),
            record=True,
            force_terminal=True,
            color_system="truecolor",
            width=PICTURE_COLUMNS,
            theme=THEME,
            highlight=False,
            no_color=False,
        )
        drawing = Drawing()
        middle = self._best[1] if self._best else story.snapshot()
        console.print(f" $ {command}", style="name")
        console.print()
        console.print(drawing.whole(middle, PICTURE_COLUMNS))
        console.print()
        console.rule(style="quiet")
        console.print(summary_table(summary))
        svg = console.export_svg(
            title="make demo", theme=PICTURE_THEME, code_format=_without_web_fonts()
        )
        self._path.write_text(_without_padding(svg))


def _share(view: NodeView) -> float:
    return view.held_bytes / view.wanted_bytes if view.wanted_bytes else 0.0


def _without_padding(svg: str) -> str:
    """Place texts where they begin: some viewers drop the blanks that rich pads them with."""

    def trimmed(found: re.Match[str]) -> str:
        x, between, width, rest, text = found.groups()
        bare = text.lstrip(BLANK)
        left = text.count(BLANK) - bare.count(BLANK)
        right = bare.count(BLANK) - bare.rstrip(BLANK).count(BLANK)
        place = float(x) + left * CHARACTER_WIDTH
        length = float(width) - (left + right) * CHARACTER_WIDTH
        bare = bare.rstrip(BLANK)
        return f'x="{place:.1f}"{between}textLength="{length:.1f}"{rest}>{bare}<' if bare else "><"

    texts = re.compile(r'x="([\d.]+)"([^>]*)textLength="([\d.]+)"([^>]*)>([^<]*)<')
    return texts.sub(trimmed, svg.replace("&#160;", BLANK))


def _without_web_fonts() -> str:
    """rich's SVG without fonts from elsewhere: what the reader's machine has will do."""
    plain = re.sub(
        r"@font-face \{\{.*?\}\}\s*", "", _export_format.CONSOLE_SVG_FORMAT, flags=re.DOTALL
    )
    return plain.replace("Fira Code, monospace", "'DejaVu Sans Mono', Menlo, Consolas, monospace")
