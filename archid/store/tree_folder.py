"""Opening, making and removing files below one folder without ever leaving it.

Every step goes through a descriptor of the folder above and never follows a symlink, so whatever
somebody or a failing disk put below the folder, nothing outside of it is read or changed. What
stands where the tree wants something else (a link where a folder belongs, a folder where a file
does) is removed. What the files hold is left to staging and to the tree store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

FOLDER_MODE: Final = 0o555
FILE_MODE: Final = 0o444
EXECUTABLE_MODE: Final = 0o555
OPEN_FOLDER_MODE: Final = 0o755
"""Of a folder that is being filled: what the umask leaves of it."""

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""For opening what should be a file: whatever else it is, nothing waits and nothing is followed."""
_MAX_FOLDERS: Final = 64


def open_folder(path: Path, *, create: bool = False) -> int:
    """A descriptor of the folder at `path`, whose last part is no symlink; raises OSError."""
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    return os.open(path, _FOLDER_FLAGS)


class TreeFolder:
    """The folder behind a descriptor that it then owns, with the last few subfolders kept open.

    One thread at a time; threads that share a tree make one of these each with `again`. All
    methods raise OSError.
    """

    def __init__(self, fd: int, *, max_folders: int = _MAX_FOLDERS) -> None:
        self.fd = fd
        self._max_folders = max_folders
        self._folders: OrderedDict[str, int] = OrderedDict()

    @classmethod
    def at(cls, path: Path, *, create: bool = False) -> Self:
        return cls(open_folder(path, create=create))

    def again(self) -> TreeFolder:
        """The same folder, for another thread."""
        return TreeFolder(os.dup(self.fd), max_folders=self._max_folders)

    def close(self) -> None:
        """Close every descriptor; more than once is fine."""
        while self._folders:
            os.close(self._folders.popitem()[1])
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def folder(self, path: str, *, create: bool = False) -> int:
        """The descriptor of a subfolder ("" is the folder itself), valid until the next call."""
        if not path:
            return self.fd
        fd = self._folders.get(path)
        if fd is not None:
            self._folders.move_to_end(path)
            return fd
        above, _, name = path.rpartition("/")
        parent = self.folder(above, create=create)
        fd = make_folder(parent, name) if create else os.open(name, _FOLDER_FLAGS, dir_fd=parent)
        self._folders[path] = fd
        if len(self._folders) > self._max_folders:
            os.close(self._folders.popitem(last=False)[1])
        return fd

    def open_file(self, path: str) -> int:
        """A file for reading; FileNotFoundError also when something else has its name."""
        folder, _, name = path.rpartition("/")
        try:
            fd = os.open(name, os.O_RDONLY | FILE_FLAGS, dir_fd=self.folder(folder))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", path) from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
        return fd

    def create_file(self, path: str, mode: int) -> int:
        """A new empty file, whatever was there before; open for reading and writing."""
        folder, _, name = path.rpartition("/")
        parent = self.folder(folder, create=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | FILE_FLAGS
        try:
            return os.open(name, flags, mode, dir_fd=parent)
        except FileExistsError:
            remove_entry(parent, name)
            return os.open(name, flags, mode, dir_fd=parent)

    def reopen_file(self, path: str) -> int | None:
        """An own file for more writing; None if none is there or it is shared by hard links.

        One that was given its last mode may be written again.
        """
        folder, _, name = path.rpartition("/")
        try:
            parent = self.folder(folder)
            try:
                fd = os.open(name, os.O_RDWR | FILE_FLAGS, dir_fd=parent)
            except PermissionError:
                if not _let_owner_write(parent, name):
                    return None
                fd = os.open(name, os.O_RDWR | FILE_FLAGS, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
                return None
            raise
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(fd)
            return None
        return fd

    def make_link(self, path: str, target: str) -> None:
        """A symlink, whatever was there before."""
        folder, _, name = path.rpartition("/")
        parent = self.folder(folder, create=True)
        try:
            os.symlink(target, name, dir_fd=parent)
        except FileExistsError:
            if _link_target(parent, name) == target:
                return
            remove_entry(parent, name)
            os.symlink(target, name, dir_fd=parent)

    def link_target(self, path: str) -> str | None:
        """Where the symlink at `path` points; None if there is no symlink."""
        folder, _, name = path.rpartition("/")
        try:
            return _link_target(self.folder(folder), name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def remove(self, path: str) -> None:
        """Remove whatever is at `path`, with all it holds; nothing there is fine."""
        # Cached descriptors may be of folders that go now.
        while self._folders:
            os.close(self._folders.popitem()[1])
        folder, _, name = path.rpartition("/")
        with contextlib.suppress(FileNotFoundError):
            remove_entry(self.folder(folder), name)

    def walk(self, path: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """Every entry below with its path and lstat, folders before what they hold.

        Entries whose names are not UTF-8 come with surrogates, as `os.fsdecode` gives them.
        """
        fd = os.open(".", _FOLDER_FLAGS, dir_fd=self.folder(path))
        try:
            with os.scandir(fd) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(fd)
        prefix = f"{path}/" if path else ""
        for name, info in sorted(found):
            yield prefix + name, info
            if stat.S_ISDIR(info.st_mode):
                yield from self.walk(prefix + name)


def make_folder(parent_fd: int, name: str) -> int:
    """Open the folder `name`, made if it is not there and in place of whatever else is."""
    try:
        os.mkdir(name, OPEN_FOLDER_MODE, dir_fd=parent_fd)
    except FileExistsError:
        try:
            return os.open(name, _FOLDER_FLAGS, dir_fd=parent_fd)
        except (NotADirectoryError, OSError) as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
        remove_entry(parent_fd, name)
        os.mkdir(name, OPEN_FOLDER_MODE, dir_fd=parent_fd)
    return os.open(name, _FOLDER_FLAGS, dir_fd=parent_fd)


def remove_entry(parent_fd: int, name: str) -> None:
    """Remove a file, a symlink, or a folder with all it holds; raises OSError.

    Folders of a finished tree are read-only; they are made writable first, which their owner
    always may.
    """
    try:
        os.unlink(name, dir_fd=parent_fd)
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    fd = os.open(name, _FOLDER_FLAGS, dir_fd=parent_fd)
    try:
        os.fchmod(fd, 0o700)
        for inner in os.listdir(fd):
            remove_entry(fd, inner)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


def remove_tree(path: Path) -> None:
    """Remove the folder at `path` with all it holds; nothing there is fine. Raises OSError."""
    try:
        parent = open_folder(path.parent)
    except FileNotFoundError:
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            remove_entry(parent, path.name)
    finally:
        os.close(parent)


def _link_target(parent_fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=parent_fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _let_owner_write(parent: int, name: str) -> bool:
    """Give back the right to write that sealing took; False if it is no file, or has more names."""
    fd = os.open(name, os.O_RDONLY | FILE_FLAGS, dir_fd=parent)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return False
        os.fchmod(fd, stat.S_IMODE(found.st_mode) | stat.S_IWUSR)
    finally:
        os.close(fd)
    return True
