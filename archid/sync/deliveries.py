"""An ICE server's releases: what to fetch, when to switch, and how it stands.

The leaf says which releases this server has, from when to fetch them and when they start. A
release switches with one rename, once all its scripts are here and its start has come. Only
*withdrawn* takes one away: a release that is absent from the leaf stays as it is. When two of
them have the same name, the one that starts later has it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from archid.errors import ArchidError
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.store.bundles import BundleId
from archid.store.library import Library
from archid.sync.activations import Activations
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
        self._events = events
        self._clock = clock
        self._activations = Activations(journal, clock=clock)
        self._told_ready: set[tuple[ReleaseId, int]] = set()
        self._failures: dict[ReleaseId, str] = {}
        self._linked: set[ManifestId] = set()

    async def run(self) -> None:
        """Work until cancelled."""
        await self._activations.load()
        while True:
            leaf_seen, placed_seen = self._leaf.changed.version, self._fetcher.placed.version
            self._forget_gone()
            self._fetcher.want(self._wants())
            await trio.to_thread.run_sync(self._link_scripts, self.manifests())
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
            done = self._activations.of(header.release)
            found.append(
                Delivery(
                    header,
                    self._entries(header),
                    state,
                    done.at_s if done and done.generation == header.generation else None,
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

    def _is_here(self, header: ReleaseHeader) -> bool:
        """Whether every script of the release's present generation is."""
        entries = self._entries(header)
        return bool(entries) and all(self._library.holds(one.manifest) for one in entries)

    def _forget_gone(self) -> None:
        """What is remembered of releases that the leaf no longer names."""
        told = {(one.release, one.generation) for one in self._headers()}
        self._told_ready &= told
        for release in self._failures.keys() - {release for release, _ in told}:
            del self._failures[release]

    # Switching

    async def _advance(self, header: ReleaseHeader) -> float:
        """Bring one release as far as it can be now; returns after how long to look again."""
        due_s = LONGEST_NAP_S
        try:
            if header.withdrawn:
                await self._withdraw(header)
            elif self._is_here(header):
                self._tell_ready(header)
                due_s = header.start_s - self._clock()
                if due_s <= 0:
                    await self._activate(header)
                    due_s = LONGEST_NAP_S
        except ArchidError as error:
            if self._failures.get(header.release) != error.sentence:
                log.error("release_not_switched", release=header.name, why=error.sentence)
            self._failures[header.release] = error.sentence
            # A tree that somebody took away is fetched again.
            for entry in self._entries(header):
                await trio.to_thread.run_sync(self._library.look_again, entry.manifest)
            return RETRY_S
        self._failures.pop(header.release, None)
        return min(due_s, LONGEST_NAP_S)

    def _tell_ready(self, header: ReleaseHeader) -> None:
        if (header.release, header.generation) not in self._told_ready:
            self._told_ready.add((header.release, header.generation))
            log.info("release_ready", release=header.name, generation=header.generation)
            self._publish("release.ready", header)

    async def _activate(self, header: ReleaseHeader) -> None:
        if self._gives_way(header):
            return
        trees = {entry.kind: entry.manifest for entry in self._entries(header)}
        bundles = self._library.bundles
        bundle = BundleId.of_release(header.release, header.generation, trees)
        if await trio.to_thread.run_sync(bundles.active, header.name) == bundle:
            done = self._activations.of(header.release)
            if done is None or done.generation != header.generation:
                self._activations.seen(header)
            return
        if self._clock() >= header.end_s:
            return  # it came too late, and is not switched to any more
        await trio.to_thread.run_sync(bundles.make, bundle, trees)
        await trio.to_thread.run_sync(bundles.activate, header.name, bundle)
        self._failures.pop(header.release, None)
        log.info("release_activated", release=header.name, generation=header.generation)
        self._publish("release.activated", header)
        await self._activations.activated(header)

    def _gives_way(self, header: ReleaseHeader) -> bool:
        """Whether another release has this one's name by now."""
        now = self._clock()
        return any(
            other.name == header.name
            and not other.withdrawn
            and (other.start_s, other.release) > (header.start_s, header.release)
            and other.start_s <= now < other.end_s
            and self._is_here(other)
            for other in self._headers()
        )

    async def _withdraw(self, header: ReleaseHeader) -> None:
        bundles = self._library.bundles
        if await trio.to_thread.run_sync(bundles.active, header.name) is None:
            return
        owner = self._activations.owner(header.name)
        if owner is None:
            # The journal does not say whose it is: another release of this name may own it.
            others = (one for one in self._headers() if one.release != header.release)
            owned = all(other.name != header.name or other.withdrawn for other in others)
        else:
            owned = owner == header.release
        if not owned:
            return
        await trio.to_thread.run_sync(bundles.deactivate, header.name)
        log.info("release_withdrawn", release=header.name, generation=header.generation)
        self._publish("release.withdrawn", header)
        await self._activations.withdrawn(header)

    def _link_scripts(self, manifests: Sequence[tuple[ManifestId, str]]) -> None:
        """Let ``scripts/<name>`` lead to the latest version here, as operators expect; blocks."""
        for manifest, _ in manifests:
            if manifest in self._linked or not self._library.holds(manifest):
                continue
            try:
                self._library.link_script(self._library.root(manifest))
                self._linked.add(manifest)
            except ArchidError as error:
                log.error("script_not_linked", manifest=manifest.short, why=error.sentence)
        self._linked.intersection_update(manifest for manifest, _ in manifests)

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
        done = self._activations.of(header.release)
        if done is not None and done.generation == header.generation:
            return (DeliveryState.ENDED if now >= header.end_s else DeliveryState.ACTIVE), None
        if now >= header.end_s:
            return DeliveryState.ENDED, None
        entries = self._entries(header)
        progress = [self._fetcher.progress.get(entry.manifest) for entry in entries]
        if self._is_here(header):
            return DeliveryState.READY, None
        for one in progress:
            if one is not None and one.state is FetchState.FAILED:
                return DeliveryState.FAILED, one.reason
        if now < header.prefetch_s:
            return DeliveryState.PLANNED, None
        reasons = [one.reason for one in progress if one is not None and one.reason]
        return DeliveryState.FETCHING, reasons[0] if reasons else None
