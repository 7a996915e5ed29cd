"""Links in a folder that lead to another one: made, switched by one rename, taken away.

Relative, so that state and scripts may be mounted elsewhere together. And the lock that tells
whether a player reads a folder right now.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from archid.errors import Conflict
from archid.store.errors import storage_error
from archid.store.tree_folder import open_folder

NEW: Final = ".new-"
"""What a link or folder is called that is not in its place yet."""


def switch_link(folder: Path, name: str, target: Path) -> None:
    """Let `name` in `folder` be a relative link to `target`, by one rename, durably."""
    put_link(new_link(folder, name, target), name)


def new_link(folder: Path, name: str, target: Path) -> Path:
    """A link to `target` that still has a temporary name; `name` is what it is for."""
    # Relative between the real places: a folder above may itself be a link.
    text = os.path.relpath(os.path.realpath(target), os.path.realpath(folder))
    try:
        temporary = _free_name(folder)
        os.symlink(text, temporary)
    except OSError as error:
        raise storage_error(error, folder / name) from error
    return Path(temporary)


def put_link(temporary: Path, name: str) -> None:
    folder = temporary.parent
    try:
        os.replace(temporary, folder / name)
        sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise Conflict(
                f"{folder / name} is a folder where a link belongs",
                remedy="Move it away; archid only replaces links that it made",
                code="name_taken",
            ) from error
        raise storage_error(error, folder / name) from error


def remove_link(folder: Path, name: str) -> None:
    path = folder / name
    try:
        if not os.path.lexists(path):
            return
        if not path.is_symlink():
            raise Conflict(
                f"{path} is not a link that archid made", remedy="Move it away", code="name_taken"
            )
        path.unlink()
        sync_folder(folder)
    except OSError as error:
        raise storage_error(error, path) from error


def _free_name(folder: Path) -> str:
    with tempfile.NamedTemporaryFile(prefix=NEW, dir=folder) as file:
        return file.name


def sync_folder(path: Path) -> None:
    fd = open_folder(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked_alone(path: Path) -> Iterator[bool]:
    """Whether nobody holds a lock on the folder; it is ours meanwhile."""
    fd = open_folder(path)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
