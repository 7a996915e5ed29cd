"""Figures as people read them: sizes, rates, durations and moments, each with its unit.

Sizes are decimal (1 MB is 10^6 bytes), as on the disks and lines that people compare them with.
Moments are in the local time zone, and say which one that is.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_STEPS_S: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def size(size_bytes: float) -> str:
    """Three significant digits and a decimal unit: "301 MB", "1.20 GB", "0 B"."""
    value = float(size_bytes)
    unit = 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    if unit == 0:
        return f"{value:.0f} B"
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_UNITS[unit]}"


def part(done_bytes: float, size_bytes: float) -> str:
    """A part and its whole, the unit said once where it is the same: "120 of 301 MB"."""
    done, whole = size(done_bytes), size(size_bytes)
    number, _, unit = done.partition(" ")
    return f"{number if whole.endswith(' ' + unit) else done} of {whole}"


def rate(bytes_per_s: float | None) -> str:
    """A size per second, or nothing when it is not known."""
    return "" if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def duration(seconds: float) -> str:
    """The two greatest units: "4 s", "3 min 20 s", "1 d 4 h"."""
    left = max(0, round(seconds))
    parts = []
    for step_s, unit in _STEPS_S:
        count, left = divmod(left, step_s)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


def moment(seconds: float | None) -> str:
    """Date and time in the local zone, with the zone: "2026-10-14 09:00 CEST"."""
    if seconds is None:
        return ""
    try:
        local = datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, OSError, ValueError):
        return "a time that no clock shows"
    return local.strftime("%Y-%m-%d %H:%M %Z")


def moment_s(seconds: float) -> str:
    """The same to the second: "2026-10-14 09:00:12 CEST"."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def distance(seconds: float, now_s: float) -> str:
    """How far a moment is from now: "in 3 h 20 min", "5 min 3 s ago"."""
    if seconds >= now_s:
        return f"in {duration(seconds - now_s)}"
    return f"{duration(now_s - seconds)} ago"


def share(part: float, whole: float) -> str:
    """A percentage that says 100 only when all of it is there."""
    if whole <= 0 or part >= whole:
        return "100 %"
    return f"{min(99.9, 100 * part / whole):.0f} %" if part < 0.99 * whole else "99 %"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 file", "1,204 files"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
