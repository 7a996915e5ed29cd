"""Writing a tree's rows into the chunk index, many at a time.

Most of a new version's files are links to files of the version before. Their names are taken over
from the rows of that tree: its file objects and their chunks are in the index already, which is
believed only for a file that has the same name, the same inode, and is said to be alike.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from itertools import islice
from typing import Final, NamedTuple

from archid.store.file_objects import FileObjects
from protocol.ids import ManifestId
from protocol.layout import Layout

KEY_BYTES: Final = 16
LOOKUP_BATCH: Final = 400
WRITE_BATCH: Final = 2_000
_SAMPLES: Final = 16
"""So many files are asked which trees they are in, to find the one that shares most of them."""


class Standing(NamedTuple):
    """A tree whose files are known as the file objects that they are."""

    manifest: ManifestId
    layout: Layout
    objects: FileObjects


def begin_tree(connection: sqlite3.Connection, tree: Standing) -> int | None:
    """Note that a tree is being added; gives the number of the tree that shares most with it."""
    root = tree.layout.root
    connection.execute(
        "INSERT OR IGNORE INTO tree (manifest, size_bytes, files) VALUES (?, ?, ?)",
        (bytes(tree.manifest), root.size_bytes, root.files),
    )
    found: Counter[int] = Counter()
    count = len(tree.layout.files)
    for number in range(0, count, count // _SAMPLES + 1):
        if tree.objects.is_known(number):
            rows = connection.execute(
                "SELECT DISTINCT name.tree FROM object JOIN name ON name.object = object.id"
                " JOIN tree ON tree.id = name.tree"
                " WHERE device = ? AND inode = ? AND complete AND manifest <> ?",
                (*_object_of(tree.objects, number), bytes(tree.manifest)),
            )
            found.update(row[0] for row in rows)
    return max(found, key=found.__getitem__, default=None)


def complete_tree(connection: sqlite3.Connection, manifest: ManifestId) -> None:
    """All its rows are there: from now on the tree counts."""
    connection.execute("UPDATE tree SET complete = 1 WHERE manifest = ?", (bytes(manifest),))


def file_batches(tree: Standing) -> Iterator[list[int]]:
    """The numbers of the files that are known, in path order, WRITE_BATCH at a time."""
    known = (n for n in range(len(tree.layout.files)) if tree.objects.is_known(n))
    while batch := list(islice(known, WRITE_BATCH)):
        yield batch


def add_files(
    connection: sqlite3.Connection,
    tree: Standing,
    shared: int | None,
    numbers: Sequence[int],
    object_of: array[int],
) -> None:
    """Add the names of a batch of files; those whose chunks are to be added go into `object_of`.

    That is a column by the files' numbers. `shared` is the number of another tree whose rows may
    say the same.
    """
    id_ = _begun(connection, tree)
    if id_ is None:
        return
    files = tree.layout.files
    taken = set() if shared is None else _take_names(connection, tree, id_, shared, numbers)
    found = _objects(connection, tree, [number for number in numbers if number not in taken])
    connection.executemany(
        "INSERT OR REPLACE INTO name (tree, path, object) VALUES (?, ?, ?)",
        ((id_, files.path(number), object_) for number, object_ in found.items()),
    )
    for number, object_ in found.items():
        object_of[number] = object_


def chunk_batches(layout: Layout, object_of: array[int]) -> Iterator[list[int]]:
    """The chunks of these files, about WRITE_BATCH at a time, in the order of their keys.

    That is the order of the table: each of its pages is written once, however many trees are in it.
    """
    first_bytes = layout.first_bytes()
    sorted_: list[array[int]] = [array("I") for _ in range(256)]
    for number, object_ in enumerate(object_of):
        if object_:
            for at in layout.files.chunks(number):
                sorted_[first_bytes[at]].append(at)
    batch: list[int] = []
    for some in sorted_:
        if batch and len(batch) + len(some) > WRITE_BATCH:
            yield batch
            batch = []
        batch += some
        if len(batch) > WRITE_BATCH:
            batch.sort(key=lambda at: layout.ids(range(at, at + 1)))
            whole = len(batch) // WRITE_BATCH * WRITE_BATCH
            yield from (batch[n : n + WRITE_BATCH] for n in range(0, whole, WRITE_BATCH))
            batch = batch[whole:]
    if batch:
        yield batch


def add_chunks(
    connection: sqlite3.Connection, tree: Standing, object_of: array[int], batch: Sequence[int]
) -> None:
    """Add a batch of chunks, those that are not known to be there."""
    id_ = _begun(connection, tree)
    if id_ is None:
        return
    rows = tree.layout.rows(batch, KEY_BYTES)
    # An object goes when its inode turns out to be another file, and its number to the next one.
    standing = _named_objects(connection, id_, {object_of[number] for _, number, _ in rows})
    chunks = sorted(
        (key, object_of[number], offset)
        for key, number, offset in rows
        if object_of[number] in standing
    )
    connection.executemany("INSERT OR IGNORE INTO chunk (key, object, at) VALUES (?, ?, ?)", chunks)


def _named_objects(connection: sqlite3.Connection, tree: int, objects: Set[int]) -> set[int]:
    """Those of these objects that a tree has a name for."""
    found: set[int] = set()
    wanted = list(objects)
    for start in range(0, len(wanted), LOOKUP_BATCH):
        some = wanted[start : start + LOOKUP_BATCH]
        marks = ",".join("?" * len(some))
        rows = connection.execute(
            f"SELECT object FROM name WHERE tree = ? AND object IN ({marks})",  # noqa: S608 - only question marks
            (tree, *some),
        )
        found.update(row[0] for row in rows)
    return found


def _begun(connection: sqlite3.Connection, tree: Standing) -> int | None:
    """The number of a tree; None if an older one of this version was buried meanwhile.

    Then the next start adds it again.
    """
    row = connection.execute(
        "SELECT id FROM tree WHERE manifest = ?", (bytes(tree.manifest),)
    ).fetchone()
    return None if row is None else int(row[0])


def _take_names(
    connection: sqlite3.Connection, tree: Standing, id_: int, shared: int, batch: Sequence[int]
) -> set[int]:
    """Take over those names of a batch that the other tree has for the same file objects.

    Gives the numbers of their files.
    """
    files, (devices, inodes) = tree.layout.files, tree.objects
    first, last = files.path(batch[0]), files.path(batch[-1])
    rows = connection.execute(
        "SELECT path, inode, device, size_bytes, executable, mtime_ns"
        " FROM name JOIN object ON object.id = name.object"
        " WHERE name.tree = ? AND path BETWEEN ? AND ? ORDER BY path",
        (shared, first, last),
    )
    # Both are in the order of the paths' bytes.
    numbers = iter(batch)
    number = next(numbers, None)
    path = files.path(number) if number is not None else ""
    found: set[int] = set()
    others: list[tuple[int, str]] = []
    for theirs, inode, device, *facts in rows:
        while number is not None and path < theirs:
            number = next(numbers, None)
            path = files.path(number) if number is not None else ""
        if (
            number is not None
            and path == theirs
            and inodes[number] == inode
            and devices[number] == device
            and tuple(facts) == files.facts(number)
        ):
            found.add(number)
        else:
            others.append((id_, theirs))
            # Between two names of this tree the other may have any number of its own.
            if len(others) > len(batch):
                break
    if len(others) > len(found):
        return set()
    connection.execute(
        "INSERT OR REPLACE INTO name (tree, path, object)"
        " SELECT ?, path, object FROM name WHERE tree = ? AND path BETWEEN ? AND ?",
        (id_, shared, first, last),
    )
    connection.executemany("DELETE FROM name WHERE tree = ? AND path = ?", others)
    return found


def _objects(
    connection: sqlite3.Connection, tree: Standing, numbers: Sequence[int]
) -> dict[int, int]:
    """The rows of file objects, made where there are none, by the numbers of files.

    An object whose inode went to another file starts afresh. Of files that differ and yet are one
    object, which no version was made of, only the first has a row.
    """
    known = _known_objects(connection, tree.objects, numbers)
    [last] = connection.execute("SELECT coalesce(max(id), 0) FROM object").fetchone()
    found: dict[int, int] = {}
    used: set[int] = set()
    fresh: list[tuple[int, ...]] = []
    stale: list[int] = []
    for number in numbers:
        if number in found:
            continue
        key = _object_of(tree.objects, number)
        wanted = tree.layout.files.facts(number)
        id_, *said = known.get(key, (None,))
        if id_ is None or tuple(said) != wanted:
            if id_ in used:
                continue
            if id_ is not None:
                stale.append(id_)
            id_ = last = last + 1
            known[key] = (id_, *wanted)
            fresh.append((id_, *key, *wanted))
        found[number] = id_
        used.add(id_)
    if stale:
        _remove_objects(connection, stale)
    connection.executemany(
        "INSERT INTO object (id, device, inode, size_bytes, executable, mtime_ns)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        fresh,
    )
    return found


def _known_objects(
    connection: sqlite3.Connection, objects: FileObjects, numbers: Sequence[int]
) -> dict[tuple[int, int], tuple[int, ...]]:
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for start in range(0, len(numbers), LOOKUP_BATCH):
        some = numbers[start : start + LOOKUP_BATCH]
        for device in {objects.devices[number] for number in some}:
            inodes = [objects.inodes[n] for n in some if objects.devices[n] == device]
            marks = ",".join("?" * len(inodes))
            for inode, *row in connection.execute(
                "SELECT inode, id, size_bytes, executable, mtime_ns FROM object"  # noqa: S608 - only question marks
                f" WHERE device = ? AND inode IN ({marks})",
                (device, *inodes),
            ):
                found[device, inode] = tuple(row)
    return found


def _remove_objects(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS stale (object INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM stale")
    connection.executemany("INSERT INTO stale VALUES (?)", ((id_,) for id_ in ids))
    connection.execute("DELETE FROM name WHERE object IN (SELECT object FROM stale)")
    # One pass over the table for all of them: it has no index by object.
    connection.execute("DELETE FROM chunk WHERE object IN (SELECT object FROM stale)")
    connection.execute("DELETE FROM object WHERE id IN (SELECT object FROM stale)")
    connection.execute("DELETE FROM stale")


def _object_of(objects: FileObjects, number: int) -> tuple[int, int]:
    return objects.devices[number], objects.inodes[number]
