"""Fetches what is wanted, most urgent first, again and again until it is here.

What is wanted is said as a whole by whoever knows (`deliveries` on an ICE server, `replicator` on
a REPO); what is no longer wanted is stopped. A fetch that failed is tried again after a while;
what it had verified stays staged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from archid.errors import ArchidError
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.store.library import Library
from archid.sync.fetch_job import FetchJob
from archid.sync.fetch_progress import FetchProgress, FetchState
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal
from archid.sync.sources import Sources
from archid.sync.trust_keeper import TrustKeeper
from protocol.errors import ProtocolError
from protocol.ids import ManifestId, NodeId
from protocol.manifest import ManifestRoot

log = get_logger(__name__)

CONCURRENT_JOBS: Final = 2
FIRST_RETRY_S: Final = 2.0
LONGEST_RETRY_S: Final = 60.0


@dataclass(frozen=True)
class Want:
    """One manifest to have: not before `not_before_s` (UTC), lower `urgency` first."""

    manifest: ManifestId
    urgency: int
    not_before_s: int = 0


class Fetcher:
    """Runs fetch jobs for what is wanted; `placed` fires whenever a tree has come to stand."""

    def __init__(
        self,
        node: NodeId,
        *,
        keeper: TrustKeeper,
        directory: PeerDirectory,
        library: Library,
        journal: Journal,
        events: EventHub,
        proof_for: Callable[[ManifestId], bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.placed = Signal()
        self.progress: dict[ManifestId, FetchProgress] = {}
        self._node = node
        self._keeper = keeper
        self._directory = directory
        self._library = library
        self._journal = journal
        self._events = events
        self._proof_for = proof_for
        self._clock = clock
        self._wants: Mapping[ManifestId, Want] = {}
        self._wanted = Signal()
        self._running: dict[ManifestId, trio.CancelScope] = {}
        self._retry_at: dict[ManifestId, float] = {}
        self._retry_wait_s: dict[ManifestId, float] = {}

    def want(self, wants: Sequence[Want]) -> None:
        """Replace everything that is wanted; what is not in it any more is stopped."""
        self._wants = {one.manifest: one for one in wants}
        for manifest, scope in self._running.items():
            if manifest not in self._wants:
                scope.cancel()
        for manifest in self.progress.keys() - self._wants.keys():
            del self.progress[manifest]
        for manifest in self._wants:
            self.progress.setdefault(manifest, FetchProgress(manifest))
        self._wanted.fire()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                seen = self._wanted.version
                while len(self._running) < CONCURRENT_JOBS and (want := self._next()):
                    scope = self._running[want.manifest] = trio.CancelScope()
                    nursery.start_soon(self._run_job, want, scope)
                with trio.move_on_after(self._next_wake_s()):
                    await self._wanted.wait(seen)

    def _next(self) -> Want | None:
        due = [
            want
            for want in self._wants.values()
            if want.manifest not in self._running
            and self._due_in_s(want) <= 0
            and not self._is_held(want.manifest)
        ]
        return min(due, key=lambda want: (want.urgency, want.manifest), default=None)

    def _is_held(self, manifest: ManifestId) -> bool:
        if not self._library.holds(manifest):
            return False
        progress = self.progress[manifest]
        if progress.state is not FetchState.HELD:
            progress.state = FetchState.HELD
        return True

    def _due_in_s(self, want: Want) -> float:
        retry_s = self._retry_at.get(want.manifest, -math.inf) - trio.current_time()
        return max(want.not_before_s - self._clock(), retry_s)

    def _next_wake_s(self) -> float:
        if len(self._running) >= CONCURRENT_JOBS:
            return math.inf
        waits = [
            self._due_in_s(want)
            for want in self._wants.values()
            if want.manifest not in self._running and not self._is_held(want.manifest)
        ]
        # Wall clocks are set right now and then, so no wait on a date is a long one.
        return min([max(wait, 0.05) for wait in waits] + [60.0 if waits else math.inf])

    async def _run_job(self, want: Want, scope: trio.CancelScope) -> None:
        manifest = want.manifest
        progress = self.progress[manifest] = FetchProgress(manifest)
        sources = Sources(manifest, self._directory, lambda: self._proof_for(manifest))
        job = FetchJob(
            sources,
            progress,
            library=self._library,
            root=lambda: self._keeper.root,
            events=self._events,
            seed=self._node,
        )
        try:
            with scope:
                try:
                    root = await job.run()
                except* (ArchidError, ProtocolError) as group:
                    self._failed(progress, _first(group))
                else:
                    self._retry_wait_s.pop(manifest, None)
                    log.info(
                        "tree_placed",
                        manifest=manifest.short,
                        name=root.name,
                        version=root.version,
                        received_bytes=progress.received_bytes,
                    )
                    await self._record(root)
                    self._events.publish(
                        "tree.placed",
                        manifest=manifest.hex(),
                        path=str(self._library.tree(manifest)),
                    )
                    self._events.publish(
                        "fetch.finished",
                        manifest=manifest.hex(),
                        received_bytes=progress.received_bytes,
                    )
                    self.placed.fire()
        finally:
            del self._running[manifest]
            self._wanted.fire()

    async def _record(self, root: ManifestRoot) -> None:
        fields: dict[str, str | int | bool | bytes | None] = {
            "manifest": root.id.hex(),
            "name": root.name,
            "version": root.version,
        }
        await trio.to_thread.run_sync(self._journal.append, "tree_placed", fields)

    def _failed(self, progress: FetchProgress, error: BaseException) -> None:
        manifest = progress.manifest
        wait_s = self._retry_wait_s.get(manifest, FIRST_RETRY_S)
        self._retry_wait_s[manifest] = min(wait_s * 2, LONGEST_RETRY_S)
        self._retry_at[manifest] = trio.current_time() + wait_s
        progress.state = FetchState.FAILED
        progress.reason = error.sentence if isinstance(error, ArchidError) else str(error)
        log.error("fetch_failed", manifest=manifest.short, why=progress.reason)
        self._events.publish("fetch.failed", manifest=manifest.hex(), reason=progress.reason)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside, however deep: one cause is what a person can act on."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
