"""Going through a fetch plan's log again: the proof that its decisions follow from its events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from protocol.fetch import FetchPlan
from protocol.fetch_log import LogEntry, Recipe


class Replayed(NamedTuple):
    """What came of a log: how many steps it has, and the first that came out otherwise."""

    steps: int
    differs_at: int | None
    finished: bool
    missing_spans: int


def replay(recipe: Recipe, log: Iterable[LogEntry]) -> int | None:
    """Run a whole log again; the index of the first step that differs, None when none does."""
    return go_through(recipe, log).differs_at


def go_through(recipe: Recipe, log: Iterable[LogEntry]) -> Replayed:
    """The same, and what the plan had come to by then."""
    plan = FetchPlan(
        recipe.spans,
        recipe.sizes,
        recipe.held,
        window=recipe.window,
        window_bytes=recipe.window_bytes,
        offers=recipe.offers,
        by_name=recipe.by_name,
        priorities=dict(recipe.priorities),
        seed=recipe.seed,
        topic=recipe.topic,
        shared_line=recipe.shared_line,
        log_limit=0,
    )
    steps = 0
    for index, (now, event, effects) in enumerate(log):
        steps = index + 1
        if tuple(plan.step(event, now=now)) != effects:
            return Replayed(steps, index, plan.finished, plan.missing_spans)
    return Replayed(steps, None, plan.finished, plan.missing_spans)
