"""Time zones by name, and the machine's own: for what happens at an hour of somebody's day."""

from __future__ import annotations

import os
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

_LOCAL: Final = Path("/etc/localtime")
_ZONES: Final = Path("/usr/share/zoneinfo")


def find_zone(name: str) -> tzinfo:
    """The zone of this name ("Europe/Paris"), the machine's own for "". Raises ValueError."""
    if not name:
        return machine_zone()
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is not a time zone that this machine knows; write one such as"
            " 'Europe/Paris' (timedatectl list-timezones lists them)"
        ) from error


def machine_zone() -> tzinfo:
    """What the variable TZ says, else /etc/localtime, else UTC."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if named:
        try:
            return ZoneInfo(named)
        except (KeyError, ValueError, OSError):
            pass  # a rule written out, as "CET-1CEST": the file is the better guess
    try:
        with _LOCAL.open("rb") as stream:
            return ZoneInfo.from_file(stream, key=_name_of_local())
    except (ValueError, OSError):
        return UTC


def zone_name(zone: tzinfo) -> str:
    """How a person calls it."""
    return str(zone.key or "local") if isinstance(zone, ZoneInfo) else str(zone)


def _name_of_local() -> str | None:
    """The name behind the link that /etc/localtime usually is."""
    try:
        return str(_LOCAL.resolve().relative_to(_ZONES.resolve()))
    except (ValueError, OSError):
        return None
