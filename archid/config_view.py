"""The configuration in effect, key by key, with where each value comes from.

Data for ``archid config show`` and its ``--json``; nothing here prints. Passwords inside a
database URL are left out, since this is what people paste into a ticket.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel

from archid.addresses import Address
from archid.config import Config
from archid.config_errors import key_in_file
from archid.quantities import format_duration, format_size
from archid.rates import format_rate

Plain = str | int | list[str]

_PASSWORD_IN_URL: Final = re.compile(r"(://[^:/@]*:)[^@]*(?=@)|([?&]password=)[^&]*")


@dataclass(frozen=True)
class EffectiveKey:
    """One key: its section ("" at the top of the file), its value as the file would have it."""

    section: str
    key: str
    value: Plain
    origin: Literal["file", "default"]

    def to_json(self) -> dict[str, object]:
        """The row for ``archid config show --json``."""
        return {
            "section": self.section,
            "key": self.key,
            "value": self.value,
            "origin": self.origin,
        }


def effective_keys(config: Config) -> list[EffectiveKey]:
    """Every key that this role reads, in the order of the example files."""
    return list(_keys("", config, config.node.role))


def _keys(section: str, model: BaseModel, role: str) -> Iterator[EffectiveKey]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        key = key_in_file(name, field)
        if isinstance(value, BaseModel):
            if key == "central" and role != "central":
                continue  # no other role reads it, and none may set it
            yield from _keys(key, value, role)
        else:
            origin: Literal["file", "default"] = (
                "file" if name in model.model_fields_set else "default"
            )
            yield EffectiveKey(section, key, _plain(name, value), origin)


def _plain(name: str, value: object) -> Plain:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, tuple):
        return [str(item) for item in value]
    if name.endswith("_rate") and (value is None or isinstance(value, int)):
        return format_rate(value)
    if value is None:
        return ""
    if isinstance(value, (Path, Address)):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return format_size(value) if name.endswith("_bytes") else value
    return _PASSWORD_IN_URL.sub(r"\1\2***", str(value))
