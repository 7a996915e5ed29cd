"""One SQLite file, used by one thread at a time, with its errors in words.

Everything runs in short transactions that commit when the function returns and are undone when
it raises. A cancelled wait may have committed, so what callers write must be idempotent. Tables
and queries belong to the modules that own them; they hand in their schema as a list of
migrations, of which the file's `user_version` says how many it has had.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, Self, TypeVar

import trio

from archid.errors import ArchidError, Conflict, StorageError
from archid.store.errors import DatabaseDamaged, DiskFull, StoreReadOnly, storage_error

_P = ParamSpec("_P")
_T = TypeVar("_T")

_BUSY_TIMEOUT_S: Final = 5.0
_COMPANIONS: Final = ("", "-wal", "-shm")


class Database:
    """An open database; `run` from trio tasks, `transact` from worker threads."""

    def __init__(self, path: Path, migrations: Sequence[str], *, durable: bool = False) -> None:
        """Open or create `path` and bring its schema up to date; blocks.

        Each migration is one or more SQL statements. With `durable`, a commit is on disk when it
        returns; without, a power cut may take the last commits back but never tears one.
        Raises DatabaseDamaged, Conflict for a newer schema, and StorageError.
        """
        self.path = path
        self._migrations = tuple(migrations)
        self._guard = threading.Lock()
        self._limiter = trio.CapacityLimiter(1)
        with contextlib.suppress(OSError):
            # Private from its first moment; SQLite gives its log the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._translated(error) from error
        try:
            self._prepare(durable=durable)
        except sqlite3.Error as error:
            self._connection.close()
            raise self._translated(error) from error
        except BaseException:
            self._connection.close()
            raise

    async def run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """`transact` in the database's worker thread; waits for its turn."""
        return await trio.to_thread.run_sync(
            lambda: self.transact(function, *args, **kwargs), limiter=self._limiter
        )

    def transact(
        self,
        function: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Call `function(connection, ...)` within one transaction; blocks; any thread may.

        Raises what `function` raises, sqlite3's errors as DatabaseDamaged, DiskFull,
        StoreReadOnly, Conflict or StorageError, but for IntegrityError (a constraint), which is
        the caller's to know.
        """
        with self._guard:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    result = function(self._connection, *args, **kwargs)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
                raise
            except sqlite3.Error as error:
                raise self._translated(error) from error
            return result

    def release_memory(self) -> None:
        """Let go of the pages that SQLite keeps; blocks, raises as `transact`."""
        with self._guard:
            try:
                self._connection.execute("PRAGMA shrink_memory")
            except sqlite3.Error as error:
                raise self._translated(error) from error

    def close(self) -> None:
        """Close the file; more than once is fine."""
        with self._guard:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _prepare(self, *, durable: bool) -> None:
        connection = self._connection
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(self._migrations):
            raise Conflict(
                f"The database {self.path} has version {version}; this archid knows versions up"
                f" to {len(self._migrations)}",
                remedy="Run the newer archid that made it",
                code="newer_format",
            )
        found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise DatabaseDamaged(self.path, str(found[0]) if found else "it cannot be checked")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                f"The database {self.path} lies on a file system that SQLite's log cannot use",
                remedy="Keep the state folder on a local disk",
            )
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")
        os.chmod(self.path, 0o600)
        for number, migration in enumerate(self._migrations[version:], version + 1):
            script = f"BEGIN IMMEDIATE; {migration}; PRAGMA user_version = {number}; COMMIT;"
            try:
                connection.executescript(script)
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _translated(self, error: sqlite3.Error) -> ArchidError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return DatabaseDamaged(self.path, str(error))
        if code == sqlite3.SQLITE_FULL:
            return DiskFull(self.path)
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return _not_writable(self.path, str(error))
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Conflict(
                f"The database {self.path} is in use by another process",
                remedy="End the other program that has it open",
                code="database_in_use",
            )
        if code == sqlite3.SQLITE_IOERR:
            return _io_failure(self.path, str(error))
        return StorageError(f"The database {self.path} failed: {error}")


def set_aside(path: Path) -> Path:
    """Move a damaged database and its log to ``<name>.damaged``; returns where. Closes nothing.

    An older one that was set aside is replaced. Raises StorageError.
    """
    target = path.with_name(path.name + ".damaged")
    try:
        for ending in _COMPANIONS:
            source = path.with_name(path.name + ending)
            kept = target.with_name(target.name + ending)
            if source.exists():
                os.replace(source, kept)
            else:
                kept.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    return target


def _not_writable(path: Path, why: str) -> StorageError:
    try:
        if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
            return StoreReadOnly(path.parent)
    except OSError as error:
        return storage_error(error, path.parent)
    return StorageError(
        f"The database {path} cannot be opened for writing: {why}",
        remedy="Make the folder and the file belong to the user that archid runs as",
        code="not_writable",
    )


def _io_failure(path: Path, why: str) -> StorageError:
    """SQLite reports a full disk as an input/output error when it is its log that does not fit."""
    try:
        space = os.statvfs(path.parent)
        if space.f_bavail * space.f_frsize < 1 << 20:
            return DiskFull(path, available_bytes=space.f_bavail * space.f_frsize)
    except OSError as error:
        return storage_error(error, path)
    return StorageError(
        f"The disk fails at the database {path}: {why}",
        remedy="Look at the kernel's log (dmesg) and check the disk",
        code="disk_failing",
    )
