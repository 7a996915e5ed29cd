"""What describes one request of the control socket."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from archid.control.shapes import TEXT, Schema, opened, text

ALL_ROLES: Final = ("central", "repo", "ice")


@dataclass(frozen=True)
class Method:
    """One request of the control socket."""

    name: str
    params: Schema
    result: Schema
    changes: bool = False
    takes_input: bool = False
    roles: tuple[str, ...] = ALL_ROLES
    events: Schema = field(default_factory=lambda: opened(event=TEXT))


NAME: Final = text(max_length=200, min_length=1)
PLACE: Final = text(max_length=200)
