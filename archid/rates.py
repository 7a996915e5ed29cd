"""Rates as people write them ("20Mbit/s", "2MB/s"), and the limits that they set for a node.

A rate is held in bytes a second and written in bits or bytes; "20Mb/s" is refused, since half of
its readers take it for the one and half for the other. Nothing here knows what is limited how:
`archid.net.pacing` does it, `archid.weekly_grid` says at which hour which rates hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Final

MIN_RATE: Final = 12_500
"""Bytes a second, 100 kbit/s: with less, nodes could no longer tell one another that they live."""
MAX_RATE: Final = 12_500_000_000
UNLIMITED: Final = "unlimited"

_BITS: Final = {
    "gbit/s": 10**9,
    "mbit/s": 10**6,
    "kbit/s": 10**3,
    "bit/s": 1,
    "gb/s": 8 * 10**9,
    "mb/s": 8 * 10**6,
    "kb/s": 8 * 10**3,
    "gib/s": 8 * 2**30,
    "mib/s": 8 * 2**20,
    "kib/s": 8 * 2**10,
}
_RATE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]+(?:/[A-Za-z]+)?)")
_AMBIGUOUS: Final = re.compile(r"[kKmMgG]b(/s|ps)")
_SHOWN: Final = (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("kbit/s", 10**3), ("bit/s", 1))


@dataclass(frozen=True)
class Rates:
    """What a node may send (up) and receive (down), in bytes a second; None is without a limit."""

    up: int | None = None
    """Everything that this node sends."""
    down: int | None = None
    outside_up: int | None = None
    """What goes over the line of this node's site: to all nodes of other sites together."""
    outside_down: int | None = None
    per_site_up: int | None = None
    """To all nodes of any one other site together."""
    per_site_down: int | None = None
    per_peer_up: int | None = None
    """To any one node, wherever it stands."""
    per_peer_down: int | None = None

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return self == NO_LIMITS


NO_LIMITS: Final = Rates()
RATE_KEYS: Final = tuple(field.name for field in fields(Rates))
"""What can be limited, as the configuration and the command call it."""


def parse_rate(text: str) -> int | None:
    """Bytes a second, None for "" and "unlimited". Raises ValueError with a sentence."""
    plain = text.strip()
    if plain in ("", UNLIMITED):
        return None
    match = _RATE.fullmatch(plain)
    if match is not None and _AMBIGUOUS.fullmatch(match[2]):
        letter = match[2][0]
        number = match[1]
        bits = f"{number}{'k' if letter in 'kK' else letter.upper()}bit/s"
        size = f"{number}{'k' if letter in 'kK' else letter.upper()}B/s"
        raise ValueError(f"{text!r} may mean bits or bytes; write '{bits}' or '{size}'")
    factor = None if match is None else _BITS.get(match[2].lower())
    if match is None or factor is None:
        raise ValueError(
            f"{text!r} is not a rate; write a number and one of kbit/s, Mbit/s, Gbit/s, kB/s, MB/s"
            " or GB/s, as in '20Mbit/s' or '2.5MB/s', or 'unlimited'"
        )
    rate = int(Decimal(match[1]) * factor / 8)
    if rate < MIN_RATE:
        raise ValueError(
            f"{text!r} is less than {format_rate(MIN_RATE)}, the least at which nodes can still"
            " talk to one another"
        )
    if rate > MAX_RATE:
        raise ValueError(
            f"{text!r} is more than {format_rate(MAX_RATE)}; write 'unlimited' for no limit"
        )
    return rate


def format_rate(rate: int | None) -> str:
    """The shortest text that `parse_rate` reads back, in bits; "unlimited" for None."""
    if rate is None:
        return UNLIMITED
    bits = 8 * rate
    for unit, factor in _SHOWN:
        if bits >= factor and bits * 1000 % factor == 0:
            return f"{(Decimal(bits) / factor).normalize():f}{unit}"
    return f"{bits}bit/s"
