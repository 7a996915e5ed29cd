"""Fetches what is wanted, most urgent first, again and again until it is here.

What is wanted is said as a whole by whoever knows (`deliveries` on an ICE server, `replicator` on
a REPO); what is no longer wanted is stopped. A tree that is here and damaged comes before all
else, since others count on it and little of it is missing. A fetch that failed is tried again
after a while; what it had verified stays staged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from archid.errors import ArchidError
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.store.library import Library
from archid.sync.fellows import Fellows
from archid.sync.fetch_job import FetchJob, MakeRoom, no_room
from archid.sync.fetch_progress import FetchProgress, FetchState
from archid.sync.peers import PeerDirectory
from archid.sync.plan_log import PlanLogs
from archid.sync.recording import record
from archid.sync.signal import Signal
from archid.sync.sources import Sources
from archid.sync.trust_keeper import TrustKeeper
from protocol.errors import ProtocolError
from protocol.ids import ManifestId, NodeId
from protocol.manifest import ManifestRoot

log = get_logger(__name__)

CONCURRENT_JOBS: Final = 2
MOST_JOBS: Final = 4
"""With those that are more urgent than all that run: they need not wait for a place."""
SHARING_S: Final = 1.0
"""How often it is looked whether less urgent jobs are to leave the line to others."""
PATIENCE_S: Final = 10.0
"""How long a job may wait for somebody to ask while others could use its place."""
FIRST_RETRY_S: Final = 2.0
LONGEST_RETRY_S: Final = 60.0
LONGEST_NAP_S: Final = 60.0
"""Wall clocks are set right now and then, so no wait on a date is a long one."""


@dataclass(frozen=True)
class Want:
    """One manifest to have: not before `not_before_s` (UTC), lower `urgency` first."""

    manifest: ManifestId
    urgency: int
    not_before_s: int = 0


@dataclass(eq=False)
class _Job:
    """A job that runs; `yields` when it gives its place to another one."""

    progress: FetchProgress
    sources: Sources
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    waits_since: float | None = None
    yields: bool = False


@dataclass
class _Retry:
    """When to try again after a failure, or after having given up a place."""

    at: float
    wait_s: float
    ask_first: bool = False


class Fetcher:
    """Runs fetch jobs for what is wanted; `placed` fires whenever a tree has come to stand.

    `site` says at which site this node stands, "" for none: its nodes divide the work.
    """

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
        site: Callable[[], str] = str,
        plan_logs: PlanLogs | None = None,
        fellows: Fellows | None = None,
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
        self._site = site
        self._plan_logs = plan_logs or PlanLogs()
        self._fellows = fellows
        self._clock = clock
        self._wants: Mapping[ManifestId, Want] = {}
        self._wanted = Signal()
        self._running: dict[ManifestId, _Job] = {}
        self._retries: dict[ManifestId, _Retry] = {}
        self.make_room: MakeRoom = no_room
        """Asked when something does not fit; set by who can remove things."""
        self._undated: set[ManifestId] = set()
        self._hurried: set[ManifestId] = set()

    def want(self, wants: Sequence[Want]) -> None:
        """Replace everything that is wanted; what is not in it any more is stopped."""
        self._wants = {one.manifest: one for one in wants}
        for manifest, job in self._running.items():
            if manifest not in self._wants:
                job.scope.cancel()
        for gone in self.progress.keys() - self._wants.keys():
            del self.progress[gone]
        for gone in self._retries.keys() - self._wants.keys():
            del self._retries[gone]
        self._undated &= self._wants.keys()
        self._hurried &= self._wants.keys()
        for manifest in self._wants:
            self.progress.setdefault(manifest, FetchProgress(manifest))
        self._wanted.fire()

    def hurry(self, manifests: Iterable[ManifestId]) -> None:
        """Fetch these of what is wanted at once: before their date, and before all others."""
        self._hurried.update(one for one in manifests if one in self._wants)
        for manifest in self._hurried:
            self._retries.pop(manifest, None)
        self.go_on(self._hurried)

    def go_on(self, manifests: Iterable[ManifestId]) -> None:
        """Fetch these of what is wanted whatever their date, since they were begun."""
        self._undated.update(one for one in manifests if one in self._wants)
        self._wanted.fire()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                seen = self._wanted.version
                while (want := self._next()) and self._has_place(want):
                    job = _Job(self.progress[want.manifest], self._sources_of(want.manifest))
                    self._running[want.manifest] = job
                    nursery.start_soon(self._run_job, want.manifest, job)
                self._share_line()
                with trio.move_on_after(self._nap_s()):
                    await self._wanted.wait(seen)

    def look_again(self) -> None:
        """Something that was held is not any more."""
        self._wanted.fire()

    # Whose turn it is

    def _next(self) -> Want | None:
        due = [want for want in self._waiting() if self._due_in_s(want) <= 0]
        return min(due, key=self._rank, default=None)

    def _rank(self, want: Want) -> tuple[bool, bool, int, ManifestId]:
        mends = self._library.holds(want.manifest)
        return not mends, want.manifest not in self._hurried, want.urgency, want.manifest

    def _has_place(self, want: Want) -> bool:
        if len(self._running) < CONCURRENT_JOBS:
            return True
        ranks = self._running_ranks().values()
        return len(self._running) < MOST_JOBS and all(self._rank(want)[:3] < one for one in ranks)

    def _running_ranks(self) -> dict[ManifestId, tuple[bool, bool, int]]:
        return {
            manifest: self._rank(self._wants[manifest])[:3]
            for manifest in self._running
            if manifest in self._wants  # else it is being stopped
        }

    def _share_line(self) -> None:
        """What starts sooner has the line: the others pause while it gets something."""
        now = trio.current_time()
        ranks = self._running_ranks()
        flowing = [rank for one, rank in ranks.items() if self.progress[one].flows(now=now)]
        for manifest, rank in ranks.items():
            self._running[manifest].sources.pause(any(other < rank for other in flowing))

    def _waiting(self) -> list[Want]:
        """What is wanted, not here, and not being fetched."""
        return [
            want
            for manifest, want in self._wants.items()
            if manifest not in self._running and not self._is_held(manifest)
        ]

    def _is_held(self, manifest: ManifestId) -> bool:
        """Whether it is here and nothing is known to be wrong with it."""
        if not self._library.holds(manifest) or self._library.damage.of(manifest) is not None:
            return False
        progress = self.progress[manifest]
        if progress.state is not FetchState.HELD:
            progress.state, progress.reason = FetchState.HELD, None
        return True

    def _due_in_s(self, want: Want) -> float:
        retry = self._retries.get(want.manifest)
        retry_s = retry.at - trio.current_time() if retry is not None else -math.inf
        if want.manifest in self._undated or self._library.holds(want.manifest):
            return retry_s
        return max(want.not_before_s - self._clock(), retry_s)

    def _nap_s(self) -> float:
        """For how long there is nothing to do, unless something changes."""
        sharing_s = SHARING_S if len(set(self._running_ranks().values())) > 1 else math.inf
        return min(sharing_s, self._next_due_s())

    def _next_due_s(self) -> float:
        due_s = [self._due_in_s(want) for want in self._waiting()]
        if not due_s:
            return math.inf
        if len(self._running) < CONCURRENT_JOBS:
            return min(max(min(due_s), 0.05), LONGEST_NAP_S)
        return self._make_room() if min(due_s) <= 0 else min(*due_s, LONGEST_NAP_S)

    def _make_room(self) -> float:
        """Something is due and every place taken: stop a job that has nobody to ask for long.

        Returns after how long to look again. Without any peer no job could do better.
        """
        now = trio.current_time()
        for job in self._running.values():
            if job.progress.state is not FetchState.WAITING or not self._directory.all():
                job.waits_since = None
            elif job.waits_since is None:
                job.waits_since = now
            elif now - job.waits_since >= PATIENCE_S and not job.yields:
                job.yields = True
                job.scope.cancel()
                break
        return PATIENCE_S / 4

    # Jobs

    def _sources_of(self, manifest: ManifestId) -> Sources:
        return Sources(manifest, self._directory, lambda: self._proof_for(manifest), self._site())

    async def _run_job(self, manifest: ManifestId, job: _Job) -> None:
        retry = self._retries.get(manifest)
        fetch = FetchJob(
            job.sources,
            job.progress,
            library=self._library,
            roots=lambda: self._keeper.trust.root_history,
            events=self._events,
            spans=self._directory.spans,
            seed=self._node,
            plan_logs=self._plan_logs,
            fellows=self._fellows,
            ask_first=retry is not None and retry.ask_first,
            rank=self._wants[manifest].urgency if manifest in self._wants else 0,
            make_room=self.make_room,
        )
        root: ManifestRoot | None = None
        try:
            with job.scope:
                try:
                    root = await fetch.run()
                except (ArchidError, ProtocolError) as error:
                    self._failed(job.progress, error)
        finally:
            del self._running[manifest]
            self._wanted.fire()
            if root is None and self._library.holds(manifest):
                self.placed.fire()  # stopped when all was done but to say so
        if root is not None and fetch.mends:
            self._retries.pop(manifest, None)
            self.placed.fire()
        elif root is not None:
            await self._finished(root, job.progress)
        elif job.yields:
            self._try_again(manifest, ask_first=True)

    async def _finished(self, root: ManifestRoot, progress: FetchProgress) -> None:
        self._retries.pop(root.id, None)
        self._hurried.discard(root.id)
        log.info(
            "tree_placed",
            manifest=root.id.short,
            name=root.name,
            version=root.version,
            received_bytes=progress.received_bytes,
        )
        path = str(self._library.tree(root.id))
        self._events.publish("tree.placed", manifest=root.id.hex(), path=path)
        self._events.publish(
            "fetch.finished", manifest=root.id.hex(), received_bytes=progress.received_bytes
        )
        self.placed.fire()
        await record(
            self._journal,
            "tree_placed",
            manifest=root.id.hex(),
            name=root.name,
            version=root.version,
        )

    def _failed(self, progress: FetchProgress, error: ArchidError | ProtocolError) -> None:
        reason = error.sentence if isinstance(error, ArchidError) else str(error)
        progress.failed(reason)
        self._try_again(progress.manifest)
        log.error("fetch_failed", manifest=progress.manifest.short, why=reason)
        self._events.publish("fetch.failed", manifest=progress.manifest.hex(), reason=reason)

    def _try_again(self, manifest: ManifestId, *, ask_first: bool = False) -> None:
        before = self._retries.get(manifest)
        wait_s = min(before.wait_s * 2, LONGEST_RETRY_S) if before else FIRST_RETRY_S
        self._retries[manifest] = _Retry(trio.current_time() + wait_s, wait_s, ask_first)
