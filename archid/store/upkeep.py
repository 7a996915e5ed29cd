"""What must outlive the process about the care of trees: damage, and the place of the scrub.

It lies in ``node.db``, which may be lost: damage is then found again and a pass begins anew, so
what cannot be read or written is said in the log and stops nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, TypeVar

from archid.errors import ArchidError
from archid.log import SparingLog, get_logger
from archid.store.database import Database
from protocol.ids import ManifestId

_sparing = SparingLog(get_logger(__name__))

MIGRATION: Final = """
    CREATE TABLE damaged (
        manifest BLOB PRIMARY KEY,
        since_s INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE upkeep (
        name TEXT PRIMARY KEY,
        value NOT NULL
    ) WITHOUT ROWID;
    """

_T = TypeVar("_T")


class Upkeep:
    """Small facts in one database; methods block, and any thread may call them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def damaged(self) -> dict[ManifestId, int]:
        """The trees that were damaged and not repaired, with since when (seconds UTC)."""
        return self._try(_damaged, {})

    def note_damaged(self, manifest: ManifestId, since_s: int) -> None:
        self._write(
            "INSERT OR IGNORE INTO damaged (manifest, since_s) VALUES (?, ?)",
            bytes(manifest),
            since_s,
        )

    def forget_damaged(self, manifest: ManifestId) -> None:
        self._write("DELETE FROM damaged WHERE manifest = ?", bytes(manifest))

    def number(self, name: str) -> int | None:
        """A number that was kept."""
        value = self._read(name)
        return value if isinstance(value, int) else None

    def blob(self, name: str) -> bytes | None:
        """Bytes that were kept."""
        value = self._read(name)
        return value if isinstance(value, bytes) else None

    def keep(self, **values: int | bytes) -> None:
        """Keep these under their names, in place of what was there."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO upkeep (name, value) VALUES (?, ?)", values.items()
            )

        self._try(write, None)

    def count(self, name: str, more: int) -> None:
        """Add to a number that is kept."""
        self._write(
            "INSERT INTO upkeep (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            name,
            more,
        )

    def _read(self, name: str) -> object:
        def read(connection: sqlite3.Connection) -> object:
            row = connection.execute("SELECT value FROM upkeep WHERE name = ?", (name,)).fetchone()
            return None if row is None else row[0]

        return self._try(read, None)

    def _write(self, statement: str, *values: int | bytes | str) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        self._try(write, None)

    def _try(self, function: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        try:
            return self._database.transact(function)
        except ArchidError as error:
            _sparing.error("upkeep_not_kept", why=error.sentence)
            return otherwise


def _damaged(connection: sqlite3.Connection) -> dict[ManifestId, int]:
    rows = connection.execute("SELECT manifest, since_s FROM damaged")
    return {ManifestId(manifest): since_s for manifest, since_s in rows}
