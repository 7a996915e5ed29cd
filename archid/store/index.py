"""Where chunks are in the trees at hand: which file object, at which offset.

A file object is an inode: trees that share a file by hard links have one row for its chunks. The
index is a hint that costs nothing when it is wrong, because whoever reads a chunk hashes it; so a
chunk is known here by the first 16 bytes of its id, a file that holds a chunk twice is listed
once, and a lost index is rebuilt from the trees (`rebuild`). Only what was verified is added.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

from archid.errors import StorageError
from archid.log import get_logger
from archid.store import absences, index_rows, source_records, upkeep
from archid.store.database import Database
from archid.store.errors import storage_error
from archid.store.file_objects import FileObjects
from archid.store.index_rows import KEY_BYTES, LOOKUP_BATCH, Standing
from archid.store.tree_folder import TreeFolder
from protocol.ids import ChunkId, ManifestId
from protocol.layout import Layout

log = get_logger(__name__)

MAX_LOCATIONS: Final = 4
"""As many are tried before a chunk is fetched from a peer after all."""

MIGRATIONS: Final = (
    """
    CREATE TABLE tree (
        id INTEGER PRIMARY KEY,
        manifest BLOB NOT NULL UNIQUE,
        complete INTEGER NOT NULL DEFAULT 0,
        size_bytes INTEGER NOT NULL,
        files INTEGER NOT NULL
    );
    CREATE TABLE object (
        id INTEGER PRIMARY KEY,
        device INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        executable INTEGER NOT NULL,
        UNIQUE (device, inode)
    );
    CREATE TABLE name (
        tree INTEGER NOT NULL REFERENCES tree (id),
        path TEXT NOT NULL,
        object INTEGER NOT NULL REFERENCES object (id),
        PRIMARY KEY (tree, path)
    ) WITHOUT ROWID;
    CREATE INDEX name_of_object ON name (object);
    CREATE TABLE chunk (
        key BLOB NOT NULL,
        object INTEGER NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (key, object)
    ) WITHOUT ROWID;
    """,
    upkeep.MIGRATION,
    absences.MIGRATION,
    source_records.MIGRATION,
)
"""The whole of ``node.db``: the index and, beside it, what other modules keep there."""


class Location(NamedTuple):
    """A place where a chunk was when it was last verified: `path` within a tree."""

    manifest: ManifestId
    path: str
    offset: int
    size_bytes: int
    mtime_ns: int
    executable: bool


class IndexedTree(NamedTuple):
    """A tree that is wholly in the index."""

    manifest: ManifestId
    size_bytes: int
    files: int


class ChunkIndex:
    """The chunk index in ``node.db``.

    Async methods are for trio tasks; those ending in ``_blocking`` do the same in a worker
    thread. Every write is a few short transactions that may be repeated: a tree counts only once
    the last of them is in. All raise StorageError, DatabaseDamaged included.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_tree(self, manifest: ManifestId, layout: Layout, tree: Path) -> None:
        """Add the verified tree of `manifest` at `tree`; adding it again changes nothing."""
        await trio.to_thread.run_sync(self.add_tree_blocking, manifest, layout, tree)

    async def remove_tree(self, manifest: ManifestId) -> None:
        """Forget a tree; what other trees share with it stays. No error if it is not there."""
        await trio.to_thread.run_sync(self.remove_tree_blocking, manifest)

    async def find(self, chunks: Sequence[ChunkId]) -> dict[ChunkId, list[Location]]:
        """Where these chunks may be; those that are nowhere have no item."""
        return await trio.to_thread.run_sync(self.find_blocking, chunks)

    async def trees(self) -> list[IndexedTree]:
        """Every tree that is wholly in the index."""
        return await self._database.run(_trees)

    def trees_blocking(self) -> list[IndexedTree]:
        return self._database.transact(_trees)

    def add_tree_blocking(self, manifest: ManifestId, layout: Layout, tree: Path) -> None:
        objects = FileObjects.unknown(layout)
        try:
            with TreeFolder.at(tree) as folder:
                objects.look(layout, folder)
        except OSError as error:
            raise storage_error(error, tree) from error
        self.add_files_blocking(Standing(manifest, layout, objects))

    def has_tree_blocking(self, manifest: ManifestId) -> bool:
        """Whether a tree is wholly in the index."""
        return self._database.transact(_has_tree, manifest)

    def add_files_blocking(
        self, tree: Standing, *, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Add a tree of which this is known already; what is `stopped` is left half, and mended
        by `follow`."""
        transact = self._database.transact
        if transact(_has_tree, tree.manifest):
            return
        shared = transact(index_rows.begin_tree, tree)
        object_of = array("q", bytes(8 * len(tree.layout.files)))
        for numbers in index_rows.file_batches(tree):
            if stopped():
                return
            transact(index_rows.add_files, tree, shared, numbers, object_of)
        for batch in index_rows.chunk_batches(tree.layout, object_of):
            if stopped():
                return
            transact(index_rows.add_chunks, tree, object_of, batch)
        transact(index_rows.complete_tree, tree.manifest)

    def remove_tree_blocking(self, manifest: ManifestId) -> None:
        self._database.transact(_remove_tree, manifest)

    def find_blocking(self, chunks: Sequence[ChunkId]) -> dict[ChunkId, list[Location]]:
        found: dict[ChunkId, list[Location]] = {}
        for start in range(0, len(chunks), LOOKUP_BATCH):
            found.update(self._database.transact(_find, chunks[start : start + LOOKUP_BATCH]))
        return found

    def follow(
        self,
        standing: Mapping[ManifestId, Path],
        layout_of: Callable[[ManifestId], Layout | None],
    ) -> None:
        """Let the index say what stands; blocks. Without it, there is only more to fetch."""
        try:
            indexed = {tree.manifest for tree in self.trees_blocking()}
            # Those that were begun count too: adding begins before a tree stands.
            for manifest in self._database.transact(_manifests):
                if manifest not in standing:
                    self.remove_tree_blocking(manifest)
            for manifest, path in standing.items():
                if manifest not in indexed and (layout := layout_of(manifest)) is not None:
                    self.add_tree_blocking(manifest, layout, path)
        except StorageError as error:
            log.error("index_unusable", why=error.sentence)

    def rebuild(self, trees: Mapping[ManifestId, Path], layouts: Iterable[Layout]) -> None:
        """Make the index say exactly what is in `trees`; blocks; used when node.db was lost.

        `layouts` may be a generator, so that one is in memory at a time; those without a tree
        are passed over. Contents are not hashed here: whoever reuses a chunk hashes it.
        """
        for indexed in self._database.transact(_manifests):
            if indexed not in trees:
                self.remove_tree_blocking(indexed)
        for layout in layouts:
            path = trees.get(layout.manifest)
            if path is not None:
                self.add_tree_blocking(layout.manifest, layout, path)
                log.info("index_tree_added", manifest=layout.manifest.hex())


def _has_tree(connection: sqlite3.Connection, manifest: ManifestId) -> bool:
    row = connection.execute(
        "SELECT complete FROM tree WHERE manifest = ?", (bytes(manifest),)
    ).fetchone()
    return row is not None and bool(row[0])


def _remove_tree(connection: sqlite3.Connection, manifest: ManifestId) -> None:
    row = connection.execute(
        "SELECT id FROM tree WHERE manifest = ?", (bytes(manifest),)
    ).fetchone()
    if row is None:
        return
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS gone (object INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM gone")
    connection.execute(
        "INSERT INTO gone SELECT DISTINCT object FROM name AS mine WHERE tree = ? AND NOT EXISTS"
        " (SELECT 1 FROM name AS other WHERE other.object = mine.object AND other.tree <> ?)",
        (row[0], row[0]),
    )
    connection.execute("DELETE FROM name WHERE tree = ?", (row[0],))
    # One pass over the table: an index by object would cost more at every insertion.
    connection.execute("DELETE FROM chunk WHERE object IN (SELECT object FROM gone)")
    connection.execute("DELETE FROM object WHERE id IN (SELECT object FROM gone)")
    connection.execute("DELETE FROM tree WHERE id = ?", (row[0],))
    connection.execute("DELETE FROM gone")


def _trees(connection: sqlite3.Connection) -> list[IndexedTree]:
    rows = connection.execute(
        "SELECT manifest, size_bytes, files FROM tree WHERE complete ORDER BY manifest"
    )
    return [IndexedTree(ManifestId(row[0]), row[1], row[2]) for row in rows]


def _manifests(connection: sqlite3.Connection) -> list[ManifestId]:
    return [ManifestId(row[0]) for row in connection.execute("SELECT manifest FROM tree")]


def _find(
    connection: sqlite3.Connection, chunks: Sequence[ChunkId]
) -> dict[ChunkId, list[Location]]:
    marks = ",".join("?" * len(chunks))
    hits: dict[bytes, list[tuple[int, int]]] = {}
    keys = [bytes(chunk[:KEY_BYTES]) for chunk in chunks]
    for key, number, offset in connection.execute(
        f"SELECT key, object, at FROM chunk WHERE key IN ({marks}) ORDER BY object",  # noqa: S608 - only question marks
        keys,
    ):
        places = hits.setdefault(key, [])
        if len(places) < MAX_LOCATIONS:
            places.append((number, offset))
    files = _named(connection, sorted({number for places in hits.values() for number, _ in places}))
    return {
        chunk: [
            files[number]._replace(offset=offset) for number, offset in hits[key] if number in files
        ]
        for chunk, key in zip(chunks, keys, strict=True)
        if key in hits
    }


def _named(connection: sqlite3.Connection, objects: Sequence[int]) -> dict[int, Location]:
    """One name for each file object."""
    files: dict[int, Location] = {}
    for start in range(0, len(objects), LOOKUP_BATCH):
        batch = objects[start : start + LOOKUP_BATCH]
        marks = ",".join("?" * len(batch))
        for number, size_bytes, mtime_ns, executable, path, manifest in connection.execute(
            "SELECT object.id, object.size_bytes, mtime_ns, executable, MIN(path), manifest"  # noqa: S608 - only question marks
            " FROM object JOIN name ON name.object = object.id JOIN tree ON tree.id = name.tree"
            f" WHERE object.id IN ({marks}) GROUP BY object.id",
            batch,
        ):
            files[number] = Location(
                ManifestId(manifest), path, 0, size_bytes, mtime_ns, bool(executable)
            )
    return files
