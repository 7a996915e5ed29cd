"""A version on its way to becoming a tree: verified bytes in, one rename at the end.

What is in the staging folder is the only record of progress, and it is believed only after it was
hashed again, so a process may be killed at any point. Every byte that is written was hashed just
before. Where chunks come from is left to others: the fetcher brings spans (`write_spans`),
`archid.store.adoption` brings what other versions already hold.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Self

from archid.errors import NotFound, StorageError
from archid.store import syscalls
from archid.store.chunk_reading import check_chunks
from archid.store.chunk_writes import ChunkWrite, by_file, write_runs
from archid.store.errors import ChunkMissing, DiskFull, storage_error
from archid.store.file_objects import FileObjects
from archid.store.filling import Filling, Verified
from archid.store.placing import make_bare_entries, place_tree, seal_file, seal_folders
from archid.store.resuming import resume
from archid.store.syscalls import Buffer
from archid.store.tree_folder import TreeFolder, make_folder, open_folder, remove_tree
from archid.store.whole_files import WholeFile, WholeFiles
from archid.store.writeback import Writeback
from protocol.entries import FileEntry
from protocol.layout import Layout, Span, Stretch

MAX_OPEN_FILES: Final = 64
WRITEBACK_BYTES: Final = 32 << 20
SPACE_MARGIN_BYTES: Final = 16 << 20
"""Kept free for folders, databases and whatever else has to be written to finish."""
_BINARY_DIGITS: Final = bytes.maketrans(b"\0\1", b"01")


class Staging(Filling):
    """One version being put together in ``staging/<manifest>``.

    Methods block and may be called from any thread; what comes from peers is hashed outside of the
    lock, so that several threads can bring chunks. Relinking holds it: nothing else runs then.
    """

    def __init__(self, path: Path, folder: TreeFolder, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self.folder = folder
        self.lock = threading.RLock()
        self._held = bytearray(layout.chunk_count)
        self._missing_of = layout.files.chunk_counts()
        self._started = bytearray(len(layout.files))
        self._open_files: OrderedDict[int, int] = OrderedDict()
        self._whole_files = WholeFiles(folder)
        self.objects: Final = FileObjects.unknown(layout)
        """What files are that were linked: nobody need look at these again."""
        self._repeats = layout.repeats
        self.held_bytes = 0
        self._dirty_bytes = 0
        self._writeback = Writeback()

    @classmethod
    def open(cls, path: Path, layout: Layout, *, threads: int = 2) -> Self:
        """Start or resume; hashes everything that is there. Raises StorageError.

        Files that do not belong are removed, wrong content counts as missing; nothing outside of
        `path` is touched, whatever was put in its place.
        """
        try:
            parent = open_folder(path.parent)
            try:
                folder = TreeFolder(make_folder(parent, path.name))
            finally:
                os.close(parent)
            staging = cls(path, folder, layout)
            try:
                staging._take_over(threads)
            except BaseException:
                staging.close()
                raise
        except OSError as error:
            raise storage_error(error, path) from error
        return staging

    def close(self) -> None:
        """Let go of every descriptor; what was written stays and can be resumed."""
        with self.lock:
            self._close_files()
            self._whole_files.close()
            self.folder.close()

    def discard(self) -> None:
        """Remove everything that was staged; raises StorageError."""
        self.close()
        try:
            remove_tree(self.path)
        except OSError as error:
            raise storage_error(error, self.path) from error

    # -- what is here

    def is_held(self, at: int) -> bool:
        """Whether the chunk at `at` is verified at every place where the manifest wants it."""
        home = self.layout.home(at)
        held = self._held
        return bool(held[home]) and all(held[n] for n in self._repeats.get(home, ()))

    def is_span_held(self, span: Span) -> bool:
        """As `Filling` says; asked of every span of an offer, in the event loop too."""
        chunks, held = span.chunks, self._held
        if held.find(1, chunks.start, chunks.stop) < 0:
            return all(self.layout.home(at) != at for at in chunks)
        if self.layout.are_single(chunks):
            return held.find(0, chunks.start, chunks.stop) < 0
        return super().is_span_held(span)

    def skip(self, span: Span) -> bytes:
        """As `Filling` says; in a version of which little changed it is asked for every span."""
        if not self.layout.are_single(span.chunks):
            return super().skip(span)
        held = self._held[span.first_chunk : span.chunks.stop]
        if held.find(1) < 0:
            return b""
        # The first chunk is the lowest bit.
        bits = int(held[::-1].translate(_BINARY_DIGITS), 2)
        return bits.to_bytes((span.chunk_count + 7) // 8, "little")

    def is_file_complete(self, file: FileEntry) -> bool:
        return self._missing_of[file.number] == 0

    def is_file_started(self, number: int) -> bool:
        return bool(self._started[number])

    def require_space(self) -> None:
        """Raise DiskFull unless what is missing fits on the disk with some room to spare."""
        needed = self.missing_bytes + SPACE_MARGIN_BYTES
        available = syscalls.available_bytes(self.folder.fd)
        if needed > available:
            raise DiskFull(self.path, needed_bytes=needed, available_bytes=available)

    # -- bytes in

    def write_chunks(self, chunks: Iterable[tuple[int, Buffer]]) -> None:
        """Write chunks, by number, whose bytes the caller has hashed; raises StorageError."""
        with self.lock:
            self._write(chunks)

    def write_verified(self, verified: Iterable[Verified]) -> None:
        """As `Filling` says; what is new and stands at one place only is written as it came."""
        others: list[Verified] = []
        whole: list[WholeFile] = []
        files, started = self.layout.files, self._started
        coming: set[int] = set()
        with self.lock:
            for chunks, data in verified:
                start = 0
                for stretch in self.layout.stretches(chunks):
                    part = data[start : start + stretch.size_bytes]
                    start += stretch.size_bytes
                    file = files[stretch.file]
                    if not self._is_new(stretch.chunks) or file.number in coming:
                        others.append(Verified(stretch.chunks, part))
                    elif len(stretch.chunks) == file.chunk_count and not started[file.number]:
                        whole.append(WholeFile(file, part))
                        coming.add(file.number)
                    else:
                        self._write_stretch(stretch, part)
            if whole:
                self._write_whole(whole)
            super().write_verified(others)

    def open_for_reading(self, file: FileEntry) -> int:
        """A descriptor of a staged file, the caller's to close; raises OSError.

        Raises NotFound (code unknown_manifest) when this staging has been closed.
        """
        with self.lock:
            if self.folder.fd < 0:
                raise NotFound(
                    f"The manifest {self.layout.manifest.short} is not being fetched any more",
                    code="unknown_manifest",
                )
            return self.folder.open_file(file.path)

    def forget_chunk(self, at: int) -> None:
        """A chunk was found rotten where it stands: it is missing again, at every place."""
        home = self.layout.home(at)
        with self.lock:
            for n in (home, *self._repeats.get(home, ())):
                self._uncount(n)

    def finish(self, target: Path) -> None:
        """Make the tree appear at `target`, whole, read-only and on disk; raises as `seal`.

        After an error this can be called again, also by the next process.
        """
        self.seal()
        self.appear(target)

    def appear(self, target: Path) -> None:
        """What is left after `seal`: the sync and the rename. Raises StorageError."""
        with self.lock:
            place_tree(self.path, target)
            self._whole_files.close()
            self.folder.close()

    def seal(self) -> None:
        """Bring everything into its last state, but for the sync and the rename.

        Raises ChunkMissing when something is still missing, StorageError.
        """
        with self.lock:
            if (at := self._held.find(0)) >= 0:
                raise ChunkMissing(self.layout.chunk(at).id)
            try:
                make_bare_entries(self.folder, self.layout)
                seal_folders(self.folder, self.layout)
                self._close_files()
            except OSError as error:
                raise storage_error(error, self.path) from error

    # -- used by adoption, which brings whole files

    def count_file(self, number: int, info: os.stat_result) -> None:
        """Count a file that was verified in place, sealed, and is not to be written any more."""
        with self.lock:
            self._drop_open(number)
            self._forget(number)
            self._count_whole(number)
            self.objects.put(number, info)

    def count_chunks(self, file: FileEntry, chunks: Iterable[int]) -> None:
        """Count chunks that were verified in a file that was put in place; seal it if complete."""
        with self.lock:
            self._started[file.number] = 1
            self._drop_open(file.number)
            for at in chunks:
                self._count(at)
            if not self._missing_of[file.number]:
                fd = self._open_for_writing(file)
                seal_file(fd, file)
                self._drop_open(file.number)

    # -- inside, with the lock held

    def _take_over(self, threads: int) -> None:
        found = resume(self.folder, self.layout, threads=threads)
        for number in found.started:
            self._started[number] = 1
        for at in found.chunks:
            self._count(at)
        self._fill_repeats()

    def _fill_repeats(self) -> None:
        """Copy chunks that a killed process wrote to some of their places to the others."""
        for home, repeats in self._repeats.items():
            every = [home, *repeats]
            held = [at for at in every if self._held[at]]
            if not held or len(held) == len(every):
                continue
            place = self.layout.place(held[0])
            fd = self.folder.open_file(self.layout.files.path(place.file))
            try:
                [checked] = check_chunks(fd, self.layout, range(held[0], held[0] + 1))
            finally:
                os.close(fd)
            if checked.data is not None:
                self._write([(home, checked.data)])

    def _is_new(self, chunks: range) -> bool:
        held = self._held.find(1, chunks.start, chunks.stop)
        return held < 0 and self.layout.are_single(chunks)

    def _write_stretch(self, stretch: Stretch, data: memoryview) -> None:
        file, chunks = self.layout.files[stretch.file], stretch.chunks
        try:
            fd = self._open_for_writing(file)
            syscalls.pwrite_all(fd, data, stretch.offset)
            self._held[chunks.start : chunks.stop] = b"\1" * len(chunks)
            self.held_bytes += stretch.size_bytes
            self._missing_of[file.number] -= len(chunks)
            self._written(fd, file, stretch.size_bytes)
        except OSError as error:
            raise self._fault(error, file) from error

    def _write_whole(self, batch: Sequence[WholeFile]) -> None:
        fault: StorageError | None = None
        for part, (done, error) in self._whole_files.write(batch):
            for file, _ in part[:done]:
                self._count_whole(file.number)
            if error is not None:
                # It may have been begun; not being counted so, it is made anew the next time.
                fault = self._fault(error, part[done].file)
        if fault is not None:
            raise fault

    def _written(self, fd: int, file: FileEntry, size_bytes: int) -> None:
        """So many bytes of a file were written and counted."""
        self._dirty_bytes += size_bytes
        if not self._missing_of[file.number]:
            seal_file(fd, file)
            self._drop_open(file.number)
        elif self._dirty_bytes >= WRITEBACK_BYTES:
            # The disk begins while there is more to come, so that the sync at the end is short.
            self._dirty_bytes = 0
            self._writeback.start(fd)

    def _write(self, chunks: Iterable[tuple[int, Buffer]]) -> None:
        place, home, held = self.layout.place, self.layout.home, self._held
        writes = (
            ChunkWrite(*place(n), n, data)
            for at, data in chunks
            for n in (home(at), *self._repeats.get(home(at), ()))
            if not held[n]
        )
        for number, group in by_file(writes):
            file = self.layout.files[number]
            try:
                self._write_file(file, group)
            except OSError as error:
                raise self._fault(error, file) from error

    def _write_file(self, file: FileEntry, writes: list[ChunkWrite]) -> None:
        fd = self._open_for_writing(file)
        for run in write_runs(writes, self.layout.length):
            syscalls.pwritev_all(fd, run.parts, run.offset)
            for at in run.chunks:
                self._count(at)
        self._written(fd, file, sum(self.layout.length(write.at) for write in writes))

    def _fault(self, error: OSError, file: FileEntry) -> StorageError:
        fault = storage_error(error, self.path / file.path, needed_bytes=self.missing_bytes)
        if isinstance(fault, DiskFull):
            available = syscalls.available_bytes(self.folder.fd)
            return DiskFull(self.path / file.path, self.missing_bytes, available)
        return fault

    def _count_whole(self, number: int) -> None:
        """Count a file of which nothing was."""
        chunks = self.layout.files.chunks(number)
        self._started[number] = 1
        self._held[chunks.start : chunks.stop] = b"\1" * len(chunks)
        self._missing_of[number] = 0
        self.held_bytes += self.layout.files.size_bytes(number)

    def _count(self, at: int) -> None:
        if not self._held[at]:
            self._held[at] = 1
            self.held_bytes += self.layout.length(at)
            self._missing_of[self.layout.place(at).file] -= 1

    def _open_for_writing(self, file: FileEntry) -> int:
        fd = self._open_files.get(file.number)
        if fd is not None:
            self._open_files.move_to_end(file.number)
            return fd
        reopened = self.folder.reopen_file(file.path) if self._started[file.number] else None
        if reopened is None:
            self._forget(file.number)
            reopened = self.folder.create_file(file.path, 0o600)
            self._started[file.number] = 1
        self._open_files[file.number] = reopened
        if len(self._open_files) > MAX_OPEN_FILES:
            os.close(self._open_files.popitem(last=False)[1])
        return reopened

    def _forget(self, number: int) -> None:
        """The file is gone or shared with others: whatever was counted in it is missing again."""
        self.objects.forget(number)
        chunks = self.layout.files.chunks(number)
        if self._missing_of[number] < len(chunks):
            for at in chunks:
                self._uncount(at)

    def _uncount(self, at: int) -> None:
        if self._held[at]:
            self._held[at] = 0
            self.held_bytes -= self.layout.length(at)
            self._missing_of[self.layout.place(at).file] += 1

    def _drop_open(self, number: int) -> None:
        fd = self._open_files.pop(number, None)
        if fd is not None:
            os.close(fd)

    def _close_files(self) -> None:
        while self._open_files:
            os.close(self._open_files.popitem()[1])
