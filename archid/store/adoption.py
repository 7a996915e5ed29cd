"""Taking over what other versions on this disk already hold, before a peer is asked.

Whole files come first: those of the version before by their names, others by where the index says
that their content is; hard-linked when content, mode and time agree, since links share all three,
otherwise sharing extents where the file system can. Then single chunks are copied. Local
bytes are hashed before they count, because a disk may have changed them since; what turns out
rotten is reported, so that it gets repaired, and is fetched like anything that is missing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, TypeVar

from blake3 import blake3

from archid.store import syscalls
from archid.store.chunk_reading import READ_BYTES, check_chunks, chunks_of
from archid.store.errors import storage_error
from archid.store.filling import Filling
from archid.store.index import Location
from archid.store.index_rows import LOOKUP_BATCH
from archid.store.relinking import relink
from archid.store.staging import Staging
from archid.store.syscalls import Buffer
from archid.store.tree_folder import TreeFolder
from protocol.entries import FileEntry
from protocol.ids import ChunkId, ManifestId

Find: TypeAlias = Callable[[Sequence[ChunkId]], Mapping[ChunkId, Sequence[Location]]]
"""`ChunkIndex.find_blocking`, or anything that says where chunks may be."""

WRITE_BATCH_BYTES: Final = 8 << 20
_MAX_REPORTED: Final = 1000
# Too many links, another file system, or none of our business to link: then it is copied.
_CANNOT_LINK: Final = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EACCES})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.ESTALE})

_T = TypeVar("_T")


class Rotten(NamedTuple):
    """A file in a tree that no longer holds a chunk that the index says it holds."""

    manifest: ManifestId
    path: str
    chunk: ChunkId


@dataclass
class Adopted:
    """What was taken over, and what was found rotten on the way."""

    linked_files: int = 0
    linked_bytes: int = 0
    cloned_bytes: int = 0
    copied_bytes: int = 0
    rotten: list[Rotten] = field(default_factory=list)


def adopt_local(
    staging: Staging,
    find: Find,
    trees: Path,
    *,
    before: ManifestId | None = None,
    stopped: Callable[[], bool] = lambda: False,
    before_copies: Callable[[], None] = lambda: None,
) -> Adopted:
    """Fill `staging` with what the trees in the folder `trees` hold; blocks; repeatable.

    `before` is a version of which most files are likely to be the same. `stopped` is asked between
    batches. `before_copies` is called when all that costs no space is
    done: what is missing then has to be written, be it from here or from peers; it may refuse by
    raising. Raises StorageError; what was taken over by then stays.
    """
    adoption = _Adoption(staging, find, trees)
    try:
        if before is not None:
            adoption.take_same_names(before, stopped)
        for numbers in _batches(_whole_files(staging), LOOKUP_BATCH):
            if stopped():
                break
            adoption.take_files(numbers)
        if not stopped():
            before_copies()
        for chunks in _batches(adoption.chunks_to_look_for(), LOOKUP_BATCH):
            if stopped():
                break
            adoption.take_chunks(chunks)
    finally:
        adoption.close()
    return adoption.report


def adopt_chunks(
    filling: Filling, find: Find, trees: Path, *, stopped: Callable[[], bool] = lambda: False
) -> Adopted:
    """Bring the single chunks that `filling` lacks and some tree here holds; as `adopt_local`."""
    copying = _Copying(filling, find, trees)
    try:
        for chunks in _batches(iter(filling.missing_chunks()), LOOKUP_BATCH):
            if stopped():
                break
            copying.take_chunks(chunks)
    finally:
        copying.close()
    return copying.report


class _Copying:
    """Chunks that are copied from trees at hand."""

    def __init__(self, filling: Filling, find: Find, trees: Path) -> None:
        self.report = Adopted()
        self._filling = filling
        self._layout = filling.layout
        self._find = find
        self._trees = trees
        self._sources: dict[ManifestId, TreeFolder | None] = {}

    def close(self) -> None:
        for source in self._sources.values():
            if source is not None:
                source.close()
        self._sources.clear()

    def take_chunks(self, chunks: Sequence[int]) -> None:
        """Copy what is found of these chunks (numbers, at their homes)."""
        wanted = [at for at in chunks if not self._filling.is_held(at)]
        ids = {at: self._layout.chunk(at).id for at in wanted}
        locations = self._find(list(ids.values()))
        # By file and offset, so that neighbours are read in one call.
        found = sorted(
            (place.manifest, place.path, place.offset, at)
            for at in wanted
            for place in locations.get(ids[at], ())[:1]
        )
        failed = self._copy(found)
        for at in failed:
            others = locations[ids[at]][1:]
            for place in others:
                if not self._copy([(place.manifest, place.path, place.offset, at)]):
                    break

    def _copy(self, found: Sequence[tuple[ManifestId, str, int, int]]) -> list[int]:
        """Copy chunks given as (manifest, path, offset, number); returns those that failed."""
        failed: list[int] = []
        batch: list[tuple[int, Buffer]] = []
        size = 0
        for run in _runs(found, self._layout.length):
            for at, data in self._read(run):
                if data is None:
                    failed.append(at)
                    continue
                batch.append((at, data))
                size += len(data)
            if size >= WRITE_BATCH_BYTES:
                self._filling.write_chunks(batch)
                self.report.copied_bytes += size
                batch, size = [], 0
        self._filling.write_chunks(batch)
        self.report.copied_bytes += size
        return failed

    def _read(
        self, run: Sequence[tuple[ManifestId, str, int, int]]
    ) -> Iterator[tuple[int, memoryview | None]]:
        manifest, path, offset, _ = run[0]
        refs = [self._layout.chunk(at) for *_, at in run]
        fd = self._open(manifest, path)
        view = memoryview(bytearray(sum(ref.length for ref in refs)))
        count = 0
        if fd is not None:
            try:
                count = syscalls.pread_into(fd, view, offset)
            except OSError as error:
                if error.errno not in _GONE:
                    raise storage_error(error, self._trees / manifest.hex() / path) from error
            finally:
                os.close(fd)
        start = 0
        for ref, (*_, at) in zip(refs, run, strict=True):
            data = view[start : start + ref.length]
            start += ref.length
            if start <= count and blake3(data).digest() == ref.id:
                yield at, data
            else:
                if fd is not None:
                    self._report(manifest, path, ref.id)
                yield at, None

    def _open(self, manifest: ManifestId, path: str) -> int | None:
        source = self._source(manifest)
        if source is None:
            return None
        try:
            return source.open_file(path)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise storage_error(error, self._trees / manifest.hex() / path) from error

    def _source(self, manifest: ManifestId) -> TreeFolder | None:
        if manifest not in self._sources:
            try:
                source = TreeFolder.at(self._trees / manifest.hex())
            except OSError:
                # The index is behind: the tree is gone.
                source = None
            self._sources[manifest] = source
        return self._sources[manifest]

    def _report(self, manifest: ManifestId, path: str, chunk: ChunkId) -> None:
        if len(self.report.rotten) < _MAX_REPORTED:
            self.report.rotten.append(Rotten(manifest, path, chunk))


class _Adoption(_Copying):
    """Whole files and chunks, taken into a version that is being put together."""

    def __init__(self, staging: Staging, find: Find, trees: Path) -> None:
        super().__init__(staging, find, trees)
        self._staging = staging
        self._can_clone = True
        self._nowhere = bytearray(staging.layout.chunk_count)

    def take_same_names(self, before: ManifestId, stopped: Callable[[], bool]) -> None:
        """Take over what another version has under the same names."""
        linked = relink(self._staging, self._trees / before.hex(), stopped=stopped)
        self.report.linked_files += linked.files
        self.report.linked_bytes += linked.size_bytes

    def chunks_to_look_for(self) -> Iterator[int]:
        """The chunks that are missing and were not looked for in vain already."""
        return (at for at in self._staging.missing_chunks() if not self._nowhere[at])

    def take_files(self, numbers: Sequence[int]) -> None:
        """Take over every one of these files whose content stands somewhere as a whole."""
        files = self._layout.files
        starts = [files.chunks(number).start for number in numbers]
        firsts = [self._layout.chunk(start).id for start in starts]
        locations = self._find(list(dict.fromkeys(firsts)))
        for number, start, first in zip(numbers, starts, firsts, strict=True):
            if first not in locations:
                self._nowhere[self._layout.home(start)] = 1
                continue
            file = files[number]
            candidates = [
                place
                for place in locations[first]
                if place.offset == 0 and place.size_bytes == file.size_bytes
            ]
            # One that can be linked costs least.
            candidates.sort(key=lambda place: not _same_metadata(place, file))
            for place in candidates:
                if self._take_file(file, place):
                    break

    def _take_file(self, file: FileEntry, place: Location) -> bool:
        fd = self._open(place.manifest, place.path)
        if fd is None:
            return False
        path = self._trees / place.manifest.hex() / place.path
        try:
            info = os.fstat(fd)
            if info.st_size != file.size_bytes:
                return False
            linkable = (info.st_mode & 0o7777, info.st_mtime_ns) == (file.mode, file.mtime_ns)
            if not linkable and not self._can_clone:
                return False
            if not self._holds(fd, file, place):
                return False
            with self._staging.lock:
                # A peer may have brought a part of it meanwhile.
                return (
                    self._staging.is_file_started(file.number)
                    or (linkable and self._link(file, place, info))
                    or self._clone(fd, file)
                )
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise storage_error(error, path) from error
        finally:
            os.close(fd)

    def _holds(self, fd: int, file: FileEntry, place: Location) -> bool:
        for at, data in check_chunks(fd, self._layout, chunks_of(file)):
            if data is None:
                if at == file.first_chunk:
                    self._report(place.manifest, place.path, self._layout.chunk(at).id)
                return False
        return True

    def _link(self, file: FileEntry, place: Location, info: os.stat_result) -> bool:
        source = self._source(place.manifest)
        if source is None:
            return False
        above, _, name = place.path.rpartition("/")
        folder, _, own = file.path.rpartition("/")
        target = self._staging.folder.folder(folder, create=True)
        try:
            os.link(
                name,
                own,
                src_dir_fd=source.folder(above),
                dst_dir_fd=target,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
        linked = os.stat(own, dir_fd=target, follow_symlinks=False)
        if (linked.st_dev, linked.st_ino) != (info.st_dev, info.st_ino):
            # The name went to another file since it was hashed.
            os.unlink(own, dir_fd=target)
            return False
        self._staging.count_file(file.number, info)
        self.report.linked_files += 1
        self.report.linked_bytes += file.size_bytes
        return True

    def _clone(self, source_fd: int, file: FileEntry) -> bool:
        """Share the extents of a whole file, and believe only what then is in the copy."""
        if not self._can_clone:
            return False
        fd = self._staging.folder.create_file(file.path, 0o600)
        try:
            if not syscalls.clone_file(source_fd, fd):
                self._can_clone = False
                return False
            good = [
                at
                for at, data in check_chunks(fd, self._layout, chunks_of(file))
                if data is not None
            ]
        finally:
            os.close(fd)
        self._staging.count_chunks(file, good)
        self.report.cloned_bytes += file.size_bytes
        return True


def _same_metadata(place: Location, file: FileEntry) -> bool:
    return (place.mtime_ns, place.executable) == (file.mtime_ns, file.executable)


def _whole_files(staging: Staging) -> Iterator[int]:
    """The numbers of the files of which nothing is here yet."""
    files = staging.layout.files
    return (
        number
        for number in range(len(files))
        if files.size_bytes(number) and not staging.is_file_started(number)
    )


def _runs(
    found: Iterable[tuple[ManifestId, str, int, int]], length_of: Callable[[int], int]
) -> Iterator[list[tuple[ManifestId, str, int, int]]]:
    """Chunks that follow one another in one file, up to about READ_BYTES together."""
    run: list[tuple[ManifestId, str, int, int]] = []
    end = 0
    for item in found:
        manifest, path, offset, at = item
        if run and (
            run[-1][:2] != (manifest, path) or offset != end or end - run[0][2] > READ_BYTES
        ):
            yield run
            run = []
        run.append(item)
        end = offset + length_of(at)
    if run:
        yield run


def _batches(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while batch := list(islice(items, size)):
        yield batch
