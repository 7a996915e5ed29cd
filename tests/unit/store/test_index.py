"""The chunk index: finds what is there, forgets what is gone, comes back when it is lost."""

from __future__ import annotations

import os
import resource
import sqlite3
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archid.store.database import Database, set_aside
from archid.store.errors import DatabaseDamaged
from archid.store.file_objects import FileObjects
from archid.store.index import MIGRATIONS, ChunkIndex
from archid.store.index_rows import LOOKUP_BATCH, Standing, chunk_batches
from protocol.ids import ChunkId
from protocol.layout import Layout
from protocol.manifest_builder import ManifestBuilder
from tests.unit.store.trees import FLEET, File, Tree, Version, a_film, place, version_of


def ids_of(version: Version) -> list[ChunkId]:
    return [version.layout.chunk(at).id for at in version.layout.distinct_chunks()]


def placed(base: Path, tree: Tree, number: int = 1) -> tuple[Version, Path]:
    for name in ("trees", "staging"):
        (base / name).mkdir(exist_ok=True)
    version = version_of(tree, version=number)
    return version, place(version, base / "trees", base / "staging")


@pytest.fixture
def index(tmp_path: Path) -> ChunkIndex:
    return ChunkIndex(Database(tmp_path / "node.db", MIGRATIONS))


async def test_every_chunk_of_a_tree_is_found_in_its_place(
    index: ChunkIndex, tmp_path: Path
) -> None:
    version, path = placed(tmp_path, a_film())
    await index.add_tree(version.manifest, version.layout, path)
    found = await index.find(ids_of(version))
    assert set(found) == set(ids_of(version))
    for at in version.layout.distinct_chunks():
        ref = version.layout.chunk(at)
        for place_ in found[ref.id]:
            data = (path / place_.path).read_bytes()[place_.offset :][: ref.length]
            assert data == version.chunk_bytes(at)
            entry = version.file(place_.path)
            assert (place_.size_bytes, place_.mtime_ns) == (entry.size_bytes, entry.mtime_ns)
            assert place_.executable == entry.executable
    [tree] = await index.trees()
    assert tree == (version.manifest, version.root.size_bytes, version.root.files)


async def test_what_is_nowhere_is_not_found(index: ChunkIndex) -> None:
    assert await index.find([ChunkId.of(b"%d" % n) for n in range(3 * LOOKUP_BATCH)]) == {}


async def test_adding_twice_changes_nothing(index: ChunkIndex, tmp_path: Path) -> None:
    version, path = placed(tmp_path, a_film())
    await index.add_tree(version.manifest, version.layout, path)
    before = await index.find(ids_of(version))
    await index.add_tree(version.manifest, version.layout, path)
    assert await index.find(ids_of(version)) == before


async def test_removing_a_tree_keeps_what_another_shares_with_it(
    index: ChunkIndex, tmp_path: Path
) -> None:
    one, path = placed(tmp_path, {"a": File(b"shared"), "b": File(b"only in one")})
    await index.add_tree(one.manifest, one.layout, path)
    two = version_of({"c": File(b"shared")}, version=2)
    other = tmp_path / "trees" / two.manifest.hex()
    other.mkdir()
    (other / "c").hardlink_to(path / "a")
    await index.add_tree(two.manifest, two.layout, other)
    await index.remove_tree(one.manifest)
    await index.remove_tree(one.manifest)
    found = await index.find(ids_of(one))
    assert [place_.path for places in found.values() for place_ in places] == ["c"]
    await index.remove_tree(two.manifest)
    assert await index.find(ids_of(one)) == {}
    count = index._database.transact(
        lambda connection: connection.execute("SELECT COUNT(*) FROM chunk").fetchone()
    )
    assert count == (0,)


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 900), max_size=6), batch=st.integers(1, 700))
def test_chunks_are_added_in_the_order_of_the_table_whose_pages_so_are_written_once(
    counts: list[int], batch: int
) -> None:
    builder = ManifestBuilder(FLEET, "feature", "film", 1)
    for number, count in enumerate(counts):
        ids = (ChunkId.of(b"%d %d" % (number, n)) for n in range(count))
        table = b"".join(bytes(one) + (9000).to_bytes(4, "big") for one in ids)
        builder.add_file_table(f"{number:03}", executable=False, mtime_ns=0, table=table)
    layout = Layout.from_pieces(*builder.finish())
    object_of = array("q", (number % 3 for number in range(len(counts))))  # one of three was there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("archid.store.index_rows.WRITE_BATCH", batch)
        batches = list(chunk_batches(layout, object_of))
    wanted = [
        at for number in range(len(counts)) if number % 3 for at in layout.files.chunks(number)
    ]
    assert sorted(at for some in batches for at in some) == wanted
    assert all(0 < len(some) <= batch for some in batches)
    keys = [sorted(layout.chunk(at).id for at in some) for some in batches]
    assert all(one[-1] < following[0] for one, following in pairwise(keys))


