"""Writing a tree's rows into the chunk index, many at a time.

Most of a new version's files are links to files of the version before. Their names are taken over
from the rows of that tree: its file objects and their chunks are in the index already, which is
believed only for a file that has the same name, the same inode, and is said to be alike.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final, NamedTuple, TypeAlias

from archid.store.file_objects import FileObjects
from protocol.ids import ManifestId
from protocol.layout import Layout

KEY_BYTES: Final = 16
LOOKUP_BATCH: Final = 400
WRITE_BATCH: Final = 2_000
_SAMPLES: Final = 16
"""So many files are asked which trees they are in, to find the one that shares most of them."""

Stretch: TypeAlias = tuple[int, range]
"""A file's number, and some of its chunks."""


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


def batches(tree: Standing) -> Iterator[list[Stretch]]:
    """Stretches of the files that are known, in path order, about WRITE_BATCH chunks together."""
    files, objects = tree.layout.files, tree.objects
    batch: list[Stretch] = []
    room = WRITE_BATCH
    for number in range(len(files)):
        if not objects.is_known(number):
            continue
        first, end = files.chunks(number).start, files.chunks(number).stop
        while first < end:
            stretch = range(first, min(end, first + room))
            batch.append((number, stretch))
            room -= len(stretch)
            first = stretch.stop
            if not room:
                yield batch
                batch, room = [], WRITE_BATCH
    if batch:
        yield batch


def add_files(
    connection: sqlite3.Connection, tree: Standing, shared: int | None, batch: Sequence[Stretch]
) -> None:
    """Add the names of a batch, and the chunks that are not known to be there.

    `shared` is the number of another tree whose rows may say the same.
    """
    begun = connection.execute(
        "SELECT id FROM tree WHERE manifest = ?", (bytes(tree.manifest),)
    ).fetchone()
    if begun is None:
        # An older tree of this version was buried meanwhile; the next start adds it again.
        return
    [id_] = begun
    layout, files = tree.layout, tree.layout.files
    taken = set() if shared is None else _take_names(connection, tree, id_, shared, batch)
    rest = [stretch for stretch in batch if stretch[0] not in taken]
    object_of = _objects(connection, tree, [number for number, _ in rest])
    connection.executemany(
        "INSERT OR REPLACE INTO name (tree, path, object) VALUES (?, ?, ?)",
        ((id_, files.path(number), object_) for number, object_ in object_of.items()),
    )
    chunks: list[tuple[bytes, int, int]] = []
    for number, stretch in rest:
        if number not in object_of:
            continue
        keys, offsets = layout.keys(stretch, KEY_BYTES), layout.offsets(stretch)
        chunks += zip(keys, repeat(object_of[number]), offsets, strict=False)
    # In the order of the table's own key: neighbouring pages are touched once.
    chunks.sort()
    connection.executemany("INSERT OR IGNORE INTO chunk (key, object, at) VALUES (?, ?, ?)", chunks)


def _take_names(
    connection: sqlite3.Connection, tree: Standing, id_: int, shared: int, batch: Sequence[Stretch]
) -> set[int]:
    """Take over those names of a batch that the other tree has for the same file objects.

    Gives the numbers of their files.
    """
    files, (devices, inodes) = tree.layout.files, tree.objects
    first, last = files.path(batch[0][0]), files.path(batch[-1][0])
    rows = connection.execute(
        "SELECT path, inode, device, size_bytes, executable, mtime_ns"
        " FROM name JOIN object ON object.id = name.object"
        " WHERE name.tree = ? AND path BETWEEN ? AND ? ORDER BY path",
        (shared, first, last),
    )
    wanted = {number for number, _ in batch}
    # Both are in the order of the paths' bytes.
    numbers = iter(sorted(wanted))
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
            if len(others) > len(wanted):
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
