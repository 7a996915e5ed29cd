"""Taking one file into a tree that is being published: read once, cut, hashed and copied.

The caller gives an open descriptor, so that reading happens with the rights of whoever opened
it and nothing is opened by name twice. A file that does not hold still is refused rather than
published half new. What is unchanged since the previous version becomes a hard link to the file
there, whose bytes are hashed first. Where extents can be shared they are; what is hashed then is
the source, which is warm, if its times would tell that it changed after it was shared
(`archid.store.settling`), and else the copy, which holds still. A file that is known to be the one
that was read for the previous version (`archid.store.source_records`) is not read again; what it
is linked to is. Which files there are, and in which order, is `archid.store.ingest`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from archid.errors import UsageError
from archid.source_listing import facts_of
from archid.store import syscalls
from archid.store.chunk_reading import check_chunks, chunks_of
from archid.store.chunking import Cutter
from archid.store.errors import (
    ChangedWhileReading,
    FileUnreadable,
    NotPublishable,
    storage_error,
)
from archid.store.settling import SettledSources
from archid.store.source_reading import CopyingReader, SourceReader
from archid.store.source_records import NO_FACTS, SourceRecord
from archid.store.tree_folder import TreeFolder
from protocol.entries import FileEntry
from protocol.ids import DIGEST_BYTES
from protocol.layout import Layout
from protocol.limits import MAX_FILE_BYTES
from protocol.pieces import MAX_MTIME_NS

_WRITE_BEHIND_BYTES: Final = 8 << 20
"""Files from this size on may be written by a second thread; below, starting it costs more."""
_SMALL_BYTES: Final = 128 << 10
"""Files up to this size are read by one call and never shared: that is cheaper than asking."""
_NO_LINK: Final = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP})


class SourceFile(NamedTuple):
    """A file to publish: its path in the tree, and a descriptor open for reading."""

    path: str
    descriptor: int
    executable: bool
    mtime_ns: int


class TakenFile(NamedTuple):
    """A file that is in the tree now. `table` has a row of 36 bytes a chunk.

    `facts` tell its source the next time; NO_FACTS where they prove nothing.
    """

    path: str
    executable: bool
    mtime_ns: int
    table: bytes
    size_bytes: int
    linked: bool
    facts: bytes


class PreviousVersion:
    """The version before, by path. `tree` may be missing; then nothing is linked to it.

    `record` tells the files that it was made from, if they are known.
    """

    def __init__(self, layout: Layout, tree: Path, record: SourceRecord | None = None) -> None:
        self.layout = layout
        self.tree = tree
        self._record = record

    def file(self, path: str) -> FileEntry | None:
        """The file that had this path."""
        entry = self.layout.entries.find(path)
        return entry if isinstance(entry, FileEntry) else None

    def known(self, path: str, executable: bool, size_bytes: int, facts: bytes) -> FileEntry | None:
        """The file that was made from a source with these facts, under the same path."""
        file = self.file(path)
        if (
            file is None
            or self._record is None
            or (file.executable, file.size_bytes) != (executable, size_bytes)
            or self._record.facts_of(file.number) != facts
        ):
            return None
        return file


class Intake:
    """What one thread needs to take files: a cutter and folders of its own."""

    def __init__(
        self,
        folder: TreeFolder,
        where: Path,
        cutter: Cutter,
        previous: PreviousVersion | None,
        settled: SettledSources,
        tick: Callable[[int], None],
        *,
        past_the_cache: bool = False,
    ) -> None:
        """`tick` is told the bytes of every read, and may raise to stop.

        With `past_the_cache` copies of large files are written to the disk directly.
        """
        self._past_the_cache = past_the_cache
        self._settled = settled
        self._folder = folder
        self._where = where
        self._cutter = cutter
        self._previous = previous
        self._previous_folder: TreeFolder | None = None
        if previous is not None:
            # Without its tree the previous version still tells which times to keep.
            with contextlib.suppress(OSError):
                self._previous_folder = TreeFolder.at(previous.tree)
        self._tick = tick
        self._umask = _umask()
        self._writer: ThreadPoolExecutor | None = None
        # File systems with which extents cannot be shared, so that not every file asks.
        self._not_shared_with: set[int] = set()

    def close(self) -> None:
        """Close the folders."""
        if self._writer is not None:
            self._writer.shutdown()
        self._folder.close()
        if self._previous_folder is not None:
            self._previous_folder.close()

    def take(self, source: SourceFile, *, spare_core: bool = False) -> TakenFile:
        """Put a copy of the file into the tree, with its final mode and time.

        With `spare_core` a large file is written by another thread than the one that cuts it.
        Raises NotPublishable, FileUnreadable, ChangedWhileReading, UsageError (too large),
        StorageError (DiskFull and its kin).
        """
        try:
            before = os.fstat(source.descriptor)
        except OSError as error:
            raise FileUnreadable(source.path, error) from error
        _check_publishable(source.path, before)
        facts = NO_FACTS
        if self._settled.is_settled(source.descriptor, before):
            facts = facts_of(before)
        old = None if self._previous is None else self._previous.file(source.path)
        if (
            old is not None
            and self._is_unchanged(source, before, old)
            and self._link(source.path, old)
        ):
            table = self._table_of(old)
            self._check_still(source, before)
            return TakenFile(
                source.path, old.executable, old.mtime_ns, table, before.st_size, True, facts
            )
        # Made with its last mode, which does not keep this descriptor from writing.
        mode = 0o555 if source.executable else 0o444
        try:
            fd = self._folder.create_file(source.path, mode)
        except OSError as error:
            raise storage_error(error, self._where / source.path) from error
        try:
            table = self._copy(source, before, fd, settled=facts != NO_FACTS, spare_core=spare_core)
            self._check_still(source, before)
            mtime_ns = min(max(source.mtime_ns, 0), MAX_MTIME_NS)
            if (
                old is not None
                and old.executable == source.executable
                and table == self._table_of(old)
            ):
                mtime_ns = old.mtime_ns
            if self._umask & mode:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        except OSError as error:
            raise storage_error(error, self._where / source.path) from error
        finally:
            os.close(fd)
        return TakenFile(
            source.path, source.executable, mtime_ns, table, before.st_size, False, facts
        )

    def reuse(self, path: str, executable: bool, size_bytes: int, facts: bytes) -> TakenFile | None:
        """Link the old file if its source was one with these facts; None if it has to be read.

        What is linked to is hashed, as always. Raises StorageError.
        """
        if self._previous is None or not size_bytes:
            return None
        old = self._previous.known(path, executable, size_bytes, facts)
        if old is None or not self._link(path, old):
            return None
        return TakenFile(
            path, executable, old.mtime_ns, self._table_of(old), size_bytes, True, facts
        )

    def _copy(
        self,
        source: SourceFile,
        before: os.stat_result,
        fd: int,
        *,
        settled: bool,
        spare_core: bool,
    ) -> bytes:
        if before.st_size <= _SMALL_BYTES:
            return self._copy_small(source, before, fd)
        if self._clone(source, before, fd):
            # Whatever is written to a settled source from now on moves its times, and the caller
            # looks at them when all is read: so far it is what was cloned. Any other may change
            # unnoticed, but the clone, which nobody has read yet, does not.
            chosen = source.descriptor if settled else fd
            return self._cut(SourceReader(source.path, chosen, os.fstat(fd).st_size, self._tick))
        large = before.st_size >= _WRITE_BEHIND_BYTES
        reader = CopyingReader(
            source.path,
            source.descriptor,
            before,
            self._tick,
            target_fd=fd,
            folder=self._where,
            past_the_cache=large and self._past_the_cache,
        )
        # Who writes directly waits for the disk, which takes no core.
        if not large or not (spare_core or self._past_the_cache):
            return self._cut(reader)
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="ingest-write")
        with reader.writing_behind(self._writer):
            return self._cut(reader)

    def _copy_small(self, source: SourceFile, before: os.stat_result, fd: int) -> bytes:
        try:
            data = os.pread(source.descriptor, before.st_size, 0)
        except OSError as error:
            raise FileUnreadable(source.path, error) from error
        if len(data) < before.st_size:
            raise ChangedWhileReading(source.path, "was truncated")
        if data:
            syscalls.pwrite_all(fd, data, 0)
        self._tick(len(data))
        return self._cutter.cut_table(data)

    def _clone(self, source: SourceFile, before: os.stat_result, fd: int) -> bool:
        if before.st_dev in self._not_shared_with:
            return False
        try:
            if syscalls.clone_file(source.descriptor, fd):
                return True
        except OSError as error:
            # Not open for reading: reading it will say so in better words.
            if error.errno != errno.EBADF:
                raise
            return False
        self._not_shared_with.add(before.st_dev)
        return False

    def _cut(self, reader: SourceReader) -> bytes:
        table = bytearray()
        for chunk in self._cutter.cut(reader):
            table += chunk.id
            table += chunk.length.to_bytes(4, "big")
        return bytes(table)

    def _is_unchanged(self, source: SourceFile, before: os.stat_result, old: FileEntry) -> bool:
        """Whether the bytes are the old ones; stops reading at the first chunk that differs."""
        if (
            self._previous is None
            or self._previous_folder is None
            or not before.st_size
            or before.st_size != old.size_bytes
            or source.executable != old.executable
        ):
            return False
        ids = self._previous.layout.ids(chunks_of(old))
        at = 0
        # Not counted as progress: a file that turns out changed is read again from its start.
        reader = SourceReader(source.path, source.descriptor, before.st_size, _tick_nothing)
        for chunk in self._cutter.cut(reader):
            if ids[at : at + DIGEST_BYTES] != chunk.id:
                return False
            at += DIGEST_BYTES
            self._tick(0)
        return at == len(ids)

    def _link(self, path: str, old: FileEntry) -> bool:
        """Hard-link the old file, if it still is what the previous manifest says."""
        if self._previous is None or self._previous_folder is None:
            return False
        layout = self._previous.layout
        try:
            fd = self._previous_folder.open_file(old.path)
        except OSError:
            return False
        try:
            info = os.fstat(fd)
            if (stat.S_IMODE(info.st_mode), info.st_mtime_ns, info.st_size) != (
                old.mode,
                old.mtime_ns,
                old.size_bytes,
            ):
                return False
            for checked in check_chunks(fd, layout, chunks_of(old)):
                if checked.data is None:
                    return False
                self._tick(0)
        except OSError:
            return False
        finally:
            os.close(fd)
        above, _, name = path.rpartition("/")
        try:
            os.link(
                name,
                name,
                src_dir_fd=self._previous_folder.folder(above),
                dst_dir_fd=self._folder.folder(above, create=True),
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise storage_error(error, self._where / path) from error
        self._tick(old.size_bytes)
        return True

    def _table_of(self, old: FileEntry) -> bytes:
        return b"" if self._previous is None else self._previous.layout.table_of(old)

    def _check_still(self, source: SourceFile, before: os.stat_result) -> None:
        after = os.fstat(source.descriptor)
        if after.st_size != before.st_size:
            how = "was truncated" if after.st_size < before.st_size else "grew"
            raise ChangedWhileReading(source.path, how)
        if (after.st_mtime_ns, after.st_ctime_ns) != (before.st_mtime_ns, before.st_ctime_ns):
            raise ChangedWhileReading(source.path, "was changed")


def _umask() -> int:
    """The bits that the process takes from the modes of new files; all if that cannot be told."""
    # os.umask only tells by setting it, for a moment and for every thread.
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777


def _tick_nothing(_: int) -> None:
    return


def _check_publishable(path: str, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        kinds = {
            stat.S_IFSOCK: "a socket",
            stat.S_IFIFO: "a named pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
            stat.S_IFDIR: "a folder where a file was announced",
        }
        raise NotPublishable(path, kinds.get(stat.S_IFMT(info.st_mode), "something else"))
    if info.st_size > MAX_FILE_BYTES:
        raise UsageError(
            f"The file {path} has {info.st_size:,} bytes; at most {MAX_FILE_BYTES:,} can be"
            " published",
            remedy="Split it",
        )
