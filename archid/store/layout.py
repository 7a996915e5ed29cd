"""Where things are in the state folder and the scripts folder, and who may use them.

The names and modes here are format: other programs (the player, backups) rely on them. One
process at a time owns a state folder, which `StateLock` enforces; the format file refuses a
folder that a newer archid has changed. What the files hold belongs to the modules that own them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from archid.errors import Conflict, StorageError
from archid.store.errors import storage_error
from protocol.ids import ManifestId

STATE_FORMAT: Final = 1
_FORMAT_WORDS: Final = "archid state"

_PRIVATE: Final = 0o700
_PRIVATE_PASSABLE: Final = 0o710
_GROUP_READS: Final = 0o750


@dataclass(frozen=True)
class StatePaths:
    """The places below `state` and `scripts`, both absolute; nothing is created by asking.

    With a player's group the folders that lead to content are open to that group and to nobody
    else; inside, files and folders are read-only for everybody.
    """

    state: Path
    scripts: Path

    @property
    def identity(self) -> Path:
        """Key and certificate."""
        return self.state / "identity"

    @property
    def trust(self) -> Path:
        """The newest Root and head, one file."""
        return self.state / "trust"

    @property
    def documents(self) -> Path:
        """Signed documents, lists and manifest pieces."""
        return self.state / "documents"

    @property
    def trees(self) -> Path:
        """The immutable version trees, one folder a manifest."""
        return self.state / "trees"

    @property
    def bundles(self) -> Path:
        """Folders of links that a release switches to."""
        return self.state / "bundles"

    @property
    def staging(self) -> Path:
        """Trees that are being fetched or published."""
        return self.state / "staging"

    @property
    def journal_db(self) -> Path:
        """Journal, tasks, floors, holds and pins: never rebuilt."""
        return self.state / "journal.db"

    @property
    def node_db(self) -> Path:
        """Chunk index and progress: can be rebuilt."""
        return self.state / "node.db"

    @property
    def fetch_plans(self) -> Path:
        """What fetches decided, step by step, where that is written down."""
        return self.state / "fetch-plans"

    @property
    def lock(self) -> Path:
        """What the running daemon holds."""
        return self.state / "lock"

    @property
    def format_file(self) -> Path:
        """Says which archid may use this folder."""
        return self.state / "format"

    @property
    def addresses(self) -> Path:
        """Where other nodes were heard to be: a convenience."""
        return self.state / "addresses.json"

    @property
    def script_links(self) -> Path:
        """One link a script, to its tree."""
        return self.scripts / "scripts"

    @property
    def release_links(self) -> Path:
        """One link a release, to its bundle."""
        return self.scripts / "releases"

    def tree(self, manifest: ManifestId) -> Path:
        """The tree of one version."""
        return self.trees / manifest.hex()

    def staging_of(self, manifest: ManifestId) -> Path:
        """Where one version is put together."""
        return self.staging / manifest.hex()

    def prepare(self, *, player_gid: int | None = None) -> None:
        """Create what is missing, with the right modes, and check the format.

        Raises Conflict for a newer format, StorageError when a folder cannot be made.
        """
        opened = _PRIVATE_PASSABLE if player_gid is not None else _PRIVATE
        read = _GROUP_READS if player_gid is not None else _PRIVATE
        _make_folder(self.state, opened, player_gid)
        self._check_format()
        for path in (self.identity, self.documents, self.staging):
            _make_folder(path, _PRIVATE, None, ours=True)
        for path in (self.trees, self.bundles, self.scripts, self.script_links, self.release_links):
            _make_folder(path, read, player_gid)

    def _check_format(self) -> None:
        try:
            with open(self.format_file, "rb") as file:
                words = file.read(100).decode("ascii", "replace").split()
        except FileNotFoundError:
            _write_atomically(self.format_file, f"{_FORMAT_WORDS} {STATE_FORMAT}\n".encode())
            return
        except OSError as error:
            raise storage_error(error, self.format_file) from error
        if len(words) != 3 or " ".join(words[:2]) != _FORMAT_WORDS or not words[2].isdecimal():
            raise StorageError(
                f"The format file {self.format_file} is damaged",
                remedy=f'If this is archid\'s state folder, write "{_FORMAT_WORDS} {STATE_FORMAT}"'
                " into that file",
                code="format_damaged",
            )
        found = int(words[2])
        if found > STATE_FORMAT:
            raise Conflict(
                f"The state folder {self.state} has format {found}; this archid knows formats up"
                f" to {STATE_FORMAT}",
                remedy="Run the newer archid that made it, or restore an older backup",
                code="newer_format",
            )


class StateLock:
    """Held by the one process that may change a state folder; released when it ends, however."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self) -> Self:
        """Take the lock without waiting; raises Conflict naming the process that holds it."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise storage_error(error, self._path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            holder = _holder(fd)
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise storage_error(error, self._path) from error
            raise Conflict(
                f"Another archid{holder} runs on the state folder {self._path.parent}",
                remedy="Stop it first, or give this one a state folder of its own",
                code="state_in_use",
            ) from None
        self._fd = fd
        return self

    def release(self) -> None:
        """Let go; more than once is fine. The file stays, as taking it away would race."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        if self._fd < 0:
            self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def _holder(fd: int) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" (pid {int(os.pread(fd, 20, 0))})"
    return ""


def _make_folder(path: Path, mode: int, gid: int | None, *, ours: bool = False) -> None:
    """Modes are set on what is made here, on what must be private, and for a player's group;
    otherwise what an administrator chose for an existing folder stays."""
    try:
        try:
            path.mkdir(parents=True)
            ours = True
        except FileExistsError:
            if not path.is_dir():
                raise
        info = path.stat()
        if gid is not None and info.st_gid != gid:
            os.chown(path, -1, gid)
        if stat.S_IMODE(info.st_mode) != mode and (ours or gid is not None):
            os.chmod(path, mode)
        if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            raise OSError(_why_not_writable(path), "it is not writable")
    except FileExistsError:
        raise StorageError(
            f"{path} is not a folder", remedy="Move it away, or configure another folder"
        ) from None
    except OSError as error:
        raise storage_error(error, path) from error


def _why_not_writable(path: Path) -> int:
    return errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = ""
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise storage_error(error, path, needed_bytes=len(data)) from error
