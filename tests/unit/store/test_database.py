"""One SQLite file: transactions, migrations, and damage in words."""

import _sqlite3
import ctypes
import os
import sqlite3
import threading
from pathlib import Path

import pytest
import trio

from archid.errors import Conflict, StorageError
from archid.store.database import Database, set_aside
from archid.store.errors import DatabaseDamaged, DiskFull, StoreReadOnly
from tests.unit.store.disks import as_root, read_only, small_disk

_FIRST = "CREATE TABLE things (name TEXT PRIMARY KEY, data BLOB)"
_SECOND = "CREATE TABLE more (n INTEGER); INSERT INTO more VALUES (7)"


def _put(connection: sqlite3.Connection, name: str, data: bytes = b"") -> None:
    connection.execute("INSERT INTO things VALUES (?, ?)", (name, data))


def _names(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM things ORDER BY name")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.db"


async def test_a_function_runs_in_a_transaction_in_another_thread(path: Path) -> None:
    with Database(path, [_FIRST]) as database:
        await database.run(_put, "a", data=b"x")
        assert await database.run(_names) == ["a"]
        thread = await database.run(lambda _: threading.get_ident())
        assert thread != threading.get_ident()


def test_only_the_owner_reads_the_file(path: Path) -> None:
    before = os.umask(0)
    try:
        with Database(path, [_FIRST]) as database:
            database.transact(_put, "a")
            modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"node.db": 0o600, "node.db-wal": 0o600, "node.db-shm": 0o600}


async def test_one_call_runs_at_a_time_however_many_wait(path: Path) -> None:
    inside = 0

    def alone(connection: sqlite3.Connection) -> None:
        nonlocal inside
        inside += 1
        connection.execute("SELECT count(*) FROM things").fetchone()
        assert inside == 1
        inside -= 1

    with Database(path, [_FIRST]) as database:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(database.run, alone)


def test_what_raises_leaves_nothing_and_the_database_goes_on(path: Path) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        _put(connection, "lost")
        raise ValueError("no")

    with Database(path, [_FIRST]) as database:
        with pytest.raises(ValueError, match="no"):
            database.transact(fail)
        database.transact(_put, "kept")
        with pytest.raises(sqlite3.IntegrityError):
            database.transact(_put, "kept")
        assert database.transact(_names) == ["kept"]


def test_migrations_run_once_each_and_in_order(path: Path) -> None:
    with Database(path, [_FIRST]) as database:
        database.transact(_put, "old")
    for _ in range(2):
        with Database(path, [_FIRST, _SECOND], durable=True) as database:
            rows = database.transact(lambda c: c.execute("SELECT n FROM more").fetchall())
            assert rows == [(7,)]
            assert database.transact(_names) == ["old"]


def test_a_migration_that_fails_leaves_the_version_before(path: Path) -> None:
    with Database(path, [_FIRST]) as database:
        database.transact(_put, "old")
    with pytest.raises(StorageError, match="failed"):
        Database(path, [_FIRST, "CREATE TABLE more (n); CREATE TABLE things (n)"])
    with Database(path, [_FIRST, _SECOND]) as database:
        assert database.transact(_names) == ["old"]


def test_a_newer_schema_is_refused(path: Path) -> None:
    Database(path, [_FIRST, _SECOND]).close()
    with pytest.raises(Conflict, match="version 2") as caught:
        Database(path, [_FIRST])
    assert caught.value.code == "newer_format"


def _filled(path: Path) -> None:
    with Database(path, [_FIRST]) as database:
        for n in range(200):
            database.transact(_put, f"{n:04}", data=bytes([n]) * 2_000)


def test_a_truncated_database_is_damaged_not_empty(path: Path) -> None:
    _filled(path)
    whole = path.read_bytes()
    for keep in (100, 4096, 50_000, len(whole) - 4096):
        path.write_bytes(whole[:keep])
        with pytest.raises(DatabaseDamaged, match=r"node\.db is damaged"):
            Database(path, [_FIRST])


def test_flipped_bits_in_the_structure_are_noticed_when_it_is_opened(path: Path) -> None:
    _filled(path)
    damaged = bytearray(path.read_bytes())
    for page in range(1, len(damaged) // 4096):
        damaged[page * 4096 + 3] ^= 0x55
    path.write_bytes(damaged)
    with pytest.raises(DatabaseDamaged):
        Database(path, [_FIRST])


def test_something_else_in_its_place_is_damaged(path: Path) -> None:
    path.write_bytes(b"this was never a database, but it is long enough to look like one" * 100)
    with pytest.raises(DatabaseDamaged) as caught:
        Database(path, [_FIRST])
    assert caught.value.remedy is not None


def test_damage_that_shows_later_is_reported_as_damage(path: Path) -> None:
    _filled(path)
    with Database(path, [_FIRST]) as database:
        # What was read to check the file would otherwise still be in memory.
        database._connection.execute("PRAGMA cache_size = 0")
        database._connection.execute("PRAGMA shrink_memory")
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        with pytest.raises(DatabaseDamaged):
            database.transact(
                lambda c: c.execute("SELECT sum(length(data)) FROM things").fetchall()
            )


def test_a_damaged_database_can_be_set_aside_and_a_new_one_made(path: Path) -> None:
    path.write_bytes(b"x" * 5_000)
    path.with_name("node.db-wal").write_bytes(b"y")
    kept = set_aside(path)
    assert kept.read_bytes() == b"x" * 5_000
    assert not path.with_name("node.db-wal").exists()
    with Database(path, [_FIRST]) as database:
        assert database.transact(_names) == []


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        Database(tmp_path / "missing" / "node.db", [_FIRST])


def test_a_program_that_holds_the_database_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archid.store.database._BUSY_TIMEOUT_S", 0.01)
    with Database(path, [_FIRST]) as database:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Conflict, match="another process"):
            database.transact(_put, "a")
        other.execute("ROLLBACK")
        other.close()
        database.transact(_put, "a")


@as_root
def test_a_full_disk_is_named_and_what_was_committed_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "1m") as disk:
        with Database(disk / "node.db", [_FIRST]) as database:
            database.transact(_put, "kept")
            with pytest.raises(DiskFull):
                database.transact(_put, "large", data=bytes(4 << 20))
            assert database.transact(_names) == ["kept"]
        with Database(disk / "node.db", [_FIRST]) as database:
            assert database.transact(_names) == ["kept"]


@as_root
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with read_only(folder), pytest.raises(StoreReadOnly, match=str(folder)):
        Database(folder / "node.db", [_FIRST])
    Database(folder / "node.db", [_FIRST]).close()
    with read_only(folder), pytest.raises(StorageError) as caught:
        Database(folder / "node.db", [_FIRST])
    assert caught.value.code == "read_only"


def test_what_is_kept_of_pages_is_let_go_and_read_again(tmp_path: Path) -> None:
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_memory_used.restype = ctypes.c_int64
    with Database(tmp_path / "node.db", [_FIRST]) as database:
        for n in range(1000):
            database.transact(_put, f"{n:04}", bytes(1000))
        before = library.sqlite3_memory_used()
        if not before:
            pytest.skip("this SQLite does not count its memory")
        database.release_memory()
        assert library.sqlite3_memory_used() < before - 500_000
        assert len(database.transact(_names)) == 1000
