"""A part of a folder that was announced before it was brought: what is known, what is wanted.

Entries are put into the manifest in path order, but a file that has to be read comes later than
one that is known from the previous version. This keeps the part together until it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from archid.store.intake import TakenFile


class AnnouncedFile(NamedTuple):
    """A file as whoever publishes sees it; `facts` as in `archid.source_listing`."""

    path: str
    executable: bool
    size_bytes: int
    facts: bytes


class AnnouncedFolder(NamedTuple):
    path: str


class AnnouncedLink(NamedTuple):
    path: str
    target: str


Announced = AnnouncedFile | AnnouncedFolder | AnnouncedLink
Settled = AnnouncedFolder | AnnouncedLink | TakenFile


class Announcement:
    """Entries in path order, with a gap for every file that is still to come."""

    def __init__(self) -> None:
        self._settled: list[Settled | None] = []
        self._gaps: list[tuple[int, str]] = []
        self._filled = 0

    def add(self, entry: Settled) -> None:
        self._settled.append(entry)

    def want(self, path: str) -> None:
        """Leave a gap for a file."""
        self._gaps.append((len(self._settled), path))
        self._settled.append(None)

    @property
    def wanted(self) -> list[int]:
        """Where in the announcement files are still missing, in order."""
        return [at for at, _ in self._gaps[self._filled :]]

    def next_paths(self, count: int) -> list[str]:
        """The paths of the next files that are to come, `count` at most."""
        return [path for _, path in self._gaps[self._filled : self._filled + count]]

    def fill(self, file: TakenFile) -> None:
        """The next missing file; it has the path that was announced."""
        at, _ = self._gaps[self._filled]
        self._settled[at] = file
        self._filled += 1

    def entries(self) -> Iterator[Settled]:
        """Everything in path order, once nothing is missing."""
        for entry in self._settled:
            if entry is None:
                raise ValueError("a part of a folder was asked for before all its files came")
            yield entry
