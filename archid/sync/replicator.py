"""A REPO holds every published script: the whole Catalogue is wanted, the newest first."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from archid.errors import ArchidError, NotFound
from archid.log import get_logger
from archid.store.library import Library
from archid.sync.fetcher import Fetcher, Want
from archid.sync.listings import Listings
from archid.sync.signal import either
from protocol.ids import ManifestId
from protocol.paged import CatalogueRow

log = get_logger(__name__)


class Replicator:
    """Tells the fetcher to bring what the Catalogue lists and is not here."""

    def __init__(self, *, listings: Listings, fetcher: Fetcher, library: Library) -> None:
        self._listings = listings
        self._fetcher = fetcher
        self._library = library
        self._linked: dict[str, ManifestId] = {}

    async def run(self) -> None:
        """Follow the listings until cancelled."""
        while True:
            listed, placed = self._listings.changed.version, self._fetcher.placed.version
            rows = self._listings.catalogue
            # Later versions are wanted sooner; among scripts, the order of the Catalogue.
            self._fetcher.want([Want(row.manifest, urgency=-row.version) for row in rows])
            await trio.to_thread.run_sync(self._link_scripts, rows)
            await either((self._listings.changed, listed), (self._fetcher.placed, placed))

    def fetch_now(self, name: str) -> list[ManifestId]:
        """Fetch a script's versions, or one by its id, before all others; returns them.

        Raises NotFound when the Catalogue does not list it.
        """
        found = [
            row.manifest
            for row in self._listings.catalogue
            if name in (row.name, row.manifest.hex())
        ]
        if not found:
            raise NotFound(
                f"No script or version '{name}' is published, as far as this node knows",
                remedy="archid scripts lists what is",
                code="unknown_script",
            )
        self._fetcher.hurry(found)
        return found

    def _link_scripts(self, rows: Sequence[CatalogueRow]) -> None:
        """Let each script's name lead to the latest version of it that is here; blocks."""
        newest = {
            row.name: row.manifest
            for row in sorted(rows, key=lambda row: row.version)
            if self._library.holds(row.manifest)
        }
        for name, manifest in newest.items():
            if self._linked.get(name) == manifest:
                continue
            try:
                self._library.link_script(self._library.root(manifest))
                self._linked[name] = manifest
            except ArchidError as error:
                log.error("script_not_linked", manifest=manifest.short, why=error.sentence)
