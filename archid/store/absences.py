"""Since when nothing asks for a tree that is here, and who asked for it before.

Absence never deletes by itself: a tree goes only after days during which no fresh head granted
it. Those days are counted by the heads' own dates, never by this machine's clock, which may be
wrong. It lies in ``node.db``: when that is lost, the days are counted anew, and nothing goes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from archid.store.database import Database
from protocol.ids import ManifestId, ReleaseId

MIGRATION: Final = """
    CREATE TABLE unneeded (
        manifest BLOB PRIMARY KEY,
        since_s INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE granted_by (
        manifest BLOB NOT NULL,
        release BLOB NOT NULL,
        PRIMARY KEY (manifest, release)
    ) WITHOUT ROWID;
    """


@dataclass(frozen=True)
class Absence:
    """A version that is not granted: since which head's date (UTC), and what granted it last."""

    since_s: int
    releases: frozenset[ReleaseId]


class Absences:
    """What is here and not granted. Methods block; they raise StorageError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def observe(
        self,
        here: Collection[ManifestId],
        granted: Mapping[ManifestId, Collection[ReleaseId]],
        issued_s: int,
    ) -> dict[ManifestId, Absence]:
        """Take note of what a head of `issued_s` grants of what is here; returns the rest."""
        return self._database.transact(_observe, here, granted, issued_s)


def _observe(
    connection: sqlite3.Connection,
    here: Collection[ManifestId],
    granted: Mapping[ManifestId, Collection[ReleaseId]],
    issued_s: int,
) -> dict[ManifestId, Absence]:
    absent = set(here) - granted.keys()
    known = {
        ManifestId(row[0]): int(row[1])
        for row in connection.execute("SELECT manifest, since_s FROM unneeded")
    }
    gone = [(bytes(one),) for one in known.keys() - absent]
    connection.executemany("DELETE FROM unneeded WHERE manifest = ?", gone)
    # A later date than this head's is of another epoch, or was wrong: the days start again.
    since = {one: min(known.get(one, issued_s), issued_s) for one in absent}
    connection.executemany(
        "INSERT OR REPLACE INTO unneeded (manifest, since_s) VALUES (?, ?)",
        [(bytes(one), at_s) for one, at_s in since.items() if known.get(one) != at_s],
    )
    releases = _note_grants(connection, here, granted)
    return {one: Absence(at_s, releases.get(one, frozenset())) for one, at_s in since.items()}


def _note_grants(
    connection: sqlite3.Connection,
    here: Collection[ManifestId],
    granted: Mapping[ManifestId, Collection[ReleaseId]],
) -> dict[ManifestId, frozenset[ReleaseId]]:
    """Who granted what is here, now or last."""
    before: dict[ManifestId, set[ReleaseId]] = {}
    for manifest, release in connection.execute("SELECT manifest, release FROM granted_by"):
        before.setdefault(ManifestId(manifest), set()).add(ReleaseId(release))
    now = {one: set(granted[one]) if one in granted else before.get(one, set()) for one in here}
    old = {(m, r) for m, releases in before.items() for r in releases}
    new = {(m, r) for m, releases in now.items() for r in releases}
    connection.executemany(
        "DELETE FROM granted_by WHERE manifest = ? AND release = ?",
        [(bytes(manifest), bytes(release)) for manifest, release in old - new],
    )
    connection.executemany(
        "INSERT INTO granted_by (manifest, release) VALUES (?, ?)",
        [(bytes(manifest), bytes(release)) for manifest, release in new - old],
    )
    return {one: frozenset(releases) for one, releases in now.items()}
