"""What this server is told: the releases of its leaf, as far as they can be fetched and played."""

from __future__ import annotations

from archid.errors import NotFound
from archid.store.library import Library
from archid.sync.own_leaf import OwnLeaf
from protocol.facts import Entry, ReleaseHeader
from protocol.ids import ManifestId


class Granted:
    """The leaf, put into the words of deliveries. Reads only."""

    def __init__(self, leaf: OwnLeaf, library: Library) -> None:
        self._leaf = leaf
        self._library = library

    def headers(self) -> tuple[ReleaseHeader, ...]:
        """Every release that the leaf names, withdrawn ones included."""
        leaf = self._leaf.leaf
        return leaf.releases if leaf is not None else ()

    def entries(self, header: ReleaseHeader) -> tuple[Entry, ...]:
        """The scripts of a release's present generation."""
        leaf = self._leaf.leaf
        if leaf is None:
            return ()
        return tuple(
            entry
            for entry in leaf.entries_of(header.release)
            if entry.generation == header.generation
        )

    def manifests(self) -> list[tuple[ManifestId, str]]:
        """Every version that this server is told of, with its kind."""
        leaf = self._leaf.leaf
        found = {} if leaf is None else {e.manifest: e.kind for _, e in leaf.entries}
        return sorted(found.items())

    def is_here(self, header: ReleaseHeader) -> bool:
        """Whether every script of the release's present generation is."""
        entries = self.entries(header)
        return bool(entries) and all(self._library.holds(one.manifest) for one in entries)

    def missing(self, header: ReleaseHeader) -> list[Entry]:
        """The scripts of its present generation that are not here yet."""
        return [one for one in self.entries(header) if not self._library.holds(one.manifest)]

    def named(self, name: str) -> list[ReleaseHeader]:
        """The releases of this name or id; the one that starts last is the last."""
        return sorted(
            (one for one in self.headers() if name in (one.name, one.release.hex())),
            key=lambda one: (not one.withdrawn, one.start_s, one.release),
        )

    def unknown(self, name: str) -> NotFound:
        """What to say when a person names a release that is not here."""
        return NotFound(
            f"This server is told of no release '{name}'",
            remedy="archid status lists the releases",
            code="unknown_release",
        )
