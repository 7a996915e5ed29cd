"""What a fetch plan was made from and what it went through: enough to go through it again."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from protocol.fetch_events import FetchEffect, FetchEvent, SpanKey

LogEntry: TypeAlias = tuple[float, FetchEvent, tuple[FetchEffect, ...]]


class Recipe(NamedTuple):
    """All that a plan was made from."""

    spans: tuple[SpanKey, ...]
    sizes: tuple[int, ...]
    held: frozenset[SpanKey]
    window: int
    window_bytes: int
    offers: int
    by_name: frozenset[SpanKey]
    priorities: tuple[tuple[SpanKey, int], ...]
    seed: bytes
    topic: bytes = b""
    shared_line: bool = False
