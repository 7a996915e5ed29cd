"""Mending a placed tree without taking it away: verified bytes in place, modes, times, entries.

Bytes are written into the file that is there, so every tree that shares it by a hard link heals
with it, and a player that reads meanwhile sees wrong bytes become right ones and nothing else.
Where the bytes come from (another copy here, a peer) is left to the callers.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from blake3 import blake3

from archid.store import syscalls
from archid.store.errors import ChunkCorrupt, storage_error
from archid.store.placing import seal_file
from archid.store.syscalls import Buffer
from archid.store.tree_folder import FOLDER_MODE, OPEN_FOLDER_MODE, TreeFolder
from archid.store.verify import Damage, DamageKind
from protocol.entries import FileEntry
from protocol.layout import Layout
from protocol.pieces import Folder

_OWNER_WRITES: Final = 0o200
_REPLACED: Final = frozenset({DamageKind.MISSING, DamageKind.NOT_A_FILE, DamageKind.LINK})


def write_chunks(
    layout: Layout,
    tree: Path,
    chunks: Mapping[int, Buffer],
    *,
    unfinished: AbstractSet[int] = frozenset(),
) -> None:
    """Write chunks, by number, to every place that they belong to in the tree, durably.

    Files get their size, mode and time again; one that is gone is made anew, with holes where its
    other chunks are still missing: while it is named, by its number, in `unfinished`, nobody but
    its owner can open it. Raises ChunkCorrupt before anything is written when bytes are
    not what they should be, and StorageError.
    """
    writes: dict[int, list[tuple[int, Buffer]]] = defaultdict(list)
    for at, data in chunks.items():
        ref = layout.chunk(at)
        if len(data) != ref.length or blake3(data).digest() != ref.id:
            raise ChunkCorrupt(ref.id, "in what was to repair it")
        for place in layout.places(at):
            writes[place.file].append((place.offset, data))
    try:
        with TreeFolder.at(tree) as folder:
            for number, parts in sorted(writes.items()):
                _write_file(folder, layout.files[number], parts, sealed=number not in unfinished)
    except OSError as error:
        raise storage_error(error, tree) from error


def mend_entries(layout: Layout, tree: Path, damages: Iterable[Damage]) -> None:
    """Put right what needs no bytes: modes, times, links, folders, empty files, strange entries.

    Raises StorageError.
    """
    try:
        with TreeFolder.at(tree) as folder:
            for damage in damages:
                entry = layout.entries.find(damage.path)
                if damage.kind is DamageKind.EXTRA:
                    with _open_for_change(folder, damage.path):
                        folder.remove(damage.path)
                elif isinstance(entry, FileEntry):
                    if damage.kind not in _REPLACED or not entry.size_bytes:
                        _write_file(folder, entry, [])
                elif isinstance(entry, Folder) or not damage.path:
                    with _open_for_change(folder, damage.path):
                        fd = folder.folder(damage.path, create=True)
                        os.fchmod(fd, FOLDER_MODE)
                elif entry is not None:
                    with _open_for_change(folder, damage.path):
                        folder.make_link(entry.path, entry.target)
            syscalls.syncfs(folder.fd)
    except OSError as error:
        raise storage_error(error, tree) from error


def _write_file(
    folder: TreeFolder,
    file: FileEntry,
    parts: list[tuple[int, Buffer]],
    *,
    sealed: bool = True,
) -> None:
    fd = _writable(folder, file)
    try:
        for offset, data in parts:
            syscalls.pwrite_all(fd, data, offset)
        if os.fstat(fd).st_size != file.size_bytes:
            os.ftruncate(fd, file.size_bytes)
        if sealed:
            seal_file(fd, file)
        os.fsync(fd)
    finally:
        os.close(fd)


def _writable(folder: TreeFolder, file: FileEntry) -> int:
    above, _, name = file.path.rpartition("/")
    try:
        reading = folder.open_file(file.path)
    except (FileNotFoundError, NotADirectoryError):
        with _open_for_change(folder, file.path):
            return folder.create_file(file.path, 0o600)
    try:
        # Its owner may not write to it either, until it says so.
        mode = stat.S_IMODE(os.fstat(reading).st_mode)
        os.fchmod(reading, mode | _OWNER_WRITES)
    finally:
        os.close(reading)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=folder.folder(above))


@contextlib.contextmanager
def _open_for_change(folder: TreeFolder, path: str) -> Iterator[None]:
    """Every folder above `path` is there and may be changed, and is read-only again afterwards."""
    parts = path.split("/")[:-1]
    above = ["/".join(parts[:n]) for n in range(len(parts) + 1)]
    for each in above:
        os.fchmod(folder.folder(each, create=True), OPEN_FOLDER_MODE)
    try:
        yield
    finally:
        for each in above:
            os.fchmod(folder.folder(each), FOLDER_MODE)
