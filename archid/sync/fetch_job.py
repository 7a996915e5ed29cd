"""Brings one version here: manifest, pieces, spans, tree; or what a damaged tree lacks.

It runs the machine of `protocol.fetch` over the peers in `Sources`: the machine says whom to ask
for what, this asks, has what comes verified and written by the store in worker threads, and tells
the machine. Everything that was verified stays in the staging folder, so a job that ends early,
however, is taken up again where it was.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import trio

from archid.events import EventHub
from archid.log import get_logger
from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.peer import Peer
from archid.store.errors import ManifestUnfit
from archid.store.filling import Filling
from archid.store.library import Library
from archid.store.mending import Mending
from archid.store.reserve import SpaceShort
from archid.store.staging import Staging
from archid.sync.fellows import Fellows
from archid.sync.fetch_progress import FetchProgress, FetchState
from archid.sync.one_error import one_error
from archid.sync.piece_fetch import PieceBatch, PieceFetch
from archid.sync.plan_log import PlanLogs
from archid.sync.sources import Sources
from archid.sync.span_exchange import SpanExchange
from archid.sync.span_run import SpanRun, plan_spans
from protocol.envelope import Envelope
from protocol.errors import FormatError, ProtocolError, TrustError
from protocol.ids import ManifestId, PieceId
from protocol.layout import Layout
from protocol.manifest import ManifestRoot
from protocol.messages import GetManifest, ManifestAnswer
from protocol.publication import (
    MAX_PUBLICATION_BYTES,
    accept_known_publication,
    manifest_of,
)
from protocol.root import Root

log = get_logger(__name__)

PROGRESS_S: Final = 0.25

MakeRoom: TypeAlias = Callable[[ManifestId], Awaitable[None]]
"""Removes what can be removed until a version that waits for space fits."""


async def no_room(_manifest: ManifestId) -> None:
    """There is nothing to remove."""


class FetchJob:
    """One run at fetching `sources.manifest`; make another to try again.

    With `ask_first` nothing that is staged is looked at before somebody can be asked for the
    rest, since looking means hashing all of it.
    """

    def __init__(
        self,
        sources: Sources,
        progress: FetchProgress,
        *,
        library: Library,
        roots: Callable[[], Sequence[Root]],
        events: EventHub,
        spans: SpanExchange,
        seed: bytes,
        plan_logs: PlanLogs,
        fellows: Fellows | None = None,
        ask_first: bool = False,
        rank: int = 0,
        make_room: MakeRoom = no_room,
    ) -> None:
        self.progress = progress
        self.mends = False
        """Whether a tree that stands was mended, rather than one placed."""
        self._plan_logs = plan_logs
        self._fellows = fellows
        self._ask_first = ask_first
        self._rank = rank
        self._make_room = make_room
        self._sources = sources
        self._manifest = sources.manifest
        self._library = library
        self._roots = roots
        self._events = events
        self._spans = spans
        self._seed = seed
        self._told_at = -math.inf

    async def run(self) -> ManifestRoot:
        """Return when the tree is in its place.

        Raises ManifestUnfit when what was signed can be no tree, StorageError when the disk does
        not take it, ArchidError or ProtocolError when it cannot be used otherwise. Waits for
        peers for as long as it takes.
        """
        self.progress.fetching(())
        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sources.run)
                if self._fellows is not None:
                    nursery.start_soon(self._fellows.seek, self._sources)
                root = await self._fetch_manifest()
                self.progress.name, self.progress.version = root.name, root.version
                self.progress.size_bytes = root.size_bytes
                await self._fetch_pieces(root)
                if self._ask_first:
                    await self._any_source()
                await self._mend_or_place()
                nursery.cancel_scope.cancel()
        self.progress.placed(root.size_bytes)
        return root

    async def _mend_or_place(self) -> None:
        self.progress.fetching(self._sources.names())
        layout = await trio.to_thread.run_sync(self._library.layout, self._manifest)
        await trio.to_thread.run_sync(self._library.look_again, self._manifest)
        if self._library.holds(self._manifest):
            await self._mend(layout)
        else:
            await self._stage_and_place(layout)

    async def _mend(self, layout: Layout) -> None:
        """A tree stands that is damaged: bring what it lacks into it."""
        self.mends = True
        mending = await self._mending(layout)
        with self._spans.telling(self._manifest) as verified:
            for span in mending.mended_spans():
                verified(span.piece, span.n)
            await self._fetch_spans(layout, mending, verified)
        await trio.to_thread.run_sync(mending.finish)

    async def _mending(self, layout: Layout) -> Mending:
        made: list[Mending] = []

        def look(*, stopped: Callable[[], bool]) -> None:
            made.append(self._library.mend(layout, stopped=stopped))

        await _stoppable(look)
        return made[0]

    async def _stage_and_place(self, layout: Layout) -> None:
        staging = await trio.to_thread.run_sync(self._library.stage, layout)
        try:
            await self._adopt(staging)
            await trio.to_thread.run_sync(self._library.require_space, staging)
            with self._spans.telling(self._manifest) as verified:
                self._library.share(staging)
                self._sources.gives()
                await self._fetch_spans(layout, staging, verified)
            self.progress.state = FetchState.PLACING
            self._tell(force=True)
            await trio.to_thread.run_sync(self._library.place, staging)
        finally:
            self._library.end_staging(staging)

    async def _adopt(self, staging: Staging) -> None:
        """Take over what is here and reserve space for the rest, if need be after making some."""
        adopt = partial(self._library.adopt, staging, rank=self._rank)
        try:
            with one_error():
                await _stoppable(adopt)
        except SpaceShort as short:
            self.progress.waiting(short.message)
            await self._make_room(self._manifest)
            await _stoppable(adopt)
            self.progress.fetching(self._sources.names())

    # The manifest and its pieces

    async def _fetch_manifest(self) -> ManifestRoot:
        held = await trio.to_thread.run_sync(self._library.manifest_envelope, self._manifest)
        if held is not None:
            try:
                return self._accepted(held)
            except ProtocolError as error:
                # Signed by keys that Root does not name any more: others may hold it signed anew.
                log.warning("manifest_not_accepted", manifest=self._manifest.short, why=str(error))
        while True:
            peer = await self._any_source()
            try:
                answer = await peer.request(GetManifest(0, self._manifest), ManifestAnswer)
                root = self._accepted(answer.envelope)
                await trio.to_thread.run_sync(self._library.keep_manifest, answer.envelope)
            except TrustError as error:
                # Its Root may be another one than ours; that is no lie.
                self._sources.remove(peer, str(error))
            except ProtocolError as error:
                self._report_liar(peer, f"manifest: {error}")
            except (PeerRefused, PeerLost, PeerTooSlow) as error:
                log.info("manifest_not_given", node=peer.node.short, why=str(error))
                self._sources.remove(peer, str(error))
            else:
                return root

    def _accepted(self, data: bytes) -> ManifestRoot:
        envelope = Envelope.decode(data, max_bytes=MAX_PUBLICATION_BYTES)
        if manifest_of(envelope) != self._manifest:
            raise FormatError("the manifest is not the one that was asked for")
        try:
            return accept_known_publication(envelope, self._roots())
        except TrustError:
            raise
        except ProtocolError as error:
            # These bytes were signed: whoever passes them on is no liar.
            script = f"the version {self._manifest.short}"
            raise ManifestUnfit(self._manifest.hex(), script, str(error)) from error

    async def _fetch_pieces(self, root: ManifestRoot) -> None:
        fetch = PieceFetch(self._library, root)
        while batches := await fetch.batches():
            await self._any_source()
            async with trio.open_nursery() as nursery:
                for peer in tuple(self._sources.ready):
                    nursery.start_soon(self._fetch_piece_batches, fetch, peer, batches)

    async def _fetch_piece_batches(
        self, fetch: PieceFetch, peer: Peer, batches: list[PieceBatch]
    ) -> None:
        """Take batches from the common list until it is empty or the peer fails."""
        while batches:
            try:
                await fetch.bring(peer, batches.pop(0))
            except ProtocolError as error:
                self._report_liar(peer, f"piece: {error}")
                return
            except (PeerRefused, PeerLost, PeerTooSlow) as error:
                log.info("pieces_not_given", node=peer.node.short, why=str(error))
                self._sources.remove(peer, str(error))
                return

    async def _any_source(self) -> Peer:
        while not self._sources.ready:
            self.progress.waiting(self._sources.why_none())
            await self._sources.changed.wait(self._sources.changed.version)
        self.progress.fetching(self._sources.names())
        return next(iter(self._sources.ready))

    # Spans

    async def _fetch_spans(
        self, layout: Layout, filling: Filling, verified: Callable[[PieceId, int], None]
    ) -> None:
        self.progress.held_bytes = filling.held_bytes
        self._events.publish(
            "fetch.started",
            manifest=self._manifest.hex(),
            script=layout.root.name,
            size_bytes=layout.root.size_bytes,
            held_bytes=filling.held_bytes,
        )
        if filling.is_complete:
            return
        planned = await trio.to_thread.run_sync(
            partial(
                plan_spans,
                layout,
                filling,
                seed=self._seed,
                shared_line=self._sources.share_line,
            )
        )
        run = SpanRun(
            planned,
            filling,
            sources=self._sources,
            progress=self.progress,
            tell=self._tell,
            verified=verified,
            report_liar=self._report_liar,
        )
        if isinstance(filling, Staging):  # what is mended is told to all who were refused it
            self._spans.spare(self._manifest, run.held_by)
        with self._plan_logs.of(self._manifest) as plan_log:
            plan_log.follow(planned.plan)
            await run.run()

    def _report_liar(self, peer: Peer, why: str) -> None:
        name = peer.facts.name
        log.error(
            "peer_sent_wrong_bytes",
            node=peer.node.short,
            name=name,
            manifest=self._manifest.short,
            why=why,
        )
        self._events.publish(
            "alarm",
            code="peer_sent_wrong_bytes",
            sentence=f"{name} sent bytes that are not what was asked for ({why})",
            node=peer.node.hex(),
            manifest=self._manifest.hex(),
        )
        self._sources.ban(peer, "it sent wrong bytes")

    def _tell(self, *, force: bool = False) -> None:
        now = trio.current_time()
        if not force and now - self._told_at < PROGRESS_S:
            return
        self._told_at = now
        self._events.publish(
            "fetch.progress",
            manifest=self._manifest.hex(),
            held_bytes=self.progress.held_bytes,
            size_bytes=self.progress.size_bytes,
            rate_bytes_per_s=self.progress.rate_bytes_per_s(now=now),
        )


async def _stoppable(work: Callable[..., object]) -> None:
    """Run ``work(stopped=...)`` in a thread, which is asked to stop when this is cancelled."""
    stopped = threading.Event()

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.to_thread.run_sync(partial(work, stopped=stopped.is_set))
        nursery.cancel_scope.cancel()
