"""Publishing a folder: its entries in, an immutable tree and a manifest out.

Entries come in path order, files as open descriptors. Everything is copied into a staging folder
while it is chunked, so that what is published cannot change any more, and the tree appears with
one rename after one sync. Walking the folder is the client's part; numbering, signing and
recording the version is central's; how one file is read is `archid.store.intake`'s.

A folder that was published before is announced first (`announce`): then only those files need be
opened and brought (`bring`) that are not known to be what was read the last time.

Methods block; call them from a worker thread, one call at a time.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from archid.errors import Interrupted, UsageError
from archid.log import get_logger
from archid.source_listing import SourceListing
from archid.store import syscalls
from archid.store.announced import (
    Announced,
    AnnouncedFile,
    AnnouncedFolder,
    AnnouncedLink,
    Announcement,
)
from archid.store.chunking import Cutter
from archid.store.errors import storage_error
from archid.store.intake import Intake, PreviousVersion, SourceFile, TakenFile
from archid.store.layout import StatePaths
from archid.store.placing import place_tree
from archid.store.settling import SettledSources
from archid.store.source_records import NO_FACTS, SourceRecord
from archid.store.tree_folder import FOLDER_MODE, TreeFolder, remove_tree
from protocol.chunking_profile import DEFAULT_PROFILE
from protocol.ids import FleetId, PieceId
from protocol.layout import Layout
from protocol.manifest import ManifestRoot
from protocol.manifest_builder import ManifestBuilder
from protocol.paths import TreeShape
from protocol.pieces import table_rows

log = get_logger(__name__)

STAGING_PREFIX: Final = ".publish-"
_PARALLEL_FILE_BYTES: Final = 1 << 20
"""Mean size from which several threads read a batch. Below, most of the work is system calls that
take and drop the interpreter's lock: two threads took twice as long as one for files of 16 KiB."""
CACHED_SHARE: Final = 8
"""What is an eighth of the machine's memory or more is written past the page cache: the kernel
would make whoever writes so much wait for the disk (at 10 to 20 %), and drop what others use."""


@dataclass(frozen=True)
class Ingested:
    """What came of it. When `unchanged`, `root` is the previous version's and `pieces` is empty.

    `source` tells the files again the next time; None where nothing new was learnt.
    """

    root: ManifestRoot
    pieces: Mapping[PieceId, bytes]
    unchanged: bool
    new_bytes: int
    linked_files: int
    source: SourceRecord | None


