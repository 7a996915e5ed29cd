"""Reads everything that this node holds, slowly and again and again, before anybody needs it.

A disk that changes a byte says nothing. One pass reads every file of every tree once (one that is
shared by links only once), at no more than so many bytes a second, and marks what does not hold;
the repair of it is the fetcher's, as of any damage. The place is kept, so that a restart goes on
where it was.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from archid.errors import ArchidError, NotFound
from archid.log import get_logger
from archid.store import syscalls
from archid.store.chunk_reading import check_chunks, chunks_of
from archid.store.errors import DocumentMissing, storage_error
from archid.store.library import Library
from archid.store.tree_folder import TreeFolder
from archid.store.upkeep import Upkeep
from archid.store.verify import ABOUT_THE_FILE
from protocol.entries import FileEntry
from protocol.ids import ManifestId
from protocol.layout import Layout

log = get_logger(__name__)

SLICE_BYTES: Final = 4 << 20
SLICE_FILES: Final = 500
"""One hop into a thread reads so much: many small files, or a part of a large one."""
KEEP_EVERY_BYTES: Final = 64 << 20
LONGEST_NAP_S: Final = 600.0
MAX_SEEN: Final = 2_000_000

_Part = tuple[FileEntry, range]


@dataclass(frozen=True)
class ScrubReport:
    """How the scrub stands; times are seconds UTC."""

    running: bool
    begun_s: int
    checked_bytes: int
    """In the pass that runs, or else in the last one."""
    damaged: int
    """Trees in which that pass found something wrong."""
    finished_s: int | None
    """The end of the last complete pass."""
    next_s: int | None
    """When the next pass begins; None while one runs, and when the scrub is off."""


class Scrub:
    """The slow pass over one library; `finished` is told of each complete one."""

    def __init__(
        self,
        library: Library,
        upkeep: Upkeep,
        *,
        bytes_per_s: int,
        every_s: float,
        finished: Callable[[ScrubReport], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._library = library
        self._upkeep = upkeep
        self._finished = finished
        self._clock = clock
        self._set = trio.Event()
        self.bytes_per_s, self.every_s = bytes_per_s, every_s
        begun_s = upkeep.number("scrub_begun_s")
        # A new node has just verified all it has.
        self._begun_s = int(clock()) if begun_s is None else min(begun_s, int(clock()))
        self._finished_s = upkeep.number("scrub_finished_s")
        self._running = bool(upkeep.number("scrub_running"))
        self._checked_bytes = upkeep.number("scrub_checked_bytes") or 0
        self._found: set[ManifestId] = set()
        self._found_before = upkeep.number("scrub_damaged") or 0
        if begun_s is None:
            upkeep.keep(scrub_begun_s=self._begun_s)

    def take_up(self, *, bytes_per_s: int, every_s: float) -> None:
        """What a changed configuration says."""
        self.bytes_per_s, self.every_s = bytes_per_s, every_s
        self._set.set()
        self._set = trio.Event()

    def report(self) -> ScrubReport:
        waits = not self._running and self.bytes_per_s > 0
        return ScrubReport(
            running=self._running and self.bytes_per_s > 0,
            begun_s=self._begun_s,
            checked_bytes=self._checked_bytes,
            damaged=self._found_before + len(self._found),
            finished_s=self._finished_s,
            next_s=int(self._begun_s + self.every_s) if waits else None,
        )

    async def run(self) -> None:
        """Make passes until cancelled."""
        while True:
            due_s = self._due_in_s()
            if due_s > 0:
                with trio.move_on_after(min(due_s, LONGEST_NAP_S)):
                    await self._set.wait()
                continue
            try:
                await self._pass()
            except ArchidError as error:
                # Its place is kept: it goes on there when the disk can be read again.
                log.error("scrub_stopped", why=error.sentence)
                await trio.sleep(LONGEST_NAP_S)

    def _due_in_s(self) -> float:
        if not self.bytes_per_s:
            return math.inf
        return 0.0 if self._running else self._begun_s + self.every_s - self._clock()

    # One pass

    async def _pass(self) -> None:
        tree, first = self._upkeep.blob("scrub_tree") or b"", self._upkeep.number("scrub_at") or 0
        if not self._running:
            tree, first = b"", 0
            self._running, self._begun_s, self._checked_bytes = True, int(self._clock()), 0
            self._found_before = 0
            self._found.clear()
            log.info("scrub_started", trees=len(self._library.held()))
        seen: set[tuple[int, int]] = set()
        # What comes while it runs was verified when it came.
        for manifest in self._library.held():
            if bytes(manifest) >= tree:
                await self._tree(manifest, first if bytes(manifest) == tree else 0, seen)
        self._running, self._finished_s = False, int(self._clock())
        self._keep(scrub_tree=b"", scrub_at=0, scrub_finished_s=self._finished_s)
        report = self.report()
        log.info("scrub_finished", bytes=report.checked_bytes, damaged=report.damaged)
        await self._finished(report)

    async def _tree(self, manifest: ManifestId, first: int, seen: set[tuple[int, int]]) -> None:
        """Read one tree from the chunk `first` on."""
        unkept = KEEP_EVERY_BYTES
        try:
            if not first:
                damages = await trio.to_thread.run_sync(self._library.trees.survey, manifest)
                if damages:
                    self._found.add(manifest)
            layout = await trio.to_thread.run_sync(self._library.layout, manifest)
            for parts in _slices(layout, first):
                started = trio.current_time()
                if unkept >= KEEP_EVERY_BYTES:
                    self._keep(scrub_tree=bytes(manifest), scrub_at=parts[0][1].start)
                    unkept = 0
                read_bytes = await trio.to_thread.run_sync(
                    self._read, manifest, layout, parts, seen
                )
                self._checked_bytes += read_bytes
                unkept += read_bytes
                rate = max(self.bytes_per_s, 1)
                await trio.sleep(max(0.0, started + read_bytes / rate - trio.current_time()))
                if not self.bytes_per_s:
                    self._keep(scrub_tree=bytes(manifest), scrub_at=parts[-1][1].stop)
                    while not self.bytes_per_s:
                        await self._set.wait()
        except (NotFound, DocumentMissing):
            # It was removed meanwhile, or its manifest is damaged, which has been noticed.
            await trio.to_thread.run_sync(self._library.look_again, manifest)

    def _read(
        self,
        manifest: ManifestId,
        layout: Layout,
        parts: list[_Part],
        seen: set[tuple[int, int]],
    ) -> int:
        """Hash some parts of files and mark what does not hold; returns the bytes read; blocks."""
        read_bytes = 0
        bad: set[int] = set()
        try:
            folder = TreeFolder.at(self._library.tree(manifest))
        except OSError as error:
            raise NotFound(f"The tree {manifest.short} is not there") from error
        with folder:
            for file, chunks in parts:
                good: set[int] = set()
                try:
                    fd = folder.open_file(file.path)
                    try:
                        info = os.fstat(fd)
                        inode = (info.st_dev, info.st_ino)
                        if inode in seen:
                            continue
                        offset = layout.place(chunks.start).offset
                        length = sum(layout.length(at) for at in chunks)
                        syscalls.forget_cached(fd, offset, length)
                        for at, data in check_chunks(fd, layout, chunks):
                            if data is not None:
                                good.add(at)
                        read_bytes += length
                        whole = chunks.stop == chunks_of(file).stop
                        if whole and info.st_nlink > 1 and len(seen) < MAX_SEEN:
                            seen.add(inode)
                    finally:
                        os.close(fd)
                except OSError as error:
                    if error.errno not in ABOUT_THE_FILE:
                        raise storage_error(error, self._library.tree(manifest)) from error
                    log.warning("scrub_file_unreadable", path=file.path, why=error.strerror)
                bad.update(layout.home(at) for at in chunks if at not in good)
        if bad and self._library.trees.has(manifest):
            self._found.add(manifest)
            self._library.damage.mark(manifest, bad)
        return read_bytes

    def _keep(self, **place: int | bytes) -> None:
        self._upkeep.keep(
            scrub_begun_s=self._begun_s,
            scrub_running=int(self._running),
            scrub_checked_bytes=self._checked_bytes,
            scrub_damaged=self._found_before + len(self._found),
            **place,
        )


def _slices(layout: Layout, first: int) -> Iterator[list[_Part]]:
    """The files' chunks from `first` on, in parts of about SLICE_BYTES together."""
    parts: list[_Part] = []
    size = 0
    for file in layout.files:
        chunks = chunks_of(file)
        start = max(chunks.start, first)
        while start < chunks.stop:
            stop = start
            while stop < chunks.stop and (stop == start or size < SLICE_BYTES):
                size += layout.length(stop)
                stop += 1
            parts.append((file, range(start, stop)))
            start = stop
            if size >= SLICE_BYTES or len(parts) >= SLICE_FILES:
                yield parts
                parts, size = [], 0
    if parts:
        yield parts
