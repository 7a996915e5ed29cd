"""Comparing a tree on disk with its manifest, byte by byte, and naming every difference.

Content is read from the disk rather than from the kernel's cache where that can be asked for.
What to do about damage is the tree store's repair and the fetcher's affair.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from archid.store import syscalls
from archid.store.chunk_reading import check_chunks, chunks_of
from archid.store.errors import storage_error
from archid.store.tree_folder import FOLDER_MODE, TreeFolder
from protocol.entries import FileEntry
from protocol.layout import Layout
from protocol.pieces import Folder

# Errors that speak about the one file that was being read, not about this process or the disk.
ABOUT_THE_FILE: Final = frozenset({errno.EIO, errno.ENOENT, errno.EACCES, errno.EUCLEAN})


class DamageKind(Enum):
    """What is wrong with an entry; the values are what programs see."""

    MISSING = "missing"
    NOT_A_FILE = "wrong_type"
    TRUNCATED = "truncated"
    TOO_LONG = "too_long"
    FLIPPED = "flipped"
    UNREADABLE = "unreadable"
    EXTRA = "extra"
    MODE = "mode"
    TIME = "time"
    LINK = "link"


_SENTENCES: Final = {
    DamageKind.MISSING: "is missing",
    DamageKind.NOT_A_FILE: "is not what the manifest says: file, folder or link",
    DamageKind.TRUNCATED: "is shorter than it should be",
    DamageKind.TOO_LONG: "is longer than it should be",
    DamageKind.FLIPPED: "does not hold the bytes that were published",
    DamageKind.UNREADABLE: "cannot be read",
    DamageKind.EXTRA: "does not belong there",
    DamageKind.MODE: "has other permissions",
    DamageKind.TIME: "has another modification time",
    DamageKind.LINK: "points elsewhere",
}


@dataclass(frozen=True)
class Damage:
    """One thing wrong with one entry; `chunks` are the numbers of those that do not hold."""

    path: str
    kind: DamageKind
    chunks: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        """For people, without a full stop."""
        shown = self.path.encode("utf-8", "backslashreplace").decode()
        return f"{shown or 'the tree'} {_SENTENCES[self.kind]}"


def verify_tree(
    layout: Layout,
    tree: Path,
    *,
    progress: Callable[[int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    reads: Callable[[FileEntry], bool] = lambda _: True,
) -> list[Damage]:
    """Every difference between the tree at `tree` and its manifest, in path order; blocks.

    Of files for which `reads` says no, only what can be seen without reading them is compared, as
    long as that is as it should be. `progress` gets the bytes hashed since the last call,
    `stopped` may end it early. Raises StorageError only for what is not the tree's fault (too
    many open files).
    """
    try:
        folder = TreeFolder.at(tree)
    except FileNotFoundError:
        return [Damage("", DamageKind.MISSING, tuple(layout.distinct_chunks()))]
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise storage_error(error, tree) from error
        return [Damage("", DamageKind.NOT_A_FILE, tuple(layout.distinct_chunks()))]
    try:
        with folder:
            return _compare(folder, layout, progress, stopped, reads)
    except OSError as error:
        raise storage_error(error, tree) from error


def _compare(
    folder: TreeFolder,
    layout: Layout,
    progress: Callable[[int], None] | None,
    stopped: Callable[[], bool],
    reads: Callable[[FileEntry], bool],
) -> list[Damage]:
    found: list[Damage] = []
    if stat.S_IMODE(os.fstat(folder.fd).st_mode) != FOLDER_MODE:
        found.append(Damage("", DamageKind.MODE))
    entries = layout.entries
    seen = bytearray(len(entries))
    strange = "/"
    for path, info in folder.walk():
        if stopped():
            return found
        if path.startswith(strange):
            # What lies in a folder that does not belong there is named with that folder.
            continue
        at = entries.position(path)
        entry = None if at is None else entries[at]
        if at is not None:
            seen[at] = 1
        if entry is None or stat.S_ISDIR(info.st_mode) != isinstance(entry, Folder):
            strange = f"{path}/"
        if entry is None:
            found.append(Damage(path, DamageKind.EXTRA))
        elif isinstance(entry, FileEntry):
            if not stat.S_ISREG(info.st_mode):
                found.append(Damage(path, DamageKind.NOT_A_FILE, tuple(chunks_of(entry))))
                continue
            if reads(entry) or _looks_changed(entry, info):
                found += _file_damage(folder, layout, entry, info, progress)
        elif isinstance(entry, Folder):
            if not stat.S_ISDIR(info.st_mode):
                found.append(Damage(path, DamageKind.NOT_A_FILE))
            elif stat.S_IMODE(info.st_mode) != FOLDER_MODE:
                found.append(Damage(path, DamageKind.MODE))
        elif not stat.S_ISLNK(info.st_mode):
            found.append(Damage(path, DamageKind.NOT_A_FILE))
        elif folder.link_target(path) != entry.target:
            found.append(Damage(path, DamageKind.LINK))
    for entry in [entries[at] for at, was_seen in enumerate(seen) if not was_seen]:
        chunks = tuple(chunks_of(entry)) if isinstance(entry, FileEntry) else ()
        found.append(Damage(entry.path, DamageKind.MISSING, chunks))
    return sorted(found, key=lambda damage: (damage.path, damage.kind.value))


def _looks_changed(file: FileEntry, info: os.stat_result) -> bool:
    seen = (stat.S_IMODE(info.st_mode), info.st_size, info.st_mtime_ns)
    return seen != (file.mode, file.size_bytes, file.mtime_ns)


def _file_damage(
    folder: TreeFolder,
    layout: Layout,
    file: FileEntry,
    info: os.stat_result,
    progress: Callable[[int], None] | None,
) -> list[Damage]:
    found: list[Damage] = []
    if stat.S_IMODE(info.st_mode) != file.mode:
        found.append(Damage(file.path, DamageKind.MODE))
    if info.st_mtime_ns != file.mtime_ns:
        found.append(Damage(file.path, DamageKind.TIME))
    good: set[int] = set()
    unreadable = False
    try:
        fd = folder.open_file(file.path)
        try:
            syscalls.forget_cached(fd)
            for at, data in check_chunks(fd, layout, chunks_of(file)):
                if data is not None:
                    good.add(at)
                if progress is not None:
                    progress(layout.length(at))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in ABOUT_THE_FILE:
            raise
        unreadable = True
    bad = tuple(at for at in chunks_of(file) if at not in good)
    if unreadable:
        found.append(Damage(file.path, DamageKind.UNREADABLE, bad))
    elif info.st_size < file.size_bytes:
        found.append(Damage(file.path, DamageKind.TRUNCATED, bad))
    elif bad:
        found.append(Damage(file.path, DamageKind.FLIPPED, bad))
    if info.st_size > file.size_bytes:
        found.append(Damage(file.path, DamageKind.TOO_LONG))
    return found
