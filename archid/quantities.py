"""Durations and sizes as people write them in a configuration: "7d", "12h", "500MB", "1GiB".

Text in, `timedelta` or bytes out, and back again for ``archid config show``. A number without
its unit is refused: it is the usual way to be wrong by a factor of sixty or a thousand.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_SECONDS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_BYTES: Final = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "B": 1,
}
_BYTES_BY_LOWER_UNIT: Final = {unit.lower(): factor for unit, factor in _BYTES.items()}
_NUMBER_AND_UNIT: Final = re.compile(r"([0-9]{1,19})\s*([A-Za-z]+)")
_MAX_DURATION_S: Final = 100 * 366 * 86_400
_MAX_SIZE_BYTES: Final = 2**60


def parse_duration(text: str) -> timedelta:
    """Read "90s", "15m", "12h", "7d" or "2w". Raises ValueError with a sentence."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if match is None or match[2] not in _SECONDS:
        raise ValueError(
            f"{text!r} is not a duration; write a whole number and one of s, m, h, d or w,"
            " as in '12h' or '7d'"
        )
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > _MAX_DURATION_S:
        raise ValueError(f"{text!r} is longer than a hundred years")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """The shortest exact text that `parse_duration` reads back; fractions of seconds are cut."""
    seconds = int(duration.total_seconds())
    for unit, factor in _SECONDS.items():
        # 7d rather than 1w: both are exact, and days are how people compare lifetimes
        if unit != "w" and seconds and seconds % factor == 0:
            return f"{seconds // factor}{unit}"
    return "0s"


def parse_size(text: str) -> int:
    """Read "500MB" (powers of 1000) or "1GiB" (powers of 1024) in bytes.

    Raises ValueError with a sentence.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    factor = None if match is None else _BYTES_BY_LOWER_UNIT.get(match[2].lower())
    if match is None or factor is None:
        raise ValueError(
            f"{text!r} is not a size; write a whole number and one of B, kB, MB, GB, TB, KiB, MiB,"
            " GiB or TiB, as in '500MB' or '1GiB'"
        )
    size_bytes = int(match[1]) * factor
    if size_bytes > _MAX_SIZE_BYTES:
        raise ValueError(f"{text!r} is more than any disk holds")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """The shortest exact text that `parse_size` reads back."""
    candidates = [
        f"{size_bytes // factor}{unit}"
        for unit, factor in _BYTES.items()
        if size_bytes % factor == 0 and size_bytes >= factor
    ]
    return min(candidates, key=len, default="0B")
