"""Has the trees of this node read, and tells people what is wrong with them and that it is over.

The damage itself is written down where it is found, and the fetcher brings what lacks. This has
the fetcher look again, raises the alarm, and says in the journal and as an event how it ended. In
`status` a damaged tree is an alarm for as long as it is one.
"""

from __future__ import annotations

from typing import Final

import trio

from archid.config import StorageSettings
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.store.about import UNKNOWN
from archid.store.damage import TreeDamage
from archid.store.library import Library
from archid.store.scrub import Scrub, ScrubReport
from archid.store.upkeep import Upkeep
from archid.sync.fetcher import Fetcher
from archid.sync.recording import record
from archid.sync.signal import Signal
from protocol.ids import ManifestId

log = get_logger(__name__)

REPAIRED: Final = "repaired"
"""The name under which the number of repaired trees is kept."""


class Healing:
    """Follows the damage book of one node."""

    def __init__(
        self,
        *,
        library: Library,
        fetcher: Fetcher,
        journal: Journal,
        events: EventHub,
        upkeep: Upkeep,
        storage: StorageSettings,
    ) -> None:
        self._library = library
        self._fetcher = fetcher
        self._journal = journal
        self._events = events
        self._upkeep = upkeep
        self._changed = Signal()
        self._known: dict[ManifestId, str] = {}
        self.repaired = upkeep.number(REPAIRED) or 0
        """Trees that were damaged and are whole again, since this state folder was made."""
        self.scrub = Scrub(
            library,
            upkeep,
            bytes_per_s=storage.scrub_bytes_per_s,
            every_s=storage.scrub_every.total_seconds(),
            finished=self._scrubbed,
        )

    def take_up(self, storage: StorageSettings) -> None:
        """What a changed configuration says."""
        self.scrub.take_up(
            bytes_per_s=storage.scrub_bytes_per_s, every_s=storage.scrub_every.total_seconds()
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        token = trio.lowlevel.current_trio_token()
        self._library.damage.on_change = lambda: token.run_sync_soon(self._changed.fire)
        try:
            await self._follow()
        finally:
            self._library.damage.on_change = lambda: None

    async def _follow(self) -> None:
        seen = -1
        while True:
            seen = await self._changed.wait(seen)
            damaged = {one.manifest: one for one in self._library.damage.all()}
            for manifest in self._known.keys() - damaged.keys():
                await self._over(manifest, self._known.pop(manifest))
            for manifest in damaged.keys() - self._known.keys():
                await self._found(damaged[manifest])
            if damaged:
                self._fetcher.look_again()

    async def _found(self, damage: TreeDamage) -> None:
        manifest = damage.manifest
        about = await trio.to_thread.run_sync(self._library.about, manifest)
        self._known[manifest] = name = (about or UNKNOWN).words
        log.error("tree_damaged", manifest=manifest.short, script=name, chunks=len(damage.chunks))
        self._events.publish(
            "alarm",
            code="tree_damaged",
            sentence=f"{name} is damaged on this disk; what is damaged is not given to others"
            " and is fetched again",
            manifest=manifest.hex(),
        )
        await record(self._journal, "tree_damaged", manifest=manifest.hex(), script=name)

    async def _over(self, manifest: ManifestId, name: str) -> None:
        if not self._library.holds(manifest):
            return  # removed, with whatever was wrong with it
        self.repaired += 1
        await trio.to_thread.run_sync(self._upkeep.count, REPAIRED, 1)
        log.info("tree_repaired", manifest=manifest.short, script=name)
        self._events.publish("tree.repaired", manifest=manifest.hex(), script=name)
        await record(self._journal, "tree_repaired", manifest=manifest.hex(), script=name)

    async def _scrubbed(self, report: ScrubReport) -> None:
        self._events.publish(
            "scrub.finished", checked_bytes=report.checked_bytes, damaged=report.damaged
        )
        await record(
            self._journal,
            "scrub_finished",
            checked_bytes=report.checked_bytes,
            damaged=report.damaged,
        )
