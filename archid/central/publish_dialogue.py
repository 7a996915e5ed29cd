"""One `archid publish`, seen from the daemon: entries and descriptors in, a signed version out.

The client walks the folder as the user who publishes and sends open descriptors; the daemon never
opens a path of that user's. What comes is checked again here and in `archid.store.ingest`. If the
client goes away before it says commit, nothing of it stays.

A folder that was published before is compared first, by what the client says of it: size, times,
inode. Whoever may publish vouches for that as he does for the bytes; what it is compared with was
seen by the daemon itself (`archid.store.settling` says when that counts). If the whole listing is
the one of the newest version, that is all; else the client announces its entries and opens only
the files that are asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import trio

from archid.central.publish_input import (
    Entry,
    add_entries,
    announced_in,
    bring_files,
    entries_in,
)
from archid.central.publishing import NextVersion, PublishedVersion
from archid.central.service import CentralService
from archid.control.connection import Exchange
from archid.control.credentials import Caller
from archid.errors import ArchidError, UsageError
from archid.events import EventHub
from archid.log import get_logger
from archid.store.ingest import Ingest, Ingested
from archid.store.library import Library
from archid.store.source_records import SourceRecord, SourceRecords
from protocol.errors import ProtocolError
from protocol.ids import ManifestId
from protocol.layout import Layout

log = get_logger(__name__)

PROGRESS_S: Final = 0.2
_T = TypeVar("_T")


class PublishDialogue:
    """Handles the control method ``publish``; one object serves all of them."""

    def __init__(
        self,
        service: CentralService,
        *,
        library: Library,
        sources: SourceRecords,
        events: EventHub,
    ) -> None:
        self._service = service
        self._library = library
        self._sources = sources
        self._events = events

    async def __call__(
        self, caller: Caller, params: dict[str, Any], exchange: Exchange
    ) -> dict[str, Any]:
        """Run one publication; raises ArchidError, and then nothing was published."""
        started = time.monotonic()
        name, kind = params["script"], params["kind"]
        done = False
        reserved = await self._service.begin_publication(name, kind)
        try:
            ingested = await self._same_listing(name, params["listing"], reserved.previous)
            if ingested is None:
                ingested = await self._take_folder(reserved, params, exchange)
            published, is_new = await self._sign(
                caller, ingested, _tell(exchange, "signing", ingested)
            )
            await self._keep_source(published, ingested)
            done = True
            return _result(ingested, published, is_new, time.monotonic() - started)
        except ProtocolError as error:
            # A name or a link that cannot be published is the caller's to mend.
            raise UsageError(
                str(error), remedy="Change it in the folder, then publish again"
            ) from error
        finally:
            self._service.abandon_publication(name)
            if not done:
                self._events.publish("publish.abandoned", script=name, kind=kind)

    async def _same_listing(
        self, name: str, listing: str | None, previous: ManifestId | None
    ) -> Ingested | None:
        """The newest version, if the folder is listed exactly as when that was published."""
        if listing is None or previous is None or not self._library.holds(previous):
            return None
        known = await trio.to_thread.run_sync(self._sources.listing, name, previous)
        if known is None or known != bytes.fromhex(listing):
            return None
        root = await trio.to_thread.run_sync(self._library.root, previous)
        return Ingested(root, {}, True, 0, root.files, None)

    async def _take_folder(
        self, reserved: NextVersion, params: dict[str, Any], exchange: Exchange
    ) -> Ingested:
        """Take in a folder until the tree stands, or is found to be the previous one."""
        compared = params["listing"] is not None
        previous, record = await self._previous(reserved, compared=compared)
        ingest = await trio.to_thread.run_sync(
            lambda: Ingest(
                self._library.paths,
                self._service.state.root.fleet,
                reserved.kind,
                reserved.name,
                reserved.version,
                previous=previous,
                record=record,
                size_bytes=params["size_bytes"],
            )
        )
        try:
            await exchange.event({"event": "publish.compare", "known": record is not None})
            await self._take_entries(ingest, exchange)
            await _tell(exchange, "syncing", ingest)
            finish = partial(
                ingest.finish,
                lambda _, pieces: self._library.keep_pieces(pieces.values()),
            )
            return await trio.to_thread.run_sync(finish)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(ingest.abort)

    async def _previous(
        self, reserved: NextVersion, *, compared: bool
    ) -> tuple[Layout | None, SourceRecord | None]:
        """The version before, and what is known of its source if that may be relied on."""
        manifest = reserved.previous
        if manifest is None or not self._library.holds(manifest):
            return None, None
        layout = await trio.to_thread.run_sync(self._library.layout, manifest)
        if not compared:
            return layout, None
        return layout, await trio.to_thread.run_sync(self._sources.get, reserved.name, manifest)

    async def _keep_source(self, published: PublishedVersion, ingested: Ingested) -> None:
        """Remember what the source looked like; a crash before this costs one reading."""
        if ingested.source is not None:
            record = ingested.source._replace(manifest=published.manifest)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._sources.keep, published.name, record)

    async def _take_entries(self, ingest: Ingest, exchange: Exchange) -> None:
        """Whatever the client sends until it says commit; each input is answered."""
        wanted: list[Entry] = []
        while True:
            received = await exchange.receive()
            body, descriptors = received.body, received.descriptors
            try:
                if body.get("commit") is True:
                    return
                if "announce" in body:
                    entries = entries_in(body, "announce")
                    announce = partial(ingest.announce, announced_in(entries))
                    positions = await _busy(ingest, exchange, announce)
                    wanted = [entries[at] for at in positions]
                    answer: dict[str, Any] = {"event": "publish.wanted", "wanted": positions}
                elif body.get("brought") is True:
                    bring = partial(bring_files, ingest, wanted, descriptors)
                    await _busy(ingest, exchange, bring)
                    wanted = wanted[len(descriptors) :]
                    answer = {"event": "publish.taken", "entries": len(descriptors)}
                else:
                    entries = entries_in(body, "entries")
                    add = partial(add_entries, ingest, entries, descriptors)
                    await _busy(ingest, exchange, add)
                    answer = {"event": "publish.taken", "entries": len(entries)}
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            await exchange.event(answer)

    async def _sign(
        self, caller: Caller, ingested: Ingested, told: Awaitable[None]
    ) -> tuple[PublishedVersion, bool]:
        """Record what was ingested; a tree that is not in the catalogue afterwards goes again.

        Once signing has begun the client's leaving changes nothing any more.
        """
        root = ingested.root
        is_new = False
        try:
            await told
            with trio.CancelScope(shield=True):
                if not ingested.unchanged:
                    self._library.expect(root.id)
                published, is_new = await self._service.commit_publication(
                    root, by=caller.user_name
                )
                if is_new:
                    add = partial(self._library.add_published, root, ingested.pieces)
                    await trio.to_thread.run_sync(add)
                    await trio.to_thread.run_sync(self._library.link_script, root)
        finally:
            if not (is_new or ingested.unchanged):
                with trio.CancelScope(shield=True):
                    await self._take_back(root.id)
        self._events.publish(
            "publish.finished", manifest=root.id.hex(), script=root.name, version=published.version
        )
        return published, is_new

    async def _take_back(self, manifest: ManifestId) -> None:
        """Remove a tree that was placed and not recorded."""
        try:
            if all(one.manifest != manifest for one in await self._service.scripts()):
                await trio.to_thread.run_sync(self._library.drop, manifest)
        except ArchidError as error:
            # The next start finds it and looks again.
            log.warning("tree_left_behind", manifest=manifest.short, why=str(error))


def _result(
    ingested: Ingested, published: PublishedVersion, is_new: bool, duration_s: float
) -> dict[str, Any]:
    root = ingested.root
    return {
        "manifest": published.manifest.hex(),
        "script": published.name,
        "kind": published.kind,
        "version": published.version,
        "unchanged": not is_new,
        "files": root.files,
        "folders": root.folders,
        "links": root.links,
        "size_bytes": root.size_bytes,
        "new_bytes": ingested.new_bytes,
        "chunks": root.chunk_count,
        "pieces": len(root.pieces),
        "duration_s": duration_s,
    }


async def _busy(ingest: Ingest, exchange: Exchange, work: Callable[[], _T]) -> _T:
    """Do something to the ingest in a thread, telling the client how it goes."""
    done = False

    async def stop_with_client() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not done:
                ingest.cancel()  # so that the thread ends soon; it cannot be abandoned

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report, ingest, exchange)
        nursery.start_soon(stop_with_client)
        result = await trio.to_thread.run_sync(work)
        done = True
        nursery.cancel_scope.cancel()
    return result


async def _report(ingest: Ingest, exchange: Exchange) -> None:
    while True:
        await trio.sleep(PROGRESS_S)
        await _tell(exchange, "reading", ingest)


async def _tell(exchange: Exchange, phase: str, done: Ingest | Ingested) -> None:
    """How far it is; once there is a root, all of it was read."""
    if isinstance(done, Ingested):
        files, size, new = done.root.files, done.root.size_bytes, done.new_bytes
    else:
        files, size, new = done.files, done.bytes, done.new_bytes
    await exchange.event(
        {
            "event": "publish.progress",
            "phase": phase,
            "files": files,
            "bytes": size,
            "new_bytes": new,
        }
    )
