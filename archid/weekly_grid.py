"""Which rates hold at which hours of the week: lines such as "mon-fri 14:00-23:30 up=2Mbit/s".

What counts is the clock on the wall, also in the night when it is put forward or back: a line is
in force whenever that clock shows one of its minutes, so an hour that comes twice counts twice and
one that is left out never comes. Where two lines name the same limit at the same time the later
one in the list counts. Everything here is a function of its arguments, the moment among them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from archid.rates import RATE_KEYS, Rates, parse_rate

MAX_LINES: Final = 64
LOOK_AHEAD_DAYS: Final = 15
"""One week and the one after, since a change of the clocks may swallow an hour of the first."""

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60
_HOURS: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")
_EXAMPLE: Final = "'mon-fri 14:00-23:30 outside_down=2Mbit/s'"


@dataclass(frozen=True)
class GridLine:
    """One line: on these days, from this minute of the day to that, these limits."""

    text: str
    """As it was written."""
    days: frozenset[int]
    """On which it begins; Monday is 0."""
    start_minute: int
    end_minute: int
    """More than a day's minutes when it goes on after midnight."""
    rates: tuple[tuple[str, int | None], ...]

    def __str__(self) -> str:
        return self.text

    def covers(self, local: datetime) -> bool:
        """Whether the clock on the wall shows one of its minutes."""
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if day in self.days and self.start_minute <= minute < self.end_minute:
            return True
        return (day - 1) % 7 in self.days and minute + _DAY_MINUTES < self.end_minute


def parse_grid_line(text: str) -> GridLine:
    """Read one line. Raises ValueError with a sentence."""
    words = text.split()
    hours = words[1] if len(words) > 1 and "=" not in words[1] else None
    settings = words[2 if hours is not None else 1 :]
    if not words or not settings:
        raise ValueError(
            f"{text!r} is not a line of the week; write days, hours and limits, as in {_EXAMPLE}"
        )
    start, end = (0, _DAY_MINUTES) if hours is None else _parse_hours(hours, text)
    return GridLine(
        text=" ".join(words),
        days=_parse_days(words[0], text),
        start_minute=start,
        end_minute=end,
        rates=tuple(parse_assignments(settings).items()),
    )


def parse_assignments(words: Iterable[str]) -> dict[str, int | None]:
    """Limits as "up=2Mbit/s", by key. Raises ValueError with a sentence."""
    found: dict[str, int | None] = {}
    for word in words:
        key, equals, rate = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not a limit; write 'KEY=RATE', as in 'up=2Mbit/s'")
        check_key(key)
        if key in found:
            raise ValueError(f"'{key}' is set twice")
        found[key] = parse_rate(rate)
    return found


def check_key(key: str) -> None:
    """Raise ValueError unless there is such a limit."""
    if key not in RATE_KEYS:
        nearest = difflib.get_close_matches(key, RATE_KEYS, n=1, cutoff=0.6)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known are {', '.join(RATE_KEYS)}"
        raise ValueError(f"there is no limit '{key}'; {hint}")


def _parse_days(word: str, text: str) -> frozenset[int]:
    if word.lower() == "daily":
        return frozenset(range(7))
    days: set[int] = set()
    for part in word.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(
                f"'{word}' in {text!r} are no days; write 'mon', 'mon-fri', 'sat,sun' or 'daily'"
            )
        start = DAYS.index(first)
        length = (DAYS.index(last) - start) % 7 if dash else 0
        days.update((start + n) % 7 for n in range(length + 1))
    return frozenset(days)


def _parse_hours(word: str, text: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(word)
    if match is None:
        raise ValueError(f"'{word}' in {text!r} are no hours; write them as in '14:00-23:30'")
    hours = [int(match[1]), int(match[3])]
    minutes = [int(match[2]), int(match[4])]
    start, end = (60 * hour + minute for hour, minute in zip(hours, minutes, strict=True))
    if max(minutes) > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise ValueError(f"'{word}' in {text!r} is not between 00:00 and 24:00")
    if start == end:
        raise ValueError(
            f"'{word}' in {text!r} begins when it ends; for a whole day leave the hours out"
        )
    return start, end if end > start else end + _DAY_MINUTES


def rates_at(
    base: Rates, lines: Sequence[GridLine], at_s: float, zone: tzinfo
) -> tuple[Rates, Mapping[str, GridLine]]:
    """The rates at a moment, and which line each is from that is not from `base`."""
    local = datetime.fromtimestamp(at_s, zone)
    found: dict[str, GridLine] = {}
    changed: dict[str, int | None] = {}
    for line in lines:
        if line.covers(local):
            for key, rate in line.rates:
                changed[key], found[key] = rate, line
    return replace(base, **changed), found


def boundaries(lines: Sequence[GridLine], at_s: float, zone: tzinfo) -> list[int]:
    """Every moment after `at_s`, for two weeks, at which a line may begin or end, in order."""
    if not lines:
        return []
    today = datetime.fromtimestamp(at_s, zone).date()
    found: set[int] = set(_clock_changes(at_s, zone))
    for n in range(-2, LOOK_AHEAD_DAYS):
        day = today + timedelta(days=n)
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - gets its zone below
        for line in lines:
            if day.weekday() in line.days:
                for minute in (line.start_minute, line.end_minute):
                    shown = midnight + timedelta(minutes=minute)
                    for fold in (0, 1):  # the clock may show it twice
                        moment = shown.replace(tzinfo=zone, fold=fold)
                        found.add(int(moment.timestamp()))
    return sorted(one for one in found if one > at_s)


def _clock_changes(at_s: float, zone: tzinfo) -> Iterator[int]:
    """When the clocks are put forward or back, to the second."""
    hour, first = 3600, int(at_s)
    for start in range(first, first + LOOK_AHEAD_DAYS * 24 * hour, hour):
        before = _offset(start, zone)
        low, high = start, start + hour
        if _offset(high, zone) == before:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _offset(middle, zone) == before else (low, middle)
        yield high


def _offset(at_s: int, zone: tzinfo) -> timedelta | None:
    return datetime.fromtimestamp(at_s, UTC).astimezone(zone).utcoffset()


def parse_until(text: str, at_s: float, zone: tzinfo) -> int:
    """A moment after `at_s`: "23:30" (the next), or "2026-12-01T08:00". Raises ValueError."""
    now = datetime.fromtimestamp(at_s, zone)
    clock = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", text.strip())
    if clock is not None:
        for n in range(3):
            day = now.date() + timedelta(days=n)
            moment = datetime(
                day.year, day.month, day.day, int(clock[1]), int(clock[2]), tzinfo=zone
            )
            if moment.timestamp() > at_s:
                return int(moment.timestamp())
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not a moment; write an hour as '23:30', a date as '2026-12-01T08:00', or"
            " how long, as '2h'"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    if moment.timestamp() <= at_s:
        raise ValueError(f"{text!r} is in the past")
    return int(moment.timestamp())
