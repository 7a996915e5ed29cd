"""One `archid publish`, seen from the daemon: entries and descriptors in, a signed version out.

The client walks the folder as the user who publishes and sends open descriptors; the daemon never
opens a path of that user's. What comes is checked again here and in `archid.store.ingest`. If the
client goes away before it says commit, nothing of it stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Final

import trio

from archid.central.publishing import PublishedVersion
from archid.central.service import CentralService
from archid.control.connection import Exchange
from archid.control.credentials import Caller
from archid.errors import ArchidError, UsageError
from archid.events import EventHub
from archid.log import get_logger
from archid.store.ingest import Ingest, Ingested
from archid.store.intake import SourceFile
from archid.store.library import Library
from protocol.errors import ProtocolError
from protocol.ids import ManifestId
from protocol.layout import Layout

log = get_logger(__name__)

PROGRESS_S: Final = 0.2
_BAD_INPUT: Final = "invalid_params"


class PublishDialogue:
    """Handles the control method ``publish``; one object serves all of them."""

    def __init__(self, service: CentralService, *, library: Library, events: EventHub) -> None:
        self._service = service
        self._library = library
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
            previous = await self._previous(reserved.previous)
            ingest = await trio.to_thread.run_sync(
                lambda: Ingest(
                    self._library.paths,
                    self._service.state.root.fleet,
                    kind,
                    name,
                    reserved.version,
                    previous=previous,
                )
            )
            try:
                await self._take_entries(ingest, exchange)
                await _tell(exchange, ingest, "syncing")
                ingested = await trio.to_thread.run_sync(
                    ingest.finish, lambda _, pieces: self._library.keep_pieces(pieces.values())
                )
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(ingest.abort)
            published = await self._sign(caller, ingested, _tell(exchange, ingest, "signing"))
            done = True
            return _result(ingested, published, time.monotonic() - started)
        except ProtocolError as error:
            # A name or a link that cannot be published is the caller's to mend.
            raise UsageError(
                str(error), remedy="Change it in the folder, then publish again"
            ) from error
        finally:
            self._service.abandon_publication(name)
            if not done:
                self._events.publish("publish.abandoned", script=name, kind=kind)

    async def _previous(self, manifest: Any) -> Layout | None:
        if manifest is None or not self._library.holds(manifest):
            return None
        return await trio.to_thread.run_sync(self._library.layout, manifest)

    async def _take_entries(self, ingest: Ingest, exchange: Exchange) -> None:
        while True:
            received = await exchange.receive()
            try:
                if received.body.get("commit") is True:
                    return
                entries = _entries_in(received.body)
                await self._take_batch(ingest, entries, received.descriptors, exchange)
            finally:
                for descriptor in received.descriptors:
                    os.close(descriptor)
            await exchange.event({"event": "publish.taken", "entries": len(entries)})

    async def _take_batch(
        self,
        ingest: Ingest,
        entries: Sequence[dict[str, Any]],
        descriptors: Sequence[int],
        exchange: Exchange,
    ) -> None:
        """Ingest a batch in a thread, telling the client how it goes."""
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
            await trio.to_thread.run_sync(_ingest_entries, ingest, entries, descriptors)
            done = True
            nursery.cancel_scope.cancel()

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
                    await trio.to_thread.run_sync(self._library.add_placed, root.id)
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
    ingested: Ingested, recorded: tuple[PublishedVersion, bool], duration_s: float
) -> dict[str, Any]:
    root = ingested.root
    published, is_new = recorded
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


def _entries_in(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of one input, each with what it needs; whether they make a tree is the store's.

    Raises UsageError: a client of another version must not look like a failure of the daemon.
    """
    entries = body.get("entries")
    if not isinstance(entries, list):
        raise UsageError("An input of publish holds neither entries nor commit", code=_BAD_INPUT)
    for entry in entries:
        match entry:
            case {"type": "file", "path": str(), "executable": bool(), "mtime_ns": int()}:
                continue
            case {"type": "folder", "path": str()}:
                continue
            case {"type": "link", "path": str(), "target": str()}:
                continue
        raise UsageError(
            f"An entry to publish is none: {str(entry)[:200]!r}",
            remedy="Use the archid command of the daemon's version",
            code=_BAD_INPUT,
        )
    return entries


async def _report(ingest: Ingest, exchange: Exchange) -> None:
    while True:
        await trio.sleep(PROGRESS_S)
        await _tell(exchange, ingest, "reading")


async def _tell(exchange: Exchange, ingest: Ingest, phase: str) -> None:
    await exchange.event(
        {
            "event": "publish.progress",
            "phase": phase,
            "files": ingest.files,
            "bytes": ingest.bytes,
            "new_bytes": ingest.new_bytes,
        }
    )


def _ingest_entries(
    ingest: Ingest, entries: Sequence[dict[str, Any]], descriptors: Sequence[int]
) -> None:
    """Entries in path order, each "file" with the next descriptor; runs in a worker thread."""
    waiting = iter(descriptors)
    files: list[SourceFile] = []
    for entry in entries:
        if entry["type"] == "file":
            descriptor = next(waiting, None)
            if descriptor is None:
                raise UsageError(f"No descriptor came with the file {entry['path']!r}")
            files.append(
                SourceFile(entry["path"], descriptor, entry["executable"], entry["mtime_ns"])
            )
            continue
        if files:
            ingest.add_files(files)
            files = []
        if entry["type"] == "folder":
            ingest.add_folder(entry["path"])
        else:
            ingest.add_link(entry["path"], entry["target"])
    if files:
        ingest.add_files(files)
    if next(waiting, None) is not None:
        raise UsageError("More descriptors came than files")
