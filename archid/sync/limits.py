"""What limits hold now: the configuration, its lines of the week, and what a person set meanwhile.

A limit that was set by `archid limits set` counts before the file, with its lines of the week,
until its time is over or it is cleared; then the file counts again, as it is by then. What was set
is an entry in the node's journal, as a pin is, so it survives a restart. The hours are watched
only while there is a line or an end to wait for; what the limits do to bytes is
`archid.net.pacing`'s business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Final, Literal

import trio

from archid.config import LimitsSettings
from archid.events import EventHub
from archid.journal import Entry, Journal, Scalar
from archid.local_time import find_zone
from archid.log import get_logger
from archid.net.pacing import Pacing
from archid.rates import RATE_KEYS, Rates, format_rate
from archid.sync.signal import Signal
from archid.sync.upload_slots import UploadSlots
from archid.weekly_grid import boundaries, rates_at

log = get_logger(__name__)

LIMITS_SET: Final = "limits_set"
LIMITS_CLEARED: Final = "limits_cleared"
LOOK_AGAIN_S: Final = 60.0
"""While hours are waited for: somebody may set the clock."""

Origin = Literal["default", "file", "weekly", "set"]


@dataclass(frozen=True)
class Override:
    """One limit as a person set it."""

    rate: int | None
    by: str
    at_s: int
    until_s: int | None = None


@dataclass(frozen=True)
class Held:
    """One limit at one moment, and why it is what it is."""

    rate: int | None
    origin: Origin
    line: str | None = None
    """The line of the week that says so."""
    by: str | None = None
    until_s: int | None = None


def held_at(
    settings: LimitsSettings, overrides: Mapping[str, Override], at_s: float, zone: tzinfo
) -> dict[str, Held]:
    """Every limit at a moment, by key."""
    rates, lines = rates_at(settings.rates, settings.weekly, at_s, zone)
    found: dict[str, Held] = {}
    for key in RATE_KEYS:
        override = overrides.get(key)
        if override is not None and (override.until_s is None or override.until_s > at_s):
            found[key] = Held(override.rate, "set", by=override.by, until_s=override.until_s)
        elif key in lines:
            found[key] = Held(getattr(rates, key), "weekly", line=lines[key].text)
        else:
            in_file = f"{key}_rate" in settings.model_fields_set
            found[key] = Held(getattr(rates, key), "file" if in_file else "default")
    return found


def next_change(
    settings: LimitsSettings, overrides: Mapping[str, Override], at_s: float, zone: tzinfo
) -> int | None:
    """When a limit will be another one, None if that is not in sight."""
    now = _rates(held_at(settings, overrides, at_s, zone))
    ends = {one.until_s for one in overrides.values() if one.until_s and one.until_s > at_s}
    for moment in sorted(ends.union(boundaries(settings.weekly, at_s, zone))):
        if _rates(held_at(settings, overrides, moment, zone)) != now:
            return moment
    return None


def _rates(held: Mapping[str, Held]) -> Rates:
    return replace(Rates(), **{key: one.rate for key, one in held.items()})


class Limits:
    """Keeps the pacing and the upload slots of one node at what holds now."""

    def __init__(
        self,
        settings: LimitsSettings,
        *,
        pacing: Pacing,
        slots: UploadSlots,
        journal: Journal,
        events: EventHub,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._zone = find_zone(settings.time_zone)
        self._pacing = pacing
        self.slots = slots
        self._journal = journal
        self._events = events
        self._clock = clock
        self._overrides: dict[str, Override] = {}
        self._changed = Signal()

    def load(self) -> None:
        """Read from the journal what was set before; blocks. Raises StorageError."""
        for entry in self._journal.readable():
            self._follow(entry)

    def _follow(self, entry: Entry) -> None:
        if entry.kind == LIMITS_CLEARED:
            for key in str(entry.fields.get("limits", "")).split():
                self._overrides.pop(key, None)
        elif entry.kind == LIMITS_SET:
            until_s = entry.fields.get("until_s")
            by = str(entry.fields.get("by", ""))
            for key in RATE_KEYS:
                rate = entry.fields.get(key, 0)
                if rate is None or (isinstance(rate, int) and rate > 0):
                    until = until_s if isinstance(until_s, int) else None
                    self._overrides[key] = Override(rate, by, entry.at_s, until)

    @property
    def settings(self) -> LimitsSettings:
        """What the file says."""
        return self._settings

    @property
    def zone(self) -> tzinfo:
        """In which its hours are."""
        return self._zone

    @property
    def now_s(self) -> float:
        """By the clock that decides."""
        return self._clock()

    def held(self, at_s: float | None = None) -> dict[str, Held]:
        """Every limit now, or at another moment."""
        moment = self._clock() if at_s is None else at_s
        return held_at(self._settings, self._overrides, moment, self._zone)

    def next_change_s(self) -> int | None:
        """When one of them will be another."""
        return next_change(self._settings, self._overrides, self._clock(), self._zone)

    def take_up(self, settings: LimitsSettings) -> None:
        """Follow another configuration from now on."""
        self._settings = settings
        self._zone = find_zone(settings.time_zone)
        self.apply()

    async def set(
        self, rates: Mapping[str, int | None], *, by: str, until_s: int | None = None
    ) -> None:
        """Let these limits count before the file, at once. Raises StorageError."""
        fields: dict[str, Scalar] = {**rates, "by": by}
        if until_s is not None:
            fields["until_s"] = until_s
        self._follow(await self._write(LIMITS_SET, fields))
        self.apply()

    async def clear(self, keys: Iterable[str], *, by: str) -> list[str]:
        """Let the file count again for these; returns those that were set. Raises StorageError."""
        held = self.held()
        gone = [key for key in keys if held[key].origin == "set"]
        if gone:
            fields: dict[str, Scalar] = {"limits": " ".join(gone), "by": by}
            self._follow(await self._write(LIMITS_CLEARED, fields))
            self.apply()
        return gone

    async def _write(self, kind: str, fields: dict[str, Scalar]) -> Entry:
        # A thread that has begun is waited for: what is in the journal is in force.
        return await trio.to_thread.run_sync(self._journal.append, kind, fields)

    def apply(self) -> None:
        """Put into force what holds now."""
        rates = _rates(self.held())
        least = min((one for one in (rates.up, rates.outside_up) if one), default=None)
        self.slots.set_limit(self._settings.upload_slots, least)
        before = self._pacing.rates
        if rates != before:
            self._pacing.set_rates(rates)
            told = {
                key: format_rate(getattr(rates, key))
                for key in RATE_KEYS
                if getattr(rates, key) != getattr(before, key)
            }
            log.info("limits_changed", **told)
            self._events.publish("limits.changed", **told)
        self._changed.fire()

    async def run(self) -> None:
        """Follow the hours of the week; sleeps while there is nothing to wait for."""
        while True:
            self.apply()
            seen = self._changed.version
            moment = self.next_change_s()
            wait_s = math.inf if moment is None else min(moment - self._clock(), LOOK_AGAIN_S)
            with trio.move_on_after(max(0.0, wait_s)):
                await self._changed.wait(seen)
