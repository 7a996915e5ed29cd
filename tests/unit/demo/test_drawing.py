"""The demo's picture fits a terminal of 80 by 24, and needs neither colour nor UTF-8."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.demo.cast import NAMES
from tests.demo.drawing import THEME, Drawing
from tests.demo.play import STEPS
from tests.demo.story import NodeView, Snapshot, Step, StepState

FETCHING = NodeView(
    "lyon-1-salle",
    "lyon",
    running=True,
    held_bytes=123_456_789,
    wanted_bytes=316_000_000,
    rate_bytes_per_s=45.6e6,
    sources=(("central", 100_000_000), ("repo-1", 23_456_789)),
)


def snapshot(view: NodeView) -> Snapshot:
    states = [StepState.SEEN, StepState.SEEN, StepState.FAILED, StepState.RUNNING]
    states += [StepState.WAITING] * (len(STEPS) - len(states))
    steps = [
        Step(title, "what it does at length " * 5, state, 12.3, since=10.0)
        for title, state in zip(STEPS, states, strict=True)
    ]
    others = [NodeView(name) for name in NAMES if name != view.name]
    return Snapshot(tuple(steps), (*others, view), elapsed_s=99.9, now=20.0)


def drawn(view: NodeView, *, width: int = 80, ascii_only: bool = False, color: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, theme=THEME, force_terminal=color, no_color=not color)
    console.print(Drawing(ascii_only=ascii_only).whole(snapshot(view), width))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_it_fits(width: int) -> None:
    lines = drawn(FETCHING, width=width).splitlines()
    assert len(lines) <= 23, "24 lines, but one for the prompt"
    assert max(len(line) for line in lines) <= width


def test_it_says_what_a_node_holds_how_fast_it_fetches_and_from_whom() -> None:
    [line] = [line for line in drawn(FETCHING).splitlines() if "lyon-1-salle" in line]
    for part in ("lyon", "123 of 316 MB", "45.6 MB/s", "central, repo-1"):
        assert part in line
    [wide] = [line for line in drawn(FETCHING, width=120).splitlines() if "lyon-1-salle" in line]
    assert "central 100 MB, repo-1 23.5 MB" in wide


def test_it_is_readable_without_colour_and_without_utf8() -> None:
    plain = drawn(FETCHING, ascii_only=True)
    assert "\x1b" not in plain
    assert plain.isascii()
    assert "####--------" in plain
    assert "\x1b" in drawn(FETCHING, color=True)


def test_failed_and_unfinished_steps_are_told_apart_by_their_marks() -> None:
    marks = [line.strip()[:1] for line in drawn(FETCHING).splitlines()[2 : 2 + len(STEPS)]]
    assert marks == ["✓", "✓", "✗", "●", *"·" * (len(STEPS) - 4)]


def test_a_node_that_has_switched_says_so() -> None:
    held = NodeView("lyon-1-sas", "lyon", True, 10, 10, 0.0, generation=1)
    [line] = [line for line in drawn(held).splitlines() if "lyon-1-sas" in line]
    assert "switched" in line
