"""A version on its way to becoming a tree: verified bytes in, one rename at the end.

What is in the staging folder is the only record of progress, and it is believed only after it was
hashed again, so a process may be killed at any point. Every byte that is written was hashed just
before. Where chunks come from is left to others: the fetcher brings spans (`write_spans`),
`archid.store.adoption` brings what other versions already hold.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple, Self

from blake3 import blake3

from archid.errors import NotFound, StorageError
from archid.store import syscalls
from archid.store.chunk_reading import READ_BYTES, check_chunks, chunks_of
from archid.store.errors import ChunkCorrupt, ChunkMissing, DiskFull, storage_error
from archid.store.placing import make_bare_entries, place_tree, seal_file, seal_folders
from archid.store.resuming import resume
from archid.store.syscalls import Buffer
from archid.store.tree_folder import TreeFolder, make_folder, open_folder, remove_tree
from protocol.layout import FileEntry, Layout, Span

MAX_OPEN_FILES: Final = 64
SPACE_MARGIN_BYTES: Final = 16 << 20
"""Kept free for folders, databases and whatever else has to be written to finish."""


class SpanBytes(NamedTuple):
    """A span's chunks as a peer sent them: those whose bit in `skip` is 0, one after the other."""

    span: Span
    skip: bytes
    data: Buffer


class _Write(NamedTuple):
    file: int
    offset: int
    at: int
    data: Buffer


