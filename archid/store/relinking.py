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
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from archid.store.chunk_reading import READ_BYTES
from archid.store.errors import storage_error
from archid.store.staging import Staging
from archid.store.tree_folder import FILE_FLAGS, TreeFolder
from protocol.entries import mode_of

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
    try:
        source = TreeFolder.at(tree)
    except OSError:
        return Relinked(0, 0)
    linked = Relinked(0, 0)
    count = len(staging.layout.files)
    with source:
        work = _Relinking(staging, source)
        for first in range(0, count, _BATCH_FILES):
            if stopped():
                break
            # For all of a batch: descriptors of folders are good until others use the staging.
            with staging.lock:
                more = work.take(range(first, min(count, first + _BATCH_FILES)))
            linked = Relinked(*map(sum, zip(linked, more, strict=True)))
    return linked


class _Relinking:
    def __init__(self, staging: Staging, source: TreeFolder) -> None:
        self._staging = staging
        self._layout = staging.layout
        self._source = source
        self._room = memoryview(bytearray(READ_BYTES))

    def take(self, numbers: range) -> Relinked:
        """Link those of these files that are there, whole, and of which nothing is here yet."""
        files = self._layout.files
        count = total_bytes = 0
        folder = target = -1
        open_above: str | None = None
        for number in numbers:
            size_bytes, executable, mtime_ns = files.facts(number)
            if not 0 < size_bytes <= READ_BYTES or self._staging.is_file_started(number):
                continue
            above, _, name = files.path(number).rpartition("/")
            try:
                if above != open_above:
                    open_above = None
                    folder, target = self._source.folder(above), -1
                    open_above = above
                fd = os.open(name, os.O_RDONLY | FILE_FLAGS, dir_fd=folder)
                try:
                    info = os.fstat(fd)
                    if (
                        info.st_size != size_bytes
                        or info.st_mtime_ns != mtime_ns
                        or info.st_mode != stat.S_IFREG | mode_of(executable)
                        or not self._holds(fd, number, size_bytes)
                    ):
                        continue
                    if target < 0:
                        target = self._staging.folder.folder(above, create=True)
                    # Open until then, or its inode's number could already be another file's.
                    if not _link(name, folder, target, info):
                        continue
                finally:
                    os.close(fd)
            except OSError as error:
                if error.errno in _LEFT_TO_OTHERS:
                    continue
                path = self._staging.path / files.path(number)
                raise storage_error(error, path) from error
            self._staging.count_file(number, info)
            count += 1
            total_bytes += size_bytes
        return Relinked(count, total_bytes)

    def _holds(self, fd: int, number: int, size_bytes: int) -> bool:
        """Whether the file is what the manifest says, to the byte."""
        data = self._room[:size_bytes]
        if os.preadv(fd, [data], 0) != size_bytes:
            return False
        layout = self._layout
        chunks = layout.files.chunks(number)
        if len(chunks) == 1:
            return blake3(data).digest() == layout.ids(chunks)
        cuts = zip(layout.offsets(chunks), layout.lengths(chunks), strict=True)
        digests = [blake3(data[at : at + length]).digest() for at, length in cuts]
        return b"".join(digests) == layout.ids(chunks)


def _link(name: str, folder: int, target: int, hashed: os.stat_result) -> bool:
    """Link a name from one folder into another, if it still is the file that was hashed."""
    os.link(name, name, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
    linked = os.stat(name, dir_fd=target, follow_symlinks=False)
    if linked.st_ino == hashed.st_ino and linked.st_dev == hashed.st_dev:
        return True
    os.unlink(name, dir_fd=target)
    return False
