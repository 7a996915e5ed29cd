"""A version in a few words."""

from __future__ import annotations

from typing import Final, NamedTuple


class About(NamedTuple):
    """What a manifest says of itself; a whole root may name tens of thousands of pieces."""

    name: str
    kind: str
    version: int
    files: int
    size_bytes: int

    @property
    def words(self) -> str:
        """As people speak of it."""
        return f"{self.name} version {self.version}" if self.name else "a script"


UNKNOWN: Final = About(name="", kind="", version=0, files=0, size_bytes=0)
