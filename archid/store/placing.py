"""The last steps of every tree, fetched or published: read-only, on disk, and then visible.

The order is what makes it safe: content and modes first, one `syncfs` for all of them, the rename,
and the folder above. After a power cut there is either no tree or a whole one.
"""

from __future__ import annotations

import os
from pathlib import Path

from archid.store import syscalls
from archid.store.errors import storage_error
from archid.store.tree_folder import (
    FOLDER_MODE,
    OPEN_FOLDER_MODE,
    TreeFolder,
    open_folder,
    remove_tree,
)
from protocol.entries import FileEntry
from protocol.layout import Layout


def seal_file(fd: int, file: FileEntry) -> None:
    """Give a complete file its mode and its time; nothing may be written afterwards."""
    os.fchmod(fd, file.mode)
    os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))


def make_bare_entries(folder: TreeFolder, layout: Layout) -> None:
    """Make what has no chunks: folders, symlinks and empty files. Raises OSError."""
    for path in layout.entries.folders():
        folder.folder(path, create=True)
    for link in layout.entries.links():
        folder.make_link(link.path, link.target)
    for file in layout.files.empty():
        fd = folder.create_file(file.path, 0o600)
        try:
            seal_file(fd, file)
        finally:
            os.close(fd)


def seal_folders(folder: TreeFolder, layout: Layout) -> None:
    """Make every folder below read-only, the deepest first. Raises OSError."""
    for path in reversed(layout.entries.folders()):
        os.fchmod(folder.folder(path), FOLDER_MODE)


def place_tree(source: Path, target: Path) -> None:
    """Sync the finished folder `source` and let it appear as `target`; raises StorageError.

    A tree that is there already (a damaged one that was fetched again) is exchanged in one step
    and then removed; whoever has it open keeps reading the old files.
    """
    try:
        fd = open_folder(source)
        try:
            # A folder moves only while its own ".." may be rewritten, hence not read-only yet.
            os.fchmod(fd, OPEN_FOLDER_MODE)
            syscalls.syncfs(fd)
            _rename(source, target)
            os.fchmod(fd, FOLDER_MODE)
            os.fsync(fd)
        finally:
            os.close(fd)
        for parent in {target.parent, source.parent}:
            above = open_folder(parent)
            try:
                os.fsync(above)
            finally:
                os.close(above)
        # After an exchange this is the old tree.
        remove_tree(source)
    except OSError as error:
        raise storage_error(error, target) from error


def remove_superseded(staging: Path, trees: Path) -> None:
    """Remove staged versions whose trees stand: what a killed process no longer came to remove.

    For the start, before anything is staged. Raises StorageError.
    """
    try:
        for name in os.listdir(staging):
            if (trees / name).is_dir():
                remove_tree(staging / name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, staging) from error


def _rename(source: Path, target: Path) -> None:
    if not os.path.lexists(target):
        os.rename(source, target)
        return
    if target.is_symlink() or not target.is_dir():
        os.unlink(target)
        os.rename(source, target)
        return
    # Moving a read-only folder takes write permission on it.
    os.chmod(target, OPEN_FOLDER_MODE)
    syscalls.exchange(source, target)