class Staging:
    """One version being put together in ``staging/<manifest>``.

    Methods block and may be called from any thread; hashing runs outside of the lock, so several
    threads can bring chunks.
    """

    def __init__(self, path: Path, folder: TreeFolder, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self.folder = folder
        self.lock = threading.RLock()
        self._held = bytearray(layout.chunk_count)
        self._missing_of = array("I", (file.chunk_count for file in layout.files))
        self._started = bytearray(len(layout.files))
        self._open_files: OrderedDict[int, int] = OrderedDict()
        self._repeats: dict[int, list[int]] = {}
        for at in range(layout.chunk_count):
            if (home := layout.home(at)) != at:
                self._repeats.setdefault(home, []).append(at)
        self.held_bytes = 0

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
            self.folder.close()

    def discard(self) -> None:
        """Remove everything that was staged; raises StorageError."""
        self.close()
        try:
            remove_tree(self.path)
        except OSError as error:
            raise storage_error(error, self.path) from error

    # -- what is here

    @property
    def is_complete(self) -> bool:
        return self.held_bytes == self.layout.root.size_bytes

    @property
    def missing_bytes(self) -> int:
        return self.layout.root.size_bytes - self.held_bytes

    def is_held(self, at: int) -> bool:
        """Whether the chunk at `at` is verified at every place where the manifest wants it."""
        home = self.layout.home(at)
        held = self._held
        return bool(held[home]) and all(held[n] for n in self._repeats.get(home, ()))

    def is_span_held(self, span: Span) -> bool:
        """Whether nothing of this span has to be asked for."""
        home = self.layout.home
        return all(home(at) != at or self.is_held(at) for at in span.chunks)

    def held_spans(self) -> set[int]:
        """The indexes into ``layout.spans`` of the spans that are held."""
        return {n for n, span in enumerate(self.layout.spans) if self.is_span_held(span)}

    def skip(self, span: Span) -> bytes:
        """The bitmap for a request: chunks that are held or have their home in another span.

        Bit i is ``skip[i // 8] >> (i % 8) & 1``; empty when everything is wanted.
        """
        bits = bytearray((span.chunk_count + 7) // 8)
        for n, at in enumerate(span.chunks):
            if self.layout.home(at) != at or self.is_held(at):
                bits[n // 8] |= 1 << n % 8
        return bytes(bits) if any(bits) else b""

    def missing_chunks(self) -> list[int]:
        """The numbers, at their homes, of all chunks that are not held."""
        return [at for at in self.layout.distinct_chunks() if not self.is_held(at)]

    def is_file_complete(self, file: FileEntry) -> bool:
        return self._missing_of[file.number] == 0

    def is_file_started(self, file: FileEntry) -> bool:
        return bool(self._started[file.number])

    def require_space(self) -> None:
        """Raise DiskFull unless what is missing fits on the disk with some room to spare."""
        needed = self.missing_bytes + SPACE_MARGIN_BYTES
        available = syscalls.available_bytes(self.folder.fd)
        if needed > available:
            raise DiskFull(self.path, needed_bytes=needed, available_bytes=available)

    # -- bytes in

    def write_span(self, span: Span, skip: bytes, data: Buffer) -> None:
        """Verify and write one span; raises ChunkCorrupt (nothing is written), StorageError."""
        [fault] = self.write_spans([SpanBytes(span, skip, data)])
        if fault is not None:
            raise fault

    def write_spans(self, received: Sequence[SpanBytes]) -> list[ChunkCorrupt | None]:
        """Verify and write a batch: the larger, the fewer system calls for small files.

        Answers for each span None, or what was wrong with it; then nothing of it was written.
        Raises StorageError (DiskFull, read-only); then some may have been written, and whatever
        was written is counted.
        """
        results: list[ChunkCorrupt | None] = []
        good: list[tuple[int, Buffer]] = []
        for span, skip, data in received:
            try:
                good += self._verified(span, skip, data)
                results.append(None)
            except ChunkCorrupt as fault:
                results.append(fault)
        self.write_chunks(good)
        return results

    def write_chunks(self, chunks: Iterable[tuple[int, Buffer]]) -> None:
        """Write chunks, by number, whose bytes the caller has hashed; raises StorageError."""
        with self.lock:
            self._write(chunks)

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
        """Make the tree appear at `target`, whole, read-only and on disk.

        Raises ChunkMissing when something is still missing, StorageError. After an error this
        can be called again, also by the next process.
        """
        with self.lock:
            for file in self.layout.files:
                if self._missing_of[file.number]:
                    at = next(n for n in chunks_of(file) if not self._held[n])
                    raise ChunkMissing(self.layout.chunk(at).id)
            try:
                make_bare_entries(self.folder, self.layout)
                seal_folders(self.folder, self.layout)
                self._close_files()
            except OSError as error:
                raise storage_error(error, self.path) from error
            place_tree(self.path, target)
            self.folder.close()

    # -- used by adoption, which brings whole files

    def count_file(self, file: FileEntry) -> None:
        """Count a file that was verified in place, sealed, and is not to be written any more."""
        with self.lock:
            self._started[file.number] = 1
            self._drop_open(file.number)
            for at in chunks_of(file):
                self._count(at)

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
            fd = self.folder.open_file(self.layout.files[place.file].path)
            try:
                [checked] = check_chunks(fd, self.layout, range(held[0], held[0] + 1))
            finally:
                os.close(fd)
            if checked.data is not None:
                self._write([(home, checked.data)])

    def _verified(self, span: Span, skip: bytes, data: Buffer) -> list[tuple[int, Buffer]]:
        view = memoryview(data)
        chunks: list[tuple[int, Buffer]] = []
        start = 0
        for n, at in enumerate(span.chunks):
            if n // 8 < len(skip) and skip[n // 8] >> n % 8 & 1:
                continue
            ref = self.layout.chunk(at)
            part = view[start : start + ref.length]
            start += ref.length
            if blake3(part).digest() != ref.id:
                raise ChunkCorrupt(ref.id, f"in span {span.n} of piece {span.piece.short}")
            chunks.append((at, part))
        if start != len(view):
            raise ChunkCorrupt(
                self.layout.chunk(span.first_chunk).id,
                f"in span {span.n} of piece {span.piece.short}, which came with"
                f" {len(view) - start} bytes too many",
            )
        return chunks

    def _write(self, chunks: Iterable[tuple[int, Buffer]]) -> None:
        place, home, held = self.layout.place, self.layout.home, self._held
        writes = [
            _Write(*place(n), n, data)
            for at, data in chunks
            for n in (home(at), *self._repeats.get(home(at), ()))
            if not held[n]
        ]
        writes.sort(key=_POSITION)
        for number, group in groupby(writes, key=_FILE):
            file = self.layout.files[number]
            try:
                self._write_file(file, list(group))
            except OSError as error:
                raise self._fault(error, file) from error

    def _write_file(self, file: FileEntry, writes: list[_Write]) -> None:
        fd = self._open_for_writing(file)
        first = 0
        while first < len(writes):
            offset = end = writes[first].offset
            parts: list[Buffer] = []
            last = first
            # No longer than this: what is counted after each run survives a disk that is full.
            while last < len(writes) and writes[last].offset <= end and end - offset < READ_BYTES:
                # The same chunk twice in one batch (asked of two peers) is written once.
                if writes[last].offset == end:
                    parts.append(writes[last].data)
                    end += self.layout.length(writes[last].at)
                last += 1
            syscalls.pwritev_all(fd, parts, offset)
            for write in writes[first:last]:
                self._count(write.at)
            first = last
        if not self._missing_of[file.number]:
            seal_file(fd, file)
            self._drop_open(file.number)

    def _fault(self, error: OSError, file: FileEntry) -> StorageError:
        fault = storage_error(error, self.path / file.path, needed_bytes=self.missing_bytes)
        if isinstance(fault, DiskFull):
            available = syscalls.available_bytes(self.folder.fd)
            return DiskFull(self.path / file.path, self.missing_bytes, available)
        return fault

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
            self._forget(file)
            reopened = self.folder.create_file(file.path, 0o600)
            self._started[file.number] = 1
        self._open_files[file.number] = reopened
        if len(self._open_files) > MAX_OPEN_FILES:
            os.close(self._open_files.popitem(last=False)[1])
        return reopened

    def _forget(self, file: FileEntry) -> None:
        """The file is gone or shared with others: whatever was counted in it is missing again."""
        for at in chunks_of(file):
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


_POSITION: Final = itemgetter(0, 1)
_FILE: Final = itemgetter(0)
