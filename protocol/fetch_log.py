"""What a fetch plan was made from and what it went through: enough to go through it again.

As text it is one JSON array a line: first the recipe, then every step with its time, its event and
its effects. Numbers come back to the last bit. It is for people who look for a defect, never for
peers: no limits are kept, and lines of another version may not be understood.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, Final, NamedTuple, TypeAlias, cast

from protocol import fetch_events as events
from protocol.errors import FormatError
from protocol.fetch_events import COMPLETE, DropReason, FetchEffect, FetchEvent, SpanKey
from protocol.messages.codes import ErrorCode

LogEntry: TypeAlias = tuple[float, FetchEvent, tuple[FetchEffect, ...]]

FORMAT: Final = "archid fetch plan 1"


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


KINDS: Final = {
    kind.__name__: kind
    for kind in (
        events.PeerJoined,
        events.PeerHas,
        events.PeerLost,
        events.SpanReceived,
        events.SpanCorrupt,
        events.SpanRefused,
        events.SpanPicked,
        events.OfferRefused,
        events.Paused,
        events.Tick,
        events.Together,
        events.AskSpan,
        events.CancelSpan,
        events.AskAny,
        events.UnwantSpan,
        events.CancelOffer,
        events.DropPeer,
        events.WakeAt,
        events.Finished,
    )
}


def recipe_line(recipe: Recipe) -> str:
    """The first line of a log."""
    values = [
        recipe.spans,
        recipe.sizes,
        sorted(recipe.held),
        recipe.window,
        recipe.window_bytes,
        recipe.offers,
        sorted(recipe.by_name),
        recipe.priorities,
        recipe.seed.hex(),
        recipe.topic.hex(),
        recipe.shared_line,
    ]
    return json.dumps([FORMAT, *values], separators=(",", ":")) + "\n"


def entry_line(entry: LogEntry) -> str:
    """One step."""
    now, event, effects = entry
    values = [now, _value(event), [_value(effect) for effect in effects]]
    return json.dumps(values, separators=(",", ":")) + "\n"


def read_log(lines: Iterable[str]) -> tuple[Recipe, Iterator[LogEntry]]:
    """The recipe, and the steps as they are read. Raises FormatError, for the steps later."""
    steps = iter(lines)
    try:
        found, *values = json.loads(next(steps, "[0]"))
        if found != FORMAT:
            raise FormatError("this is not the log of a fetch plan that this version writes")
        spans, sizes, held, window, window_bytes, offers, by_name, ranks, seed, topic, line = values
        recipe = Recipe(
            tuple(map(_key, spans)),
            tuple(sizes),
            frozenset(map(_key, held)),
            window,
            window_bytes,
            offers,
            frozenset(map(_key, by_name)),
            tuple((_key(span), rank) for span, rank in ranks),
            bytes.fromhex(seed),
            bytes.fromhex(topic),
            line,
        )
    except (ValueError, TypeError) as error:
        raise FormatError(f"the first line of this log is no recipe: {error}") from error
    return recipe, _entries(steps)


def _entries(lines: Iterator[str]) -> Iterator[LogEntry]:
    for number, line in enumerate(lines, 2):
        try:
            now, event, effects = json.loads(line)
            entry = (now, _thing(event), tuple(map(_thing, effects)))
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(f"line {number} of this log is no step of a plan") from error
        yield cast("LogEntry", entry)


def _value(thing: FetchEvent | FetchEffect) -> list[Any]:
    found: list[Any] = [type(thing).__name__]
    for field in fields(thing):
        value = getattr(thing, field.name)
        if value is COMPLETE:
            value = True
        elif isinstance(value, bytes):
            value = value.hex()
        elif isinstance(value, frozenset | set):
            value = sorted(value)
        elif isinstance(value, ErrorCode | DropReason):
            value = value.name
        elif field.name == "wanted":
            value = [[piece_index, bitmap.hex()] for piece_index, bitmap in value]
        elif field.name == "events":
            value = [_value(one) for one in value]
        found.append(value)
    return found


def _thing(value: list[Any]) -> object:
    name, *values = value
    kind = KINDS[name]
    named = zip((field.name for field in fields(kind)), values, strict=True)
    return cast("Any", kind)(*(_field(field, found) for field, found in named))


def _field(name: str, value: Any) -> object:
    match name:
        case "peer":
            return None if value is None else bytes.fromhex(value)
        case "span":
            return _key(value)
        case "have":
            return COMPLETE if value is True else frozenset(map(_key, value))
        case "wanted":
            return tuple((piece_index, bytes.fromhex(bitmap)) for piece_index, bitmap in value)
        case "events":
            return tuple(map(_thing, value))
        case "code":
            return ErrorCode[value]
        case "reason":
            return DropReason[value]
    return value


def _key(value: list[int]) -> SpanKey:
    piece_index, n = value
    return SpanKey(piece_index, n)
