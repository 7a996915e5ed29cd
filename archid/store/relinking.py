"""Taking over the files that the version before has under the same names, without asking the index.

Most files of a new version are those of the one before. So each is looked for where it would be:
one of the right size, mode and time is read, hashed, and linked if it is what the manifest says.
Nothing is believed of the other tree, and what does not fit is no fault of it: such a file is left
to `archid.store.adoption`, which knows where its content should be, or to the peers.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from archid.store import syscalls
from archid.store.chunk_reading import READ_BYTES
from archid.store.errors import storage_error
from archid.store.staging import Staging
from archid.store.tree_folder import FILE_FLAGS, TreeFolder
from protocol.entries import FileEntry

_BATCH_FILES: Final = 100
# Nothing of that name, something else, too many links, another file system, a disk that fails.
_LEFT_TO_OTHERS: Final = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENXIO,
        errno.EIO,
        errno.ESTALE,
        errno.EMLINK,
        errno.EXDEV,
        errno.EPERM,
        errno.EACCES,
        errno.EEXIST,
    }
)


class Relinked(NamedTuple):
    """What was linked."""

    files: int
    size_bytes: int


def relink(
    staging: Staging, tree: Path, *, stopped: Callable[[], bool] = lambda: False
) -> Relinked:
    """Link what `staging` lacks and the tree of another version has under the same name; blocks.

    Only files of up to READ_BYTES. `stopped` is asked between batches. Raises StorageError.
    """
    files = size_bytes = 0
    try:
        source = TreeFolder.at(tree)
    except OSError:
        return Relinked(0, 0)
    with source:
        work = _Relinking(staging, source)
        for batch in _batches(staging):
            if stopped():
                break
            # For all of a batch: descriptors of folders are good until others use the staging.
            with staging.lock:
                for file in batch:
                    if work.take(file):
                        files += 1
                        size_bytes += file.size_bytes
    return Relinked(files, size_bytes)


def _batches(staging: Staging) -> Iterator[list[FileEntry]]:
    batch: list[FileEntry] = []
    files = staging.layout.files
    for number in range(len(files)):
        if 0 < files.size_bytes(number) <= READ_BYTES:
            batch.append(files[number])
        if len(batch) == _BATCH_FILES:
            yield batch
            batch = []
    if batch:
        yield batch


class _Relinking:
    def __init__(self, staging: Staging, source: TreeFolder) -> None:
        self._staging = staging
        self._layout = staging.layout
        self._source = source
        self._room = memoryview(bytearray(READ_BYTES))

    def take(self, file: FileEntry) -> bool:
        """Link one file, if it is there, whole, and nothing is here of it yet."""
        if self._staging.is_file_started(file):
            return False
        above, _, name = file.path.rpartition("/")
        try:
            folder = self._source.folder(above)
            fd = os.open(name, os.O_RDONLY | FILE_FLAGS, dir_fd=folder)
            try:
                info = os.fstat(fd)
                if not (_is_alike(info, file) and self._holds(fd, file)):
                    return False
            finally:
                os.close(fd)
            target = self._staging.folder.folder(above, create=True)
            os.link(name, name, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
            linked = os.stat(name, dir_fd=target, follow_symlinks=False)
            if (linked.st_dev, linked.st_ino) != (info.st_dev, info.st_ino):
                # The name went to another file since it was hashed.
                os.unlink(name, dir_fd=target)
                return False
        except OSError as error:
            if error.errno in _LEFT_TO_OTHERS:
                return False
            raise storage_error(error, self._staging.path / file.path) from error
        self._staging.count_file(file, info)
        return True

    def _holds(self, fd: int, file: FileEntry) -> bool:
        """Whether the file is what the manifest says, to the byte."""
        data = self._room[: file.size_bytes]
        if syscalls.pread_into(fd, data, 0) != file.size_bytes:
            return False
        if file.chunk_count == 1:
            return blake3(data).digest() == self._layout.ids_of(file)
        found = []
        for offset, length in self._layout.cuts_of(file):
            found.append(blake3(data[offset : offset + length]).digest())
        return b"".join(found) == self._layout.ids_of(file)


def _is_alike(info: os.stat_result, file: FileEntry) -> bool:
    return (
        info.st_size == file.size_bytes
        and info.st_mtime_ns == file.mtime_ns
        and info.st_mode == stat.S_IFREG | file.mode
    )
