"""Switches releases: at their time, back by hand, or ahead of it; and takes withdrawn ones away.

A release switches with one rename, once all its scripts are here and its start has come. When two
have the same name, the one that starts later has it. A rollback by hand is recorded before the
link moves, and holds until a newer generation of that release is switched to. One switch runs at
a time; whoever removes bundles and trees takes the same lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from archid.errors import ArchidError, Conflict
from archid.events import EventHub
from archid.log import get_logger
from archid.store.bundles import BundleId
from archid.store.library import Library
from archid.sync.activations import Activations, Hold
from archid.sync.granted import Granted
from protocol.facts import ReleaseHeader
from protocol.ids import ReleaseId

log = get_logger(__name__)


@dataclass(frozen=True)
class Switcher:
    """What moves ``releases/<name>``; `on_switched` is told before anybody else."""

    granted: Granted
    activations: Activations
    library: Library
    events: EventHub
    clock: Callable[[], float] = time.time
    on_switched: Callable[[ReleaseId], None] = lambda _: None
    lock: trio.Lock = field(default_factory=trio.Lock)

    # By itself

    async def switch(self, header: ReleaseHeader) -> None:
        """Switch to a release that is here and has begun, unless something speaks against it.

        Raises ArchidError; then what was switched to before stays.
        """
        async with self.lock:
            if self._gives_way(header):
                return
            hold = self.activations.hold(header.release)
            if hold is not None and hold.concerns(header):
                await self._keep(hold)
            else:
                await self._activate(header)

    async def withdraw(self, header: ReleaseHeader) -> None:
        """Take a withdrawn release away, if the name is its own. Raises ArchidError."""
        bundles = self.library.bundles
        async with self.lock:
            active = await trio.to_thread.run_sync(bundles.active, header.name)
            owner = self.activations.owner(header.name)
            if active is None:
                gone = await trio.to_thread.run_sync(bundles.is_gone, header.name)
                if gone and owner == header.release:  # by somebody, or a crash came in between
                    await self._taken_away(header)
                return
            if owner is None:
                # The journal does not say whose it is: another release of this name may own it.
                others = (o for o in self.granted.headers() if o.release != header.release)
                owned = all(other.name != header.name or other.withdrawn for other in others)
            else:
                owned = owner == header.release
            if not owned:
                return
            await trio.to_thread.run_sync(bundles.deactivate, header.name)
            await self._taken_away(header)

    # By hand

    async def roll_back(self, name: str, reason: str) -> Hold:
        """Switch to what was there before, and hold it; see the module.

        Raises NotFound for a name that is not known here, Conflict when there is nothing to roll
        back to, StorageError; then nothing has changed.
        """
        async with self.lock:
            headers = self.granted.named(name)
            if headers:
                name = headers[-1].name
            bundles = self.library.bundles
            current = await trio.to_thread.run_sync(bundles.active, name)
            if current is None and not headers:
                raise self.granted.unknown(name)
            owner = self.activations.owner(name)
            activation = None if owner is None else self.activations.of(owner)
            if current is None or owner is None or activation is None:
                raise Conflict(
                    f"The release {name} has not been switched to here, so there is nothing to"
                    " roll back",
                    remedy=f"archid activate {name} switches to what is granted",
                    code="not_active",
                )
            held = self.activations.hold(owner)
            if held is not None and held.bundle == current:
                raise Conflict(
                    f"The release {name} is rolled back already, from generation {held.generation}",
                    remedy=f"archid activate {name} ends that",
                    code="rolled_back",
                )
            target = await trio.to_thread.run_sync(bundles.previous, name)
            if target is None or target == current:
                raise Conflict(
                    f"There is nothing to roll {name} back to: no earlier bundle of it is here",
                    remedy="Publish what is to be played, and apply the release again",
                    code="nothing_before",
                )
            now_s = int(self.clock())
            hold = Hold(owner, name, activation.generation, target, now_s, reason)
            await trio.to_thread.run_sync(bundles.require_whole, target)
            await trio.to_thread.run_sync(self.activations.hold_back, hold)
            spend = self.library.ballast.spend
            try:
                await trio.to_thread.run_sync(spend, partial(bundles.activate, name, target))
            except ArchidError:
                await trio.to_thread.run_sync(self.activations.let_go, hold)
                raise
            self._tell_held(hold)
            return hold

    async def activate(self, name: str, *, early: bool) -> tuple[ReleaseHeader, bool]:
        """Switch to what is granted, at once; returns it, and whether anything changed.

        A rollback ends with it. Raises NotFound, StorageError, and Conflict when it was withdrawn
        or has ended, when not everything is here, or (code before_start) when it has not begun
        and `early` is not given.
        """
        async with self.lock:
            header = self._to_activate(name, early=early)
            hold = self.activations.hold(header.release)
            if hold is not None:
                await trio.to_thread.run_sync(self.activations.let_go, hold)
            return header, await self._activate(header)

    def _to_activate(self, name: str, *, early: bool) -> ReleaseHeader:
        headers = self.granted.named(name)
        if not headers:
            raise self.granted.unknown(name)
        now = self.clock()
        running = [one for one in headers if not one.withdrawn and now < one.end_s]
        begun = [one for one in running if one.start_s <= now]
        if not running:
            how = "was withdrawn" if headers[-1].withdrawn else "has ended"
            raise Conflict(
                f"The release {headers[-1].name} {how}, so it is not switched to any more",
                remedy="Apply it again on central",
                code="not_granted",
            )
        # Of several releases of one name the one that has it by its dates, or the next one.
        header = begun[-1] if begun else running[0]
        if missing := self.granted.missing(header):
            kinds = ", ".join(sorted(entry.kind for entry in missing))
            raise Conflict(
                f"Not everything of {header.name} generation {header.generation} is here yet:"
                f" {kinds} of {len(self.granted.entries(header))} scripts missing",
                remedy=f"archid fetch {header.name} fetches it now; archid status shows how far"
                " it is",
                code="not_here",
            )
        if now < header.start_s and not early and not self._was_active(header):
            moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(header.start_s))
            raise Conflict(
                f"Generation {header.generation} of {header.name} starts at {moment}; what plays"
                " now would be replaced at once",
                remedy="Say --yes if that is meant",
                code="before_start",
            )
        return header

    # Inside, with the lock held

    async def _activate(self, header: ReleaseHeader) -> bool:
        if not self.granted.is_here(header):
            return False  # what is granted changed while the lock was awaited; it is looked at anew
        trees = {entry.kind: entry.manifest for entry in self.granted.entries(header)}
        bundles = self.library.bundles
        bundle = BundleId.of_release(header.release, header.generation, trees)
        if await trio.to_thread.run_sync(bundles.active, header.name) == bundle:
            if not self._was_active(header):
                self.activations.seen(header)
            return False
        if self.clock() >= header.end_s:
            return False  # it came too late, and is not switched to any more
        await trio.to_thread.run_sync(bundles.make, bundle, trees)
        await trio.to_thread.run_sync(bundles.activate, header.name, bundle)
        self.on_switched(header.release)
        log.info("release_activated", release=header.name, generation=header.generation)
        self._publish("release.activated", header)
        await self.activations.activated(header)
        return True

    async def _taken_away(self, header: ReleaseHeader) -> None:
        self.on_switched(header.release)
        log.info("release_withdrawn", release=header.name, generation=header.generation)
        self._publish("release.withdrawn", header)
        await self.activations.withdrawn(header)

    async def _keep(self, hold: Hold) -> None:
        """Let the link lead to what was rolled back to, whatever happened meanwhile."""
        bundles = self.library.bundles
        if await trio.to_thread.run_sync(bundles.active, hold.name) != hold.bundle:
            await trio.to_thread.run_sync(bundles.activate, hold.name, hold.bundle)
            self._tell_held(hold)

    def _was_active(self, header: ReleaseHeader) -> bool:
        """Whether this generation was switched to and has the name since."""
        done = self.activations.of(header.release)
        return done is not None and done.generation == header.generation

    def _gives_way(self, header: ReleaseHeader) -> bool:
        """Whether another release has this one's name by now."""
        now = self.clock()
        return any(
            other.name == header.name
            and not other.withdrawn
            and (other.start_s, other.release) > (header.start_s, header.release)
            # Ahead of its start it has the name only if a person gave it.
            and (other.start_s <= now or self._was_active(other))
            and now < other.end_s
            and self.granted.is_here(other)
            for other in self.granted.headers()
        )

    def _tell_held(self, hold: Hold) -> None:
        self.on_switched(hold.release)
        log.info("release_rolled_back", release=hold.name, generation=hold.generation,
                 bundle=hold.bundle.short)  # fmt: skip
        self.events.publish(
            "release.rolled_back",
            release=hold.release.hex(),
            name=hold.name,
            generation=hold.generation,
        )

    def _publish(self, event: str, header: ReleaseHeader) -> None:
        self.events.publish(
            event,
            release=header.release.hex(),
            name=header.name,
            generation=header.generation,
        )