class Ingest:
    """One publication. Use it as a context manager: what is not finished leaves nothing behind.

    `files`, `bytes` and `new_bytes` may be read from any thread while it runs; `new_bytes` counts
    distinct chunks that the previous version does not have.
    """

    def __init__(
        self,
        paths: StatePaths,
        fleet: FleetId,
        kind: str,
        name: str,
        version: int,
        *,
        previous: Layout | None = None,
        record: SourceRecord | None = None,
        settled: SettledSources | None = None,
        profile: int = DEFAULT_PROFILE,
        threads: int = 2,
        size_bytes: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`record` tells the source of `previous`; without it everything is read.

        `size_bytes` is about what will come; nothing is refused by it. `progress` is called with
        (bytes, files) so far, from the threads that read.
        Raises PathRefused for a kind or a name that cannot be, StorageError.
        """
        self.files = self.bytes = self.new_bytes = 0
        self._paths = paths
        self._shape = TreeShape()
        self._builder = ManifestBuilder(
            fleet, kind, name, version, profile=profile, shape=self._shape
        )
        self._profile = profile
        self._previous = previous
        self._progress = progress
        self._folders: list[str] = []
        self._listing = SourceListing()
        self._facts: list[bytes] = []
        self._all_settled = True
        self._announced = Announcement()
        self._linked_files = 0
        self._known: set[bytes] = set()
        if previous is not None:
            self._known = {previous.chunk(at).id for at in previous.distinct_chunks()}
        self._counting = threading.Lock()
        self._stopped = threading.Event()
        self._finished = self._closed = False
        self._intakes: list[Intake] = []
        self._cores = len(os.sched_getaffinity(0))
        cutters = [Cutter(profile) for _ in range(max(1, threads))]
        self._pool = ThreadPoolExecutor(len(cutters), thread_name_prefix="ingest")
        version_before = None
        if previous is not None:
            version_before = PreviousVersion(previous, paths.tree(previous.manifest), record)
        settled = settled or SettledSources()
        try:
            self._path = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=paths.staging))
            self._folder = TreeFolder.at(self._path)
        except OSError as error:
            raise storage_error(error, paths.staging) from error
        self._intakes += [
            Intake(
                self._folder.again(),
                self._path,
                cutter,
                version_before,
                settled,
                self._tick,
                past_the_cache=size_bytes * CACHED_SHARE >= syscalls.memory_bytes(),
            )
            for cutter in cutters
        ]

    def add_folder(self, path: str) -> None:
        """A folder, before what it holds; raises PathRefused, StorageError."""
        self._require_whole()
        self._make_folder(path)
        self._record_folder(path)

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link; raises PathRefused, StorageError."""
        self._require_whole()
        self._make_link(path, target)
        self._record_link(path, target)

    def add_file(self, path: str, descriptor: int, *, executable: bool, mtime_ns: int) -> None:
        """A file that is open for reading; raises as `Intake.take` does, and PathRefused."""
        self.add_files([SourceFile(path, descriptor, executable, mtime_ns)])

    def add_files(self, batch: Sequence[SourceFile]) -> None:
        """Several files, read by several threads; the descriptors stay the caller's to close."""
        self._require_whole()
        for source in batch:
            self._shape.add_file(source.path)
        for file in self._take_all(batch):
            self._record_file(file)

    def announce(self, part: Sequence[Announced]) -> list[int]:
        """The next entries in path order; returns the positions of the files to `bring`.

        What need not be brought is in the tree afterwards. Raises PathRefused, StorageError, and
        UsageError while files of an earlier part are still missing.
        """
        self._require_whole()
        self._announced = announced = Announcement()
        for entry in part:
            match entry:
                case AnnouncedFolder():
                    self._make_folder(entry.path)
                    announced.add(entry)
                case AnnouncedLink():
                    self._make_link(entry.path, entry.target)
                    announced.add(entry)
                case AnnouncedFile():
                    self._shape.add_file(entry.path)
                    taken = self._intakes[0].reuse(*entry)
                    if taken is None:
                        announced.want(entry.path)
                    else:
                        self._count(taken)
                        announced.add(taken)
        wanted = announced.wanted
        if not wanted:
            self._record_announced()
        return wanted

    def bring(self, batch: Sequence[SourceFile]) -> None:
        """The next files that were wanted, in order, not necessarily all of them.

        Raises UsageError for others than these, and as `add_files`.
        """
        if [source.path for source in batch] != self._announced.next_paths(len(batch)):
            raise UsageError(
                "Other files came than were asked for",
                remedy="Use the archid command of the daemon's version",
            )
        for file in self._take_all(batch):
            self._announced.fill(file)
        if not self._announced.wanted:
            self._record_announced()

    def finish(
        self,
        keep: Callable[[ManifestRoot, Mapping[PieceId, bytes]], None] | None = None,
    ) -> Ingested:
        """Make the manifest and let the tree appear; then the ingest is closed.

        `keep` is given the root and its pieces before the sync that makes the tree durable, so
        that documents it writes to the same file system are synced along. When nothing changed
        since the previous version there is no new tree and it is not called. Raises PathRefused
        when a link leaves the tree through others, StorageError, and UsageError when announced
        files did not come.
        """
        self._require_whole()
        root, pieces = self._builder.finish()
        before = None if self._previous is None else self._previous.root
        if before is not None and (root.kind, root.pieces) == (before.kind, before.pieces):
            self.abort()
            return Ingested(before, {}, True, 0, self._linked_files, self._source(before))
        try:
            for path in reversed(self._folders):
                os.fchmod(self._folder.folder(path), FOLDER_MODE)
        except OSError as error:
            raise storage_error(error, self._path) from error
        if keep is not None:
            keep(root, pieces)
        self._close()
        place_tree(self._path, self._paths.tree(root.id))
        self._finished = True
        return Ingested(root, pieces, False, self.new_bytes, self._linked_files, self._source(root))

    def cancel(self) -> None:
        """Let a call that is under way in another thread raise Interrupted soon."""
        self._stopped.set()

    def abort(self) -> None:
        """Remove what was staged; after `finish` or a second time it does nothing."""
        if self._finished:
            return
        self._finished = True
        self._close()
        try:
            remove_tree(self._path)
        except OSError as error:
            log.warning("staging_left_behind", path=str(self._path), why=error.strerror)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    def _make_folder(self, path: str) -> None:
        self._shape.add_folder(path)
        try:
            self._folder.folder(path, create=True)
        except OSError as error:
            raise storage_error(error, self._path / path) from error
        self._folders.append(path)

    def _make_link(self, path: str, target: str) -> None:
        self._shape.add_link(path, target)
        try:
            self._folder.make_link(path, target)
        except OSError as error:
            raise storage_error(error, self._path / path) from error

    def _record_folder(self, path: str) -> None:
        self._builder.add_folder(path)
        self._listing.add_folder(path)

    def _record_link(self, path: str, target: str) -> None:
        self._builder.add_link(path, target)
        self._listing.add_link(path, target)

    def _record_file(self, file: TakenFile) -> None:
        self._builder.add_file_table(
            file.path, executable=file.executable, mtime_ns=file.mtime_ns, table=file.table
        )
        self._listing.add_file(file.path, file.executable, file.size_bytes, file.facts)
        self._facts.append(file.facts)
        self._all_settled &= file.facts != NO_FACTS
        self._linked_files += file.linked

    def _record_announced(self) -> None:
        for entry in self._announced.entries():
            match entry:
                case AnnouncedFolder():
                    self._record_folder(entry.path)
                case AnnouncedLink():
                    self._record_link(entry.path, entry.target)
                case TakenFile():
                    self._record_file(entry)

    def _require_whole(self) -> None:
        if self._announced.wanted:
            raise UsageError(
                "A part of the folder was not brought whole",
                remedy="Use the archid command of the daemon's version",
            )

    def _source(self, root: ManifestRoot) -> SourceRecord:
        listing = self._listing.digest() if self._all_settled else None
        return SourceRecord(root.id, listing, b"".join(self._facts))

    def _take_all(self, batch: Sequence[SourceFile]) -> list[TakenFile]:
        if len(self._intakes) > 1 and len(batch) > 1 and _worth_sharing(batch):
            return self._take_together(batch)
        spare_core = self._cores > 1
        return [self._take(self._intakes[0], source, spare_core) for source in batch]

    def _take(self, intake: Intake, source: SourceFile, spare_core: bool) -> TakenFile:
        taken = intake.take(source, spare_core=spare_core)
        self._count(taken)
        return taken

    def _count(self, taken: TakenFile) -> None:
        with self._counting:
            self.files += 1
            for chunk, length in table_rows(taken.table):
                if chunk not in self._known:
                    self._known.add(chunk)
                    self.new_bytes += length
        if self._progress is not None:
            self._progress(self.bytes, self.files)

    def _take_together(self, batch: Sequence[SourceFile]) -> list[TakenFile]:
        """Every thread takes the next file that nobody has; results in the batch's order."""
        taken: dict[int, TakenFile] = {}
        waiting = iter(enumerate(batch))
        failed = threading.Event()
        # A core that cuts another file gains more than one that writes what this one cuts.
        spare_core = self._cores > min(len(self._intakes), len(batch))

        def work(intake: Intake) -> None:
            while not failed.is_set():
                with self._counting:
                    item = next(waiting, None)
                if item is None:
                    return
                at, source = item
                try:
                    taken[at] = self._take(intake, source, spare_core)
                except BaseException:
                    failed.set()
                    raise

        running = [self._pool.submit(work, intake) for intake in self._intakes]
        errors = [error for future in running if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [taken[at] for at in range(len(batch))]

    def _tick(self, count: int) -> None:
        if self._stopped.is_set():
            raise Interrupted("Publishing was stopped", remedy="Publish the folder again")
        with self._counting:
            self.bytes += count
        if self._progress is not None:
            self._progress(self.bytes, self.files)

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pool.shutdown()
        for intake in self._intakes:
            intake.close()
        self._folder.close()


def remove_leftovers(paths: StatePaths) -> int:
    """Remove what a killed process was publishing; returns how many. Raises StorageError."""
    count = 0
    for path in paths.staging.glob(f"{STAGING_PREFIX}*"):
        try:
            remove_tree(path)
        except OSError as error:
            raise storage_error(error, path) from error
        count += 1
    return count


def _worth_sharing(batch: Sequence[SourceFile]) -> bool:
    """Judged by every sixteenth file: looking at all of many small ones is work as well."""
    sample = batch[::16]
    total = 0
    for source in sample:
        with contextlib.suppress(OSError):
            total += os.fstat(source.descriptor).st_size
    return total >= len(sample) * _PARALLEL_FILE_BYTES
