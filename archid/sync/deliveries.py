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

from archid.errors import ArchidError, Conflict, NotFound
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.store.library import Library
from archid.sync.activations import Activations, Hold
from archid.sync.fetch_progress import FetchState
from archid.sync.fetcher import Fetcher, Want
from archid.sync.granted import Granted
from archid.sync.own_leaf import OwnLeaf
from archid.sync.signal import either
from archid.sync.switching import Switcher
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
    ROLLED_BACK = "rolled_back"


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
        self.granted = Granted(leaf, library)
        self._activations = Activations(journal, clock=clock, insist=library.ballast.spend)
        self._told_ready: set[tuple[ReleaseId, int]] = set()
        self._failures: dict[tuple[ReleaseId, int], str] = {}
        """Of a generation."""
        self.switcher = Switcher(
            self.granted,
            self._activations,
            library,
            events,
            clock,
            on_switched=self._forget_failure,
        )
        self._linked: set[ManifestId] = set()

    async def load(self) -> None:
        """Read what was switched to and what is held; before anybody is told how it stands."""
        if not self._activations.loaded:
            await self._activations.load()

    async def run(self) -> None:
        """Work until cancelled."""
        await self.load()
        self._fetcher.want(self._wants())
        # What was begun goes on, though its date to be fetched may not have come.
        self._fetcher.go_on(await trio.to_thread.run_sync(self._library.staged))
        while True:
            leaf_seen, placed_seen = self._leaf.changed.version, self._fetcher.placed.version
            headers = self.granted.headers()
            self._forget_gone()
            self._fetcher.want(self._wants())
            await trio.to_thread.run_sync(self._link_scripts, self.granted.manifests())
            nap_s = LONGEST_NAP_S
            for header in headers:
                nap_s = min(nap_s, await self._advance(header))
            with trio.move_on_after(nap_s):
                await either((self._leaf.changed, leaf_seen), (self._fetcher.placed, placed_seen))

    def deliveries(self) -> list[Delivery]:
        """Every release that this server is told of, the next to start first."""
        found = []
        for header in sorted(self.granted.headers(), key=lambda one: (one.start_s, one.name)):
            state, reason = self._state(header)
            done = self._activations.of(header.release)
            found.append(
                Delivery(
                    header,
                    self.granted.entries(header),
                    state,
                    done.at_s if done and done.generation == header.generation else None,
                    reason,
                )
            )
        return found

    def fetch_now(self, name: str) -> list[ManifestId]:
        """Fetch a release, a script or a version before its date; returns what it consists of.

        Raises NotFound when this server is granted nothing of this name, Conflict for a release
        that was withdrawn or has ended.
        """
        found = self._named_versions(name)
        self._fetcher.want(self._wants())
        self._fetcher.hurry(found)
        return found

    def _named_versions(self, name: str) -> list[ManifestId]:
        headers = self.granted.named(name)
        running = [one for one in headers if not one.withdrawn and self._clock() < one.end_s]
        if headers and not running:
            raise Conflict(
                f"The release {headers[-1].name} was withdrawn or has ended, so nothing of it is"
                " fetched",
                remedy="Apply it again on central",
                code="not_granted",
            )
        entries = [entry.manifest for one in running for entry in self.granted.entries(one)]
        if not entries:
            wanted = (want.manifest for want in self._wants())
            entries = [one for one in wanted if name in (one.hex(), self._name_of(one))]
        if not entries:
            raise NotFound(
                f"This server is granted no release or script '{name}'",
                remedy="archid status lists the releases; a script's name is known once its"
                " fetching has begun",
                code="unknown_release",
            )
        return list(dict.fromkeys(entries))

    def _name_of(self, manifest: ManifestId) -> str:
        about = self._library.about(manifest)
        return about.name if about is not None else ""

    def releases_of(self, manifest: ManifestId) -> list[str]:
        """The names of the releases that have this version."""
        return [
            header.name
            for header in self.granted.headers()
            if any(entry.manifest == manifest for entry in self.granted.entries(header))
        ]

    def manifests(self) -> list[tuple[ManifestId, str]]:
        """Every version that this server is told of, with its kind."""
        return self.granted.manifests()

    def _wants(self) -> list[Want]:
        now = self._clock()
        wants: dict[ManifestId, Want] = {}
        for header in self.granted.headers():
            if header.withdrawn or now >= header.end_s:
                continue
            for entry in self.granted.entries(header):
                want = Want(entry.manifest, header.start_s, header.prefetch_s)
                before = wants.get(entry.manifest, want)
                wants[entry.manifest] = Want(
                    entry.manifest,
                    min(before.urgency, want.urgency),
                    min(before.not_before_s, want.not_before_s),
                )
        return list(wants.values())

    def _forget_gone(self) -> None:
        """What is remembered of releases that the leaf no longer names."""
        told = {(one.release, one.generation) for one in self.granted.headers()}
        self._told_ready &= told
        for one in self._failures.keys() - told:
            del self._failures[one]

    # Switching

    async def _advance(self, header: ReleaseHeader) -> float:
        """Bring one release as far as it can be now; returns after how long to look again."""
        due_s = LONGEST_NAP_S
        try:
            if header.withdrawn:
                await self.switcher.withdraw(header)
            elif self.granted.is_here(header):
                self._tell_ready(header)
                due_s = header.start_s - self._clock()
                if due_s <= 0:
                    await self.switcher.switch(header)
                    due_s = LONGEST_NAP_S
        except ArchidError as error:
            generation = header.release, header.generation
            if self._failures.get(generation) != error.sentence:
                what = "release_not_taken_away" if header.withdrawn else "release_not_switched"
                log.error(what, release=header.name, why=error.sentence)
            self._failures[generation] = error.sentence
            # A tree that somebody took away is fetched again.
            for entry in self.granted.entries(header):
                await trio.to_thread.run_sync(self._library.look_again, entry.manifest)
            return RETRY_S
        self._failures.pop((header.release, header.generation), None)
        return min(due_s, LONGEST_NAP_S)

    def _forget_failure(self, release: ReleaseId) -> None:
        for one in [one for one in self._failures if one[0] == release]:
            del self._failures[one]

    def _tell_ready(self, header: ReleaseHeader) -> None:
        if (header.release, header.generation) not in self._told_ready:
            self._told_ready.add((header.release, header.generation))
            log.info("release_ready", release=header.name, generation=header.generation)
            self._publish("release.ready", header)

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
        if failure := self._failures.get((header.release, header.generation)):
            return DeliveryState.FAILED, failure
        if header.withdrawn:
            # What is played until the link is gone must not be called withdrawn.
            plays = self._activations.owner(header.name) == header.release
            plays = plays or not self._activations.loaded
            return (DeliveryState.ACTIVE if plays else DeliveryState.WITHDRAWN), None
        hold = self._activations.hold(header.release)
        if hold is not None and hold.concerns(header) and now < header.end_s:
            return DeliveryState.ROLLED_BACK, held_because(hold)
        done = self._activations.of(header.release)
        if done is not None and done.generation == header.generation:
            return (DeliveryState.ENDED if now >= header.end_s else DeliveryState.ACTIVE), None
        if now >= header.end_s:
            return DeliveryState.ENDED, None
        entries = self.granted.entries(header)
        progress = [self._fetcher.progress.get(entry.manifest) for entry in entries]
        if self.granted.is_here(header):
            return DeliveryState.READY, None
        for one in progress:
            if one is not None and one.state is FetchState.FAILED:
                return DeliveryState.FAILED, one.reason
        under_way = any(
            one is not None and one.state in (FetchState.FETCHING, FetchState.PLACING)
            for one in progress
        )
        if now < header.prefetch_s and not under_way:
            return DeliveryState.PLANNED, None
        reasons = [one.reason for one in progress if one is not None and one.reason]
        return DeliveryState.FETCHING, reasons[0] if reasons else None


def held_because(hold: Hold) -> str:
    """Why a release is not switched to, for the person who looks at it."""
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(hold.at_s))
    why = f" ({hold.reason})" if hold.reason else ""
    return (
        f"by hand, from generation {hold.generation}, at {moment}{why}; it stays until a newer"
        f" generation is granted or archid activate {hold.name} ends it"
    )
