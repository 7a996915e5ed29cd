"""An ICE server's releases: what to fetch, when to switch, and how it stands.

The leaf says which releases this server has, from when to fetch them and when they start. A
release switches with one rename, once all its scripts are here and its start has come. Only
*withdrawn* takes one away: a release that is absent from the leaf stays as it is.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from archid.errors import ArchidError
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.store.bundles import BundleId
from archid.store.errors import DocumentMissing
from archid.store.library import Library
from archid.sync.fetch_progress import FetchState
from archid.sync.fetcher import Fetcher, Want
from archid.sync.own_leaf import OwnLeaf
from archid.sync.signal import either
from protocol.facts import Entry, ReleaseHeader
from protocol.ids import ManifestId, ReleaseId

log = get_logger(__name__)

LONGEST_NAP_S: Final = 60.0
RETRY_S: Final = 5.0


class DeliveryState(enum.Enum):
    """How far a release is on this server; the values appear in `status`."""

    PLANNED = "planned"
    FETCHING = "fetching"
    READY = "ready"
    ACTIVE = "active"
    ENDED = "ended"
    WITHDRAWN = "withdrawn"
    FAILED = "failed"


@dataclass(frozen=True)
class Delivery:
    """One release on this server. `activated_s` is when its present generation was switched to."""

    header: ReleaseHeader
    entries: tuple[Entry, ...]
    state: DeliveryState
    activated_s: int | None
    reason: str | None


class Deliveries:
    """Follows the leaf, tells the fetcher what is wanted, and switches releases."""

    def __init__(
        self,
        *,
        leaf: OwnLeaf,
        fetcher: Fetcher,
        library: Library,
        journal: Journal,
        events: EventHub,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._leaf = leaf
        self._fetcher = fetcher
        self._library = library
        self._journal = journal
        self._events = events
        self._clock = clock
        self._told_ready: set[tuple[ReleaseId, int]] = set()
        self._activated: dict[ReleaseId, tuple[int, int]] = {}
        self._failures: dict[ReleaseId, str] = {}

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            leaf_seen, placed_seen = self._leaf.changed.version, self._fetcher.placed.version
            self._fetcher.want(self._wants())
            await self._link_scripts()
            nap_s = LONGEST_NAP_S
            for header in self._headers():
                nap_s = min(nap_s, await self._advance(header))
            with trio.move_on_after(nap_s):
                await either((self._leaf.changed, leaf_seen), (self._fetcher.placed, placed_seen))

    def deliveries(self) -> list[Delivery]:
        """Every release that this server is told of, the next to start first."""
        found = []
        for header in sorted(self._headers(), key=lambda one: (one.start_s, one.name)):
            state, reason = self._state(header)
            generation, when_s = self._activated.get(header.release, (0, 0))
            found.append(
                Delivery(
                    header,
                    self._entries(header),
                    state,
                    when_s if generation == header.generation else None,
                    reason,
                )
            )
        return found

    def releases_of(self, manifest: ManifestId) -> list[str]:
        """The names of the releases that have this version."""
        return [
            header.name
            for header in self._headers()
            if any(entry.manifest == manifest for entry in self._entries(header))
        ]

    def manifests(self) -> list[tuple[ManifestId, str]]:
        """Every version that this server is told of, with its kind."""
        leaf = self._leaf.leaf
        found = {} if leaf is None else {e.manifest: e.kind for _, e in leaf.entries}
        return sorted(found.items())

    # What the leaf says

    def _headers(self) -> tuple[ReleaseHeader, ...]:
        leaf = self._leaf.leaf
        return leaf.releases if leaf is not None else ()

    def _entries(self, header: ReleaseHeader) -> tuple[Entry, ...]:
        leaf = self._leaf.leaf
        if leaf is None:
            return ()
        return tuple(
            entry
            for entry in leaf.entries_of(header.release)
            if entry.generation == header.generation
        )

    def _wants(self) -> list[Want]:
        now = self._clock()
        wants: dict[ManifestId, Want] = {}
        for header in self._headers():
            if header.withdrawn or now >= header.end_s:
                continue
            for entry in self._entries(header):
                want = Want(entry.manifest, header.start_s, header.prefetch_s)
                before = wants.get(entry.manifest, want)
                wants[entry.manifest] = Want(
                    entry.manifest,
                    min(before.urgency, want.urgency),
                    min(before.not_before_s, want.not_before_s),
                )
        return list(wants.values())

    # Switching

    async def _advance(self, header: ReleaseHeader) -> float:
        """Bring one release as far as it can be now; returns after how long to look again."""
        try:
            if header.withdrawn:
                await self._withdraw(header)
                return LONGEST_NAP_S
            entries = self._entries(header)
            if not entries or not all(self._library.holds(e.manifest) for e in entries):
                return LONGEST_NAP_S
            self._tell_ready(header)
            due_s = header.start_s - self._clock()
            if due_s > 0:
                return min(due_s, LONGEST_NAP_S)
            await self._activate(header, entries)
        except ArchidError as error:
            if self._failures.get(header.release) != error.sentence:
                log.error("release_not_switched", release=header.name, why=error.sentence)
            self._failures[header.release] = error.sentence
            return RETRY_S
        self._failures.pop(header.release, None)
        return LONGEST_NAP_S

    def _tell_ready(self, header: ReleaseHeader) -> None:
        if (header.release, header.generation) not in self._told_ready:
            self._told_ready.add((header.release, header.generation))
            log.info("release_ready", release=header.name, generation=header.generation)
            self._publish("release.ready", header)

    async def _activate(self, header: ReleaseHeader, entries: tuple[Entry, ...]) -> None:
        trees = {entry.kind: entry.manifest for entry in entries}
        bundles = self._library.bundles
        bundle = BundleId.of_release(header.release, header.generation, trees)
        if await trio.to_thread.run_sync(bundles.active, header.name) == bundle:
            self._activated.setdefault(header.release, (header.generation, int(self._clock())))
            return
        await trio.to_thread.run_sync(bundles.make, bundle, trees)
        await trio.to_thread.run_sync(bundles.activate, header.name, bundle)
        self._activated[header.release] = (header.generation, int(self._clock()))
        log.info("release_activated", release=header.name, generation=header.generation)
        await self._record("release_activated", header)
        self._publish("release.activated", header)

    async def _withdraw(self, header: ReleaseHeader) -> None:
        bundles = self._library.bundles
        if await trio.to_thread.run_sync(bundles.active, header.name) is None:
            return
        if any(
            other.name == header.name and not other.withdrawn and other.release != header.release
            for other in self._headers()
        ):
            return  # a newer release of the same name has its place
        await trio.to_thread.run_sync(bundles.deactivate, header.name)
        self._activated.pop(header.release, None)
        log.info("release_withdrawn", release=header.name, generation=header.generation)
        await self._record("release_withdrawn", header)
        self._publish("release.withdrawn", header)

    async def _link_scripts(self) -> None:
        """Let ``scripts/<name>`` point to the latest version here, as an operator expects."""
        for manifest, _ in self.manifests():
            if self._library.holds(manifest):
                try:
                    root = await trio.to_thread.run_sync(self._library.root, manifest)
                    await trio.to_thread.run_sync(self._library.link_script, root)
                except (ArchidError, DocumentMissing) as error:
                    log.error("script_not_linked", manifest=manifest.short, why=str(error))

    async def _record(self, kind: str, header: ReleaseHeader) -> None:
        fields: dict[str, str | int | bool | bytes | None] = {
            "release": header.release.hex(),
            "name": header.name,
            "generation": header.generation,
        }
        await trio.to_thread.run_sync(self._journal.append, kind, fields)

    def _publish(self, event: str, header: ReleaseHeader) -> None:
        self._events.publish(
            event,
            release=header.release.hex(),
            name=header.name,
            generation=header.generation,
        )

    # How it stands

    def _state(self, header: ReleaseHeader) -> tuple[DeliveryState, str | None]:
        now = self._clock()
        if header.withdrawn:
            return DeliveryState.WITHDRAWN, None
        if failure := self._failures.get(header.release):
            return DeliveryState.FAILED, failure
        generation, _ = self._activated.get(header.release, (0, 0))
        if generation == header.generation:
            return (DeliveryState.ENDED if now >= header.end_s else DeliveryState.ACTIVE), None
        if now >= header.end_s:
            return DeliveryState.ENDED, None
        entries = self._entries(header)
        progress = [self._fetcher.progress.get(entry.manifest) for entry in entries]
        if entries and all(self._library.holds(entry.manifest) for entry in entries):
            return DeliveryState.READY, None
        for one in progress:
            if one is not None and one.state is FetchState.FAILED:
                return DeliveryState.FAILED, one.reason
        if now < header.prefetch_s:
            return DeliveryState.PLANNED, None
        reasons = [one.reason for one in progress if one is not None and one.reason]
        return DeliveryState.FETCHING, reasons[0] if reasons else None
