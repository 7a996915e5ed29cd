"""What has happened so far, for whoever shows it: the steps, and how each node stands.

Written by the play and by the watchers' threads, read by the screen's; every change makes a new
frozen value, so that a reader sees a whole one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final


class StepState(Enum):
    """How far a step is."""

    WAITING = "waiting"
    RUNNING = "running"
    SEEN = "seen"
    FAILED = "failed"


@dataclass(frozen=True)
class Step:
    """One thing that the demo does."""

    title: str
    detail: str = ""
    state: StepState = StepState.WAITING
    seconds: float = 0.0
    since: float = 0.0
    """When it began, by the monotonic clock."""

    def lasted_s(self, now: float) -> float:
        return now - self.since if self.state is StepState.RUNNING else self.seconds


@dataclass(frozen=True)
class NodeView:
    """How one node stands, as it says over its control socket."""

    name: str
    site: str = ""
    running: bool = False
    held_bytes: int = 0
    wanted_bytes: int = 0
    """Of all that it should hold; 0 while nothing is granted."""
    rate_bytes_per_s: float = 0.0
    """Of script content coming in over the network."""
    sources: tuple[tuple[str, int], ...] = ()
    """Whom content came from and how many bytes, the most first."""
    sent: tuple[tuple[str, int], ...] = ()
    """Whom content went to, by its own count, the most first."""
    generation: int = 0
    """Of the release that it has switched to; 0 before that."""
    problem: str = ""
    """Why it will not get there."""

    @property
    def active(self) -> bool:
        """Whether it has switched to the release."""
        return self.generation > 0

    @property
    def complete(self) -> bool:
        return 0 < self.wanted_bytes <= self.held_bytes


@dataclass(frozen=True)
class Snapshot:
    """Everything at one moment."""

    steps: tuple[Step, ...]
    nodes: tuple[NodeView, ...]
    elapsed_s: float
    now: float


Listener = Callable[[Snapshot], None]


class StepNotes:
    """Lets the play say how a running step goes."""

    def __init__(self, story: Story, number: int) -> None:
        self._story = story
        self._number = number
        self.failed = False

    def say(self, detail: str) -> None:
        self._story.change(self._number, detail=detail)

    def fail(self, detail: str) -> None:
        """What should have been seen was not; the demo may go on to look at other things."""
        self.failed = True
        self.say(detail)


class Story:
    """Keeps the newest value of everything and tells who listens."""

    def __init__(self, titles: Sequence[str], names: Sequence[str]) -> None:
        self.began: Final = time.monotonic()
        self._lock = threading.RLock()
        self._steps = [Step(title) for title in titles]
        self._nodes = {name: NodeView(name) for name in names}
        self._listeners: list[Listener] = []
        self._next = 0

    def listen(self, listener: Listener) -> None:
        """Call it after every change, in the thread that made the change."""
        self._listeners.append(listener)

    def snapshot(self) -> Snapshot:
        now = time.monotonic()
        with self._lock:
            return Snapshot(tuple(self._steps), tuple(self._nodes.values()), now - self.began, now)

    @contextmanager
    def step(self, detail: str = "") -> Iterator[StepNotes]:
        """The next step, which lasts as long as the body."""
        number, self._next = self._next, self._next + 1
        began = time.monotonic()
        self.change(number, state=StepState.RUNNING, since=began, detail=detail)
        notes = StepNotes(self, number)
        try:
            yield notes
        except BaseException:
            notes.failed = True
            raise
        finally:
            state = StepState.FAILED if notes.failed else StepState.SEEN
            self.change(number, state=state, seconds=time.monotonic() - began)

    def change(self, number: int, **fields: object) -> None:
        """Change fields of one step."""
        with self._lock:
            self._steps[number] = replace(self._steps[number], **fields)  # type: ignore[arg-type]
        self._tell()

    def put(self, view: NodeView) -> None:
        """A newer view of a node."""
        with self._lock:
            self._nodes[view.name] = view
        self._tell()

    def _tell(self) -> None:
        snapshot = self.snapshot()
        for listener in self._listeners:
            listener(snapshot)
