"""What the files looked like from which a version was published, so as not to read them again.

For each script there is the newest version and, in the order of its manifest, the facts of every
source file (`archid.source_listing`); a row of zeros where facts prove nothing. They lie
in ``node.db``: when they are lost, or are of another version, everything is read once more.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from archid.errors import ArchidError
from archid.log import get_logger
from archid.source_listing import FACTS_BYTES
from archid.store.database import Database
from protocol.ids import ManifestId

log = get_logger(__name__)

NO_FACTS: Final = bytes(FACTS_BYTES)

MIGRATION: Final = """
    CREATE TABLE source (
        script TEXT PRIMARY KEY,
        manifest BLOB NOT NULL,
        listing BLOB,
        facts BLOB NOT NULL
    );
    """


class SourceRecord(NamedTuple):
    """`facts` has a row of FACTS_BYTES a file; `listing` is None unless each of them counts."""

    manifest: ManifestId
    listing: bytes | None
    facts: bytes

    def facts_of(self, number: int) -> bytes | None:
        """The facts of one file of the manifest, None where there are none to rely on."""
        row = self.facts[number * FACTS_BYTES : (number + 1) * FACTS_BYTES]
        return row if len(row) == FACTS_BYTES and row != NO_FACTS else None


class SourceRecords:
    """The records in one database; methods block. What cannot be read or kept costs time only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def listing(self, script: str, manifest: ManifestId) -> bytes | None:
        """The digest of the whole source of this version."""
        row = self._row("listing", script, manifest)
        return None if row is None else row[0]

    def get(self, script: str, manifest: ManifestId) -> SourceRecord | None:
        """What is known of the source of this version."""
        row = self._row("listing, facts", script, manifest)
        return None if row is None else SourceRecord(manifest, *row)

    def keep(self, script: str, record: SourceRecord) -> None:
        """Keep this in place of what was known of the script's source."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO source (script, manifest, listing, facts)"
                " VALUES (?, ?, ?, ?)",
                (script, bytes(record.manifest), record.listing, record.facts),
            )

        try:
            self._database.transact(write)
        except ArchidError as error:
            log.warning("source_not_recorded", script=script, why=error.sentence)

    def _row(self, columns: str, script: str, manifest: ManifestId) -> sqlite3.Row | None:
        def read(connection: sqlite3.Connection) -> sqlite3.Row | None:
            found: sqlite3.Row | None = connection.execute(
                f"SELECT {columns} FROM source WHERE script = ? AND manifest = ?",  # noqa: S608 - two fixed lists
                (script, bytes(manifest)),
            ).fetchone()
            return found

        try:
            return self._database.transact(read)
        except ArchidError as error:
            log.warning("source_record_unreadable", script=script, why=error.sentence)
            return None
