"""Removes what nothing needs any more: now and then by itself, and when a person asks.

What may go is found by `archid.store.collecting`, by what the role needs under a fresh head. A
tree goes under the lock of whoever switches releases, and is judged again there, so that nothing
is switched to while it goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from archid.errors import ArchidError
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.store.absences import Absence, Absences
from archid.store.collecting import Found, Garbage, Needs, Survey, is_free, remove
from archid.store.library import Library
from archid.sync.needs import Ask, NotCertain
from archid.sync.pins import Pins
from archid.sync.recording import record
from archid.sync.signal import Signal, either
from protocol.ids import ManifestId

log = get_logger(__name__)

COLLECT_S: Final = 3600.0
"""Between two rounds; the first one comes that long after the start."""


@dataclass(frozen=True)
class Collected:
    """What a round came to: what went (or would go), what waits, and what could not be removed."""

    gone: tuple[Garbage, ...]
    waiting: tuple[Garbage, ...]
    failed: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.gone)


class Collector:
    """The one place from which things are removed; `changed` are signals that needs follow."""

    def __init__(
        self,
        *,
        library: Library,
        absences: Absences,
        pins: Pins,
        needs: Ask,
        changed: Sequence[Signal],
        keep_s: Callable[[], float],
        journal: Journal,
        events: EventHub,
        switching: trio.Lock | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.pins = pins
        self._library = library
        self._absences = absences
        self._needs = needs
        self._changed = changed
        self._keep_s = keep_s
        self._journal = journal
        self._events = events
        self._switching = switching or trio.Lock()
        self._clock = clock
        self._round = trio.Lock()

    async def run(self) -> None:
        """Work until cancelled."""
        await self._load_pins()
        due = trio.current_time() + COLLECT_S
        told = ""
        while True:
            seen = [(signal, signal.version) for signal in self._changed]
            try:
                if trio.current_time() >= due:
                    due = trio.current_time() + COLLECT_S
                    await self.collect()
                else:
                    await trio.to_thread.run_sync(self._library.ballast.load)
                    await self._observe(self._needs())
            except NotCertain as error:
                if error.message != told:
                    log.info("nothing_collected", why=error.message)
                told = error.message
            except ArchidError as error:
                log.error("collecting_failed", why=error.sentence)
            with trio.move_on_at(due):
                await either(*seen)

    async def survey(self, *, keep_previous: bool = True) -> Found:
        """What could be removed now, without removing it. Raises NotCertain, StorageError."""
        needs = self._needs()
        if not self.pins.is_known:
            await trio.to_thread.run_sync(self.pins.load)
        absences = await self._observe(needs)
        look = Survey(
            self._library,
            needs,
            absences=absences,
            pinned=self.pins.manifests(),
            keep_s=self._keep_s(),
            now=self._clock(),
            keep_previous=keep_previous,
        )
        return await trio.to_thread.run_sync(look.found)

    async def collect(
        self, *, enough: Callable[[], bool] = lambda: False, keep_previous: bool = True
    ) -> Collected:
        """Remove what can be removed, until there is `enough`. Raises NotCertain, StorageError."""
        async with self._round:
            found = await self.survey(keep_previous=keep_previous)
            gone: list[Garbage] = []
            failed: list[str] = []
            stayed = False
            for one in found.going:
                if enough():
                    break
                if stayed and one.kind in ("manifest", "pieces"):
                    continue  # what stayed after all may need them: the next round looks again
                try:
                    if await self._remove(one, found.at):
                        gone.append(one)
                    else:
                        stayed = True
                except ArchidError as error:
                    log.error("not_removed", kind=one.kind, id=one.id, why=error.sentence)
                    failed.append(error.sentence)
                    stayed = True
            done = Collected(tuple(gone), found.waiting, tuple(failed))
            if gone:
                await self._tell(done)
            return done

    async def make_room(self, manifest: ManifestId) -> None:
        """Remove what can be removed until what waits for space fits; previous bundles last."""

        def enough() -> bool:
            return self._library.reserve.fits(manifest)

        try:
            for keep_previous in (True, False):
                if not enough():
                    await self.collect(enough=enough, keep_previous=keep_previous)
        except NotCertain as error:
            log.info("no_room_made", why=error.message)

    async def _observe(self, needs: Needs) -> dict[ManifestId, Absence]:
        return await trio.to_thread.run_sync(self._observe_now, needs)

    def _observe_now(self, needs: Needs) -> dict[ManifestId, Absence]:
        here = {*self._library.trees.manifests(), *self._library.staged()}
        return self._absences.observe(here, needs.granted, needs.issued_s)

    async def _remove(self, one: Garbage, at: float) -> bool:
        if one.kind != "tree":
            return await trio.to_thread.run_sync(remove, self._library, one, at)
        manifest = ManifestId.from_hex(one.id)
        async with self._switching:
            # Since the survey it may have been granted, pinned, or put into a bundle.
            if manifest in self._needs().granted or manifest in self.pins.manifests():
                return False
            if not await trio.to_thread.run_sync(self._is_loose, manifest):
                return False
            await trio.to_thread.run_sync(self._library.retire, manifest)
        await trio.to_thread.run_sync(self._library.bury, manifest)
        return True

    def _is_loose(self, manifest: ManifestId) -> bool:
        library = self._library
        used = (bundle.trees.values() for bundle in library.bundles.bundles())
        return not any(manifest in trees for trees in used) and is_free(library.tree(manifest))

    async def _tell(self, done: Collected) -> None:
        kinds = {kind: sum(one.kind == kind for one in done.gone) for kind in ("bundle", "tree")}
        log.info("collected", size_bytes=done.size_bytes, bundles=kinds["bundle"],
                 trees=kinds["tree"])  # fmt: skip
        self._events.publish("gc.finished", size_bytes=done.size_bytes, **kinds)
        for one in done.gone:
            if one.kind == "tree":
                await record(self._journal, "tree_removed", manifest=one.id, name=one.name,
                             why=one.why)  # fmt: skip

    async def _load_pins(self) -> None:
        try:
            await trio.to_thread.run_sync(self.pins.load)
        except ArchidError as error:
            log.error("pins_unknown", why=error.sentence)
