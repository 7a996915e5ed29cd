"""Opening central's database: schema, transactions, and errors that a person can act on.

SQLite by default, PostgreSQL by a URL. A writing transaction takes its lock at the start, so that
serials and versions are read and assigned under it and a second process waits its turn. Queries
belong to the modules that own a subject; they take the `Connection` that is handed out here.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from archid.central.tables import fleet
from archid.errors import Conflict, StorageError, Unavailable, UsageError

DEFAULT_FILE_NAME: Final = "central.db"
BUSY_TIMEOUT_S: Final = 20
_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_READING: Final = "archid_reading"


def database_url(setting: str, state: Path) -> URL:
    """The URL that the configuration's `[central] database` means; "" is SQLite in `state`.

    Raises UsageError when it is no URL of a database that archid knows.
    """
    if not setting:
        return URL.create("sqlite+pysqlite", database=str(state / DEFAULT_FILE_NAME))
    try:
        url = make_url(setting)
    except ArgumentError as error:
        raise UsageError(
            "[central] database is not a database URL",
            remedy="Write postgresql://user@host/name, or leave it empty for SQLite",
        ) from error
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise UsageError(
            f"[central] database names {url.get_backend_name()}, which archid does not know",
            remedy="Use postgresql://user@host/name, or leave it empty for SQLite",
        )
    return url


class CentralDatabase:
    """One open database; every method may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        url = engine.url
        is_file = url.get_backend_name() == "sqlite" and url.database
        self._where = f" {url.database}" if is_file else ""

    @classmethod
    def open(cls, url: URL, *, create: bool = False) -> CentralDatabase:
        """Open the database at `url` and bring its schema up to date.

        Raises Unavailable when a SQLite file is not there and `create` is false, Conflict when a
        newer archid wrote it, StorageError when it is damaged or cannot be written.
        """
        if url.get_backend_name() == "sqlite":
            _prepare_file(Path(url.database or ""), create=create)
        try:
            database = cls(_engine(url))
        except NoSuchModuleError as error:
            raise UsageError(f"[central] database: no driver for {url.drivername}") from error
        except ModuleNotFoundError as error:
            raise UsageError(
                f"[central] database needs the Python package {error.name}",
                remedy=f"Install {error.name} beside archid",
            ) from error
        try:
            database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close every connection; SQLite folds its write-ahead log into the file."""
        self._engine.dispose()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other writer overlaps; commits at the end, or rolls back."""
        with _translated(self._where), self._engine.begin() as connection:
            # SQLite has locked already (BEGIN IMMEDIATE); elsewhere this row is the lock.
            if connection.dialect.name != "sqlite":
                connection.execute(sa.select(fleet.c.only).with_for_update())
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view that waits for nobody."""
        with _translated(self._where), self._engine.connect() as connection:
            connection = connection.execution_options(**{_READING: True})
            with connection.begin():
                yield connection

    def _migrate(self) -> None:
        """Apply the steps that are missing, all of them or none."""
        with _translated(self._where), self._engine.begin() as connection:
            if connection.dialect.name == "sqlite" and not _is_sound(connection):
                raise _damaged(self._where)
            steps = ScriptDirectory(str(_MIGRATIONS))
            known = {step.revision for step in steps.walk_revisions()}
            current = MigrationContext.configure(connection).get_current_heads()
            if unknown := [each for each in current if each not in known]:
                raise Conflict(
                    f"Central's database has the schema {unknown[0]}, which this archid does not"
                    " know: a newer archid wrote it",
                    remedy="Install that version again, or restore a backup from before it",
                    code="newer_format",
                )
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _prepare_file(path: Path, *, create: bool) -> None:
    """Make the file readable by its owner only before SQLite opens it; the log files follow it."""
    if path.exists():
        return
    if not create:
        raise Unavailable(
            f"Central's database {path} is not there",
            remedy="Run archid init on a new central, or restore the file from a backup",
            code="database_missing",
        )
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise StorageError(f"Cannot make {path}: {error.strerror}") from error


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, isolation_level="SERIALIZABLE", pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
        # sqlite3 of Python 3.11 begins late and commits before DDL; SQLAlchemy begins instead.
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            "foreign_keys = ON",
            # A head that was shown to the fleet must not be forgotten at a power cut.
            "synchronous = FULL",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get(_READING, False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Turn what a driver raises into an error that says who must act."""
    try:
        yield
    except OperationalError as error:
        raise _operational(error, where) from error
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.DatabaseError) and _is_damage(error.orig):
            raise _damaged(where) from error
        raise
    except sqlite3.DatabaseError as error:
        # Raised by the PRAGMAs of a new connection, before SQLAlchemy wraps anything.
        if _is_damage(error):
            raise _damaged(where) from error
        raise StorageError(f"Central's database{where} cannot be used: {error}") from error


def _operational(error: DBAPIError, where: str) -> Exception:
    name = _sqlite_name(error.orig)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Unavailable(
            f"Central's database{where} stayed locked by another process for {BUSY_TIMEOUT_S} s",
            remedy="Find out what else has it open, then repeat",
            code="database_busy",
        )
    if name.startswith("SQLITE_FULL"):
        return StorageError(
            f"The disk is full: central's database{where} cannot be written",
            remedy="Free some space where the state folder is, then repeat; nothing was changed",
            code="disk_full",
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN")):
        return StorageError(
            f"Central's database{where} cannot be written: {error.orig}",
            remedy="Look at the disk and at the folder's permissions; nothing was changed",
        )
    if isinstance(error.orig, sqlite3.Error):
        return _damaged(where) if _is_damage(error.orig) else error
    return Unavailable(f"Central's database does not answer: {error.orig}", code="database_down")


def _is_sound(connection: Connection) -> bool:
    """Look through a SQLite file: damage is better found now than in the middle of signing."""
    return connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() == "ok"


def _is_damage(error: sqlite3.Error) -> bool:
    return _sqlite_name(error).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _sqlite_name(error: Any) -> str:
    name = getattr(error, "sqlite_errorname", "")
    return name if isinstance(name, str) else ""


def _damaged(where: str) -> StorageError:
    return StorageError(
        f"Central's database{where} is damaged",
        remedy="Restore it from a backup, however old: central takes what is newer from the REPOs",
        code="database_damaged",
    )