async def test_an_interrupted_addition_is_finished_by_the_next(
    index: ChunkIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, path = placed(tmp_path, a_film())
    monkeypatch.setattr("archid.store.index_rows.WRITE_BATCH", 100)
    calls = 0
    transact = index._database.transact

    def failing(function: object, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return transact(function, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(index._database, "transact", failing)
    with pytest.raises(KeyboardInterrupt):
        index.add_tree_blocking(version.manifest, version.layout, path)
    monkeypatch.undo()
    assert await index.trees() == []
    await index.add_tree(version.manifest, version.layout, path)
    assert len(await index.find(ids_of(version))) == len(ids_of(version))


async def test_a_tree_that_is_removed_while_it_is_added_is_added_by_the_next_start(
    index: ChunkIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, path = placed(tmp_path, a_film())
    monkeypatch.setattr("archid.store.index_rows.WRITE_BATCH", 100)
    calls = 0
    transact = index._database.transact

    def removing(function: object, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            monkeypatch.undo()
            index.remove_tree_blocking(version.manifest)
        return transact(function, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(index._database, "transact", removing)
    index.add_tree_blocking(version.manifest, version.layout, path)
    assert calls > 5, "nothing was removed meanwhile"
    assert await index.trees() == []
    index.follow({version.manifest: path}, lambda _: version.layout)
    assert len(await index.trees()) == 1
    assert len(await index.find(ids_of(version))) == len(ids_of(version))


async def test_following_forgets_a_tree_that_never_stood_and_was_added_in_part(
    index: ChunkIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, path = placed(tmp_path, a_film())
    monkeypatch.setattr("archid.store.index_rows.complete_tree", lambda *_: None)
    await index.add_tree(version.manifest, version.layout, path)
    assert await index.find(ids_of(version))
    index.follow({}, lambda _: None)
    assert await index.find(ids_of(version)) == {}


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
async def test_a_lost_index_is_rebuilt_from_the_trees(tmp_path: Path, damage: str) -> None:
    version, path = placed(tmp_path, a_film())
    database = Database(tmp_path / "node.db", MIGRATIONS)
    index = ChunkIndex(database)
    await index.add_tree(version.manifest, version.layout, path)
    before = await index.find(ids_of(version))
    database.close()
    file = tmp_path / "node.db"
    data = file.read_bytes()
    if damage == "delete":
        file.unlink()
    else:
        # A flipped page header, as a bad sector leaves it.
        broken = data[:4096] + bytes(2048) + data[6144:] if damage == "flip" else data[:10_000]
        file.write_bytes(broken)
        with pytest.raises(DatabaseDamaged):
            Database(file, MIGRATIONS)
        set_aside(file)
    index = ChunkIndex(Database(file, MIGRATIONS))
    index.rebuild({version.manifest: path}, iter([version.layout]))
    assert await index.find(ids_of(version)) == before


async def test_rebuilding_forgets_trees_that_are_gone(index: ChunkIndex, tmp_path: Path) -> None:
    one, path = placed(tmp_path, {"a": File(b"one")})
    two, other = placed(tmp_path, {"a": File(b"two")}, 2)
    await index.add_tree(one.manifest, one.layout, path)
    await index.add_tree(two.manifest, two.layout, other)
    index.rebuild({two.manifest: other}, [two.layout])
    assert [tree.manifest for tree in await index.trees()] == [two.manifest]


def test_a_reused_inode_does_not_answer_for_the_old_file(index: ChunkIndex, tmp_path: Path) -> None:
    one, path = placed(tmp_path, {"a": File(b"old" * 100)})
    index.add_tree_blocking(one.manifest, one.layout, path)
    two = version_of({"a": File(b"new" * 50)}, version=2)
    # As if the first tree had been deleted behind the index's back and its inode given away.
    (path / "a").chmod(0o644)
    (path / "a").write_bytes(b"new" * 50)
    index.add_tree_blocking(two.manifest, two.layout, path)
    assert index.find_blocking(ids_of(one)) == {}
    assert set(index.find_blocking(ids_of(two))) == set(ids_of(two))


@pytest.mark.parametrize("batch", [2_000, 1])
async def test_one_file_object_that_is_said_to_be_two_files_answers_for_one_of_them(
    index: ChunkIndex, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archid.store.index_rows.WRITE_BATCH", batch)
    # What a program that links equal files to one another leaves behind.
    version, path = placed(
        tmp_path, {"a": File(b"equal"), "b": File(b"equal", mtime_ns=1), "c": File(b"other")}
    )
    path.chmod(0o755)
    (path / "b").unlink()
    (path / "b").hardlink_to(path / "a")
    await index.add_tree(version.manifest, version.layout, path)
    found = await index.find(ids_of(version))
    paths = sorted(place_.path for places in found.values() for place_ in places)
    assert paths in (["a", "c"], ["b", "c"])
    await index.remove_tree(version.manifest)
    left = index._database.transact(
        lambda connection: connection.execute("SELECT object FROM chunk").fetchall()
    )
    assert left == [], "else they would say something of the next object with this number"


def test_inodes_of_any_64_bits_are_told_apart(index: ChunkIndex) -> None:
    version = version_of({"a": File(b"one"), "b": File(b"two"), "c": File(b"three")})
    objects = FileObjects.unknown(version.layout)
    for number, inode in enumerate((2**64 - 1, 2**63, 2**63 - 1)):
        objects.put(number, os.stat_result((0o100444, inode, 2**64 - 7, 1, 0, 0, 3, 0, 0, 0)))
    index.add_files_blocking(Standing(version.manifest, version.layout, objects))
    ids = ids_of(version)
    found = index.find_blocking(ids)
    assert [[place_.path for place_ in found[one]] for one in ids] == [["a"], ["b"], ["c"]]


async def test_reused_inodes_of_many_files_are_forgotten_in_one_pass(
    index: ChunkIndex, tmp_path: Path
) -> None:
    old: Tree = {f"{n:03}": File(b"old %03d" % n * 100) for n in range(200)}
    one, path = placed(tmp_path, old)
    await index.add_tree(one.manifest, one.layout, path)
    two = version_of({name: File(b"new" + name.encode()) for name in old}, version=2)
    for name in old:
        (path / name).chmod(0o644)
        (path / name).write_bytes(b"new" + name.encode())
    statements: list[str] = []
    connection = index._database._connection
    connection.set_trace_callback(statements.append)
    await index.add_tree(two.manifest, two.layout, path)
    connection.set_trace_callback(None)
    assert sum(one.startswith("DELETE FROM chunk") for one in statements) == 1
    assert await index.find(ids_of(one)) == {}
    assert set(await index.find(ids_of(two))) == set(ids_of(two))


async def test_what_is_kept_of_a_tree_of_which_little_is_left_is_found_in_few_rows(
    index: ChunkIndex, tmp_path: Path
) -> None:
    large: Tree = {f"{n:05}": File(b"%05d" % n) for n in range(3000)}
    one, path = placed(tmp_path, large)
    await index.add_tree(one.manifest, one.layout, path)
    two = version_of({name: large[name] for name in ("00000", "02999")}, version=2)
    staged = tmp_path / "staging" / two.manifest.hex()
    staged.mkdir()
    for name in two.tree:
        (staged / name).hardlink_to(path / name)
    rows = 0

    def counting(_cursor: sqlite3.Cursor, row: tuple[object, ...]) -> tuple[object, ...]:
        nonlocal rows
        rows += 1
        return row

    index._database._connection.row_factory = counting
    await index.add_tree(two.manifest, two.layout, staged)
    index._database._connection.row_factory = None
    assert rows < 100
    assert set(await index.find(ids_of(two))) == set(ids_of(two))
    await index.remove_tree(one.manifest)
    assert set(await index.find(ids_of(two))) == set(ids_of(two))


@pytest.mark.long
def test_a_million_chunks_cost_little_memory(index: ChunkIndex, tmp_path: Path) -> None:
    builder = ManifestBuilder(FLEET, "feature", "A long film", 1)
    chunks = ((ChunkId.of(n.to_bytes(8, "big")), 1000) for n in range(1_000_000))
    builder.add_file("a", executable=False, mtime_ns=1, chunks=chunks)
    root, pieces = builder.finish()
    layout = Layout.from_pieces(root, pieces)
    with (tmp_path / "a").open("wb") as file:
        file.truncate(root.size_bytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index.add_tree_blocking(root.id, layout, tmp_path)
    wanted = [layout.chunk(at).id for at in range(0, 1_000_000, 100)]
    assert len(index.find_blocking(wanted)) == len(wanted)
    index.remove_tree_blocking(root.id)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000
    assert (tmp_path / "node.db").stat().st_size < 60_000_000


def _rows(index: ChunkIndex) -> list[tuple[object, ...]]:
    """What the index says, whatever numbers it has given to trees and objects."""
    return index._database.transact(
        lambda connection: connection.execute(
            "SELECT tree.manifest, tree.complete, path, device, inode, object.size_bytes, mtime_ns,"
            " executable, key, at FROM name JOIN tree ON tree.id = name.tree"
            " JOIN object ON object.id = name.object LEFT JOIN chunk ON chunk.object = object.id"
            " ORDER BY tree.manifest, path, key"
        ).fetchall()
    )


@pytest.mark.parametrize("batch", [20_000, 3])
async def test_names_taken_over_from_another_tree_say_what_looking_afresh_does(
    index: ChunkIndex, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archid.store.index_rows.WRITE_BATCH", batch)
    same: Tree = {"d": None} | {f"d/{n}": File(b"%d" % n * 5000) for n in range(30)}
    one, path = placed(tmp_path, {**same, "moved": File(b"moved"), "d/x": File(b"old")})
    two = version_of({**same, "elsewhere": File(b"moved"), "d/x": File(b"new")}, version=2)
    await index.add_tree(one.manifest, one.layout, path)
    # One file of the older tree was made anew since, and the new one is linked to that.
    (path / "d").chmod(0o755)
    again = (path / "d/7").read_bytes()
    (path / "d/7").rename(tmp_path / "aside")
    (path / "d/7").write_bytes(again)
    staged = tmp_path / "staging" / two.manifest.hex()
    for entry in two.layout.files:
        (staged / entry.path).parent.mkdir(exist_ok=True, parents=True)
        older = path / entry.path.replace("elsewhere", "moved")
        if entry.path == "d/x":
            (staged / "d/x").write_bytes(b"new")
        else:
            (staged / entry.path).hardlink_to(older)
    await index.add_tree(two.manifest, two.layout, staged)
    afresh = ChunkIndex(Database(tmp_path / "afresh.db", MIGRATIONS))
    await afresh.add_tree(two.manifest, two.layout, staged)
    mine = [row for row in _rows(index) if row[0] == bytes(two.manifest)]
    assert mine == _rows(afresh)
    assert {row[2] for row in mine} == {file.path for file in two.layout.files}
