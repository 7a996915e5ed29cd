"""Finding out what a staging folder really holds, by hashing it.

No record of progress is read, since a power cut can keep a record and lose what it speaks of.
Holes are skipped, files are hashed in a few threads, and everything that the manifest does not
know is removed. Complete files come out of this sealed; what is written afterwards is staging's.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from archid.log import get_logger
from archid.store import syscalls
from archid.store.chunk_reading import check_chunks, chunks_in, chunks_of
from archid.store.placing import seal_file
from archid.store.tree_folder import OPEN_FOLDER_MODE, TreeFolder, remove_entry
from protocol.entries import EntryTable, FileEntry
from protocol.layout import Layout
from protocol.limits import MAX_CHUNK_BYTES
from protocol.pieces import Folder, Link

log = get_logger(__name__)

_PART_BYTES: Final = 64 << 20
_PART_FILES: Final = 256


@dataclass
class Found:
    """The chunks that are verified on disk, by number, and the files that exist and may go on."""

    chunks: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)


class _Present(NamedTuple):
    file: FileEntry
    info: os.stat_result


class _Part(NamedTuple):
    """A stretch of one file that one thread hashes; `end` is exclusive, in bytes."""

    file: FileEntry
    start: int
    end: int


def resume(folder: TreeFolder, layout: Layout, *, threads: int) -> Found:
    """Clean `folder` up and hash what is left. Raises OSError."""
    present = list(_clean(folder.fd, "", layout.entries))
    verified = bytearray(layout.chunk_count)
    batches = list(_batches(present))
    if batches:
        with ThreadPoolExecutor(max(1, threads), "archid-resume") as pool:
            for chunks in pool.map(lambda parts: _hash(folder, layout, parts), batches):
                for at in chunks:
                    verified[at] = 1
    found = Found()
    for file, info in present:
        numbers = chunks_of(file)
        held = verified[numbers.start : numbers.stop]
        if _settle(folder, file, info, complete=all(held)):
            found.started.append(file.number)
            found.chunks += [at for at, good in zip(numbers, held, strict=True) if good]
    return found


def _clean(fd: int, path: str, expected: EntryTable) -> Iterator[_Present]:
    """Remove what does not belong into the folder behind `fd`; give the files that do."""
    os.fchmod(fd, OPEN_FOLDER_MODE)
    with os.scandir(fd) as entries:
        listed = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    for name, info in listed:
        entry = expected.find(f"{path}/{name}" if path else name)
        if isinstance(entry, FileEntry) and stat.S_ISREG(info.st_mode):
            yield _Present(entry, info)
        elif isinstance(entry, Folder) and stat.S_ISDIR(info.st_mode):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            try:
                yield from _clean(inner, entry.path, expected)
            finally:
                os.close(inner)
        elif not (
            isinstance(entry, Link)
            and stat.S_ISLNK(info.st_mode)
            and os.readlink(name, dir_fd=fd) == entry.target
        ):
            log.warning("staging_entry_removed", path=f"{path}/{name}" if path else name)
            remove_entry(fd, name)


def _batches(present: Iterable[_Present]) -> Iterator[list[_Part]]:
    """Cut the work into parts of about the same size: a share of a large file, or many small."""
    batch: list[_Part] = []
    size = 0
    for file, info in present:
        end = min(file.size_bytes, info.st_size)
        for start in range(0, end, _PART_BYTES):
            part = _Part(file, start, min(start + _PART_BYTES, end))
            batch.append(part)
            size += part.end - part.start
            if size >= _PART_BYTES or len(batch) == _PART_FILES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _hash(shared: TreeFolder, layout: Layout, parts: list[_Part]) -> list[int]:
    """The numbers of the chunks that are verified in `parts`; runs in a thread of its own."""
    good: list[int] = []
    with shared.again() as folder:
        for file, start, end in parts:
            try:
                fd = folder.open_file(file.path)
            except FileNotFoundError:
                continue
            try:
                # A chunk belongs to the part in which it starts, and may end in the next.
                reach = min(end + MAX_CHUNK_BYTES, file.size_bytes)
                ranges = list(syscalls.data_ranges(fd, reach, start))
                for run in chunks_in(layout, _starting_in(layout, file, start, end), ranges):
                    good += [at for at, data in check_chunks(fd, layout, run) if data is not None]
            except OSError as error:
                # A sector that cannot be read: what was not verified is fetched again.
                log.warning("staging_unreadable", path=file.path, reason=error.strerror)
            finally:
                os.close(fd)
    return good


def _starting_in(layout: Layout, file: FileEntry, start: int, end: int) -> range:
    numbers = chunks_of(file)

    def offset(at: int) -> int:
        return layout.place(at).offset

    first = bisect_left(numbers, start, key=offset)
    return numbers[first : bisect_left(numbers, end, lo=first, key=offset)]


def _settle(folder: TreeFolder, file: FileEntry, info: os.stat_result, *, complete: bool) -> bool:
    """Bring a file into the state that staging expects; False if it had to be removed."""
    sealed = (
        info.st_size == file.size_bytes
        and stat.S_IMODE(info.st_mode) == file.mode
        and info.st_mtime_ns == file.mtime_ns
    )
    if complete and sealed:
        return True
    if info.st_nlink != 1:
        # Shared with a finished tree or with a stranger: never written through.
        folder.remove(file.path)
        return False
    fd = folder.open_file(file.path)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)
    writable = folder.reopen_file(file.path)
    if writable is None:
        folder.remove(file.path)
        return False
    try:
        if info.st_size > file.size_bytes:
            os.ftruncate(writable, file.size_bytes)
        if complete:
            seal_file(writable, file)
    finally:
        os.close(writable)
    return True
