"""Going through a fetch plan's log again: the proof that its decisions follow from its events."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.fetch import FetchPlan
from protocol.fetch_log import LogEntry, Recipe


def replay(recipe: Recipe, log: Iterable[LogEntry]) -> int | None:
    """Run a whole log again; the index of the first step that differs, None when none does."""
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
    for index, (now, event, effects) in enumerate(log):
        if tuple(plan.step(event, now=now)) != effects:
            return index
    return None
