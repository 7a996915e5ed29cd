"""A REPO holds every published script: the whole Catalogue is wanted, the newest first."""

from __future__ import annotations

import trio

from archid.errors import ArchidError
from archid.log import get_logger
from archid.store.library import Library
from archid.sync.fetcher import Fetcher, Want
from archid.sync.listings import Listings
from archid.sync.signal import either

log = get_logger(__name__)


class Replicator:
    """Tells the fetcher to bring what the Catalogue lists and is not here."""

    def __init__(self, *, listings: Listings, fetcher: Fetcher, library: Library) -> None:
        self._listings = listings
        self._fetcher = fetcher
        self._library = library

    async def run(self) -> None:
        """Follow the listings until cancelled."""
        while True:
            listed, placed = self._listings.changed.version, self._fetcher.placed.version
            rows = self._listings.catalogue
            # Later versions are wanted sooner; among scripts, the order of the Catalogue.
            self._fetcher.want([Want(row.manifest, urgency=-row.version) for row in rows])
            await self._link_scripts()
            await either((self._listings.changed, listed), (self._fetcher.placed, placed))

    async def _link_scripts(self) -> None:
        newest = {row.name: row.manifest for row in self._listings.catalogue}
        for row in sorted(self._listings.catalogue, key=lambda row: row.version):
            if self._library.holds(row.manifest):
                newest[row.name] = row.manifest
        for manifest in newest.values():
            if self._library.holds(manifest):
                try:
                    root = await trio.to_thread.run_sync(self._library.root, manifest)
                    await trio.to_thread.run_sync(self._library.link_script, root)
                except ArchidError as error:
                    log.error("script_not_linked", manifest=manifest.short, why=error.sentence)
