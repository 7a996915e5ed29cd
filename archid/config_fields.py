"""What a single value of the configuration may be: paths, addresses, groups, durations, sizes.

Each type parses the text of the file and refuses with a sentence that repeats the text, since
that is what the operator searches for. Which keys have which type is in `archid.config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator

from archid.addresses import Address, parse_address
from archid.local_time import find_zone
from archid.quantities import parse_duration, parse_size
from archid.rates import parse_rate
from archid.weekly_grid import MAX_LINES, GridLine, parse_grid_line

MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), without its final zero

METRICS_PORT: Final = 9764
MAX_PEERS: Final = 60_000
MAX_UPLOAD_SLOTS: Final = 10_000

_GROUP: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def _from_text(parse: Callable[[str], object]) -> Callable[[object], object]:
    """Parse strings and refuse everything else, so that 7 is never taken for "7d"."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} must be text in quotes")
        return parse(value)

    return validate


def _each(parse: Callable[[str], object]) -> Callable[[object], object]:
    def validate(value: object) -> object:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{value!r} must be a list in brackets")
        parsed = tuple(map(_from_text(parse), value))
        for index, item in enumerate(parsed):
            if item in parsed[:index]:
                raise ValueError(f"'{item}' is listed twice")
        return parsed

    return validate


def _absolute_path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path without '..'")
    return path


def _socket_path(text: str) -> Path:
    path = _absolute_path(text)
    if len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"{text!r} is longer than the {MAX_SOCKET_PATH_BYTES} bytes that Linux allows for the"
            " path of a socket"
        )
    return path


def _listen_address(text: str) -> Address:
    return parse_address(text, any_port=True)


def _dialled_address(text: str) -> Address:
    address = parse_address(text)
    if address.is_wildcard:
        raise ValueError(f"{text!r} means every interface of a machine; nobody could dial it")
    return address


def _metrics_address(text: str) -> Address | None:
    if not text:
        return None
    address = parse_address(text, any_port=True)
    return Address(address.host, METRICS_PORT) if _has_no_port(text) else address


def _has_no_port(text: str) -> bool:
    return ":" not in text.rpartition("]")[2]


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text and not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return parse


def _peer_count(value: object) -> object:
    if isinstance(value, int) and not 1 <= value <= MAX_PEERS:
        raise ValueError(f"{value} is not a number from 1 to {MAX_PEERS}")
    return value


def _slot_count(value: object) -> object:
    if isinstance(value, int) and not 1 <= value <= MAX_UPLOAD_SLOTS:
        raise ValueError(f"{value} is not a number from 1 to {MAX_UPLOAD_SLOTS}")
    return value


def _time_zone(text: str) -> str:
    if text:
        find_zone(text)
    return text


def _grid(value: object) -> object:
    lines = _each(parse_grid_line)(value)
    if isinstance(lines, tuple) and len(lines) > MAX_LINES:
        raise ValueError(f"it has {len(lines)} lines; at most {MAX_LINES} are allowed")
    return lines


def _database_url(text: str) -> str:
    if text and not text.startswith(("sqlite:///", "postgresql://", "postgresql+")):
        # the text itself may hold a password, so it is not repeated
        raise ValueError("it is not a URL that starts with sqlite:/// or postgresql://")
    return text


RateLimit = Annotated[int | None, BeforeValidator(_from_text(parse_rate))]
WeeklyGrid = Annotated[tuple[GridLine, ...], BeforeValidator(_grid)]
TimeZone = Annotated[str, BeforeValidator(_from_text(_time_zone))]
SlotCount = Annotated[int, BeforeValidator(_slot_count)]
PeerCount = Annotated[int, BeforeValidator(_peer_count)]
AbsolutePath = Annotated[Path, BeforeValidator(_from_text(_absolute_path))]
SocketPath = Annotated[Path, BeforeValidator(_from_text(_socket_path))]
Duration = Annotated[timedelta, BeforeValidator(_from_text(parse_duration))]
Size = Annotated[int, BeforeValidator(_from_text(parse_size))]
GroupName = Annotated[
    str, BeforeValidator(_from_text(_matching(_GROUP, "the name of a Unix group")))
]
NodeName = Annotated[
    str,
    BeforeValidator(
        _from_text(
            _matching(_NODE_NAME, "a node's name: up to 64 letters, digits and any of . _ -")
        )
    ),
]
DatabaseUrl = Annotated[str, BeforeValidator(_from_text(_database_url))]
MetricsAddress = Annotated[Address | None, BeforeValidator(_from_text(_metrics_address))]
ListenAddresses = Annotated[tuple[Address, ...], BeforeValidator(_each(_listen_address))]
DialledAddresses = Annotated[tuple[Address, ...], BeforeValidator(_each(_dialled_address))]
