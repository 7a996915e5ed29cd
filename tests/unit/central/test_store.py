"""Central's database: its schema comes from the migrations, and it fails in sentences."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from archid.central.service import CentralService
from archid.central.store import CentralDatabase, database_url
from archid.central.tables import metadata, scripts
from archid.errors import Conflict, StorageError, Unavailable, UsageError
from tests.unit.central.fleet import Fleet, publish


def fresh(folder: Path) -> CentralDatabase:
    return CentralDatabase.open(database_url("", folder), create=True)


def test_the_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    database = fresh(tmp_path)
    with database.read() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        checks = {
            check["name"]
            for name in metadata.tables
            for check in sa.inspect(connection).get_check_constraints(name)
        }
    expected = {
        str(each.name)
        for table in metadata.tables.values()
        for each in table.constraints
        if isinstance(each, sa.CheckConstraint)
    }
    assert checks == expected
    database.close()


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    fresh(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "central.db")
    before = list(connection.iterdump())
    connection.close()
    CentralDatabase.open(database_url("", tmp_path)).close()
    connection = sqlite3.connect(tmp_path / "central.db")
    assert list(connection.iterdump()) == before
    connection.close()


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    fresh(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "central.db")
    connection.execute("UPDATE alembic_version SET version_num = '0999'")
    connection.commit()
    connection.close()
    with pytest.raises(Conflict) as caught:
        CentralDatabase.open(database_url("", tmp_path))
    assert caught.value.code == "newer_format"


def test_a_missing_database_is_not_made_by_the_way(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        CentralDatabase.open(database_url("", tmp_path))
    assert caught.value.code == "database_missing"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "page", "text"])
def test_a_damaged_database_is_told_with_its_remedy(fleet: Fleet, damage: str) -> None:
    path = fleet.paths.state / "central.db"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "page":
        data[8192:8292] = bytes(100)
    elif damage == "flipped":
        data[:64] = bytes(64)
    else:
        data = bytearray(b"this is no database at all\n" * 100)
    path.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        fleet.open()
    assert caught.value.code == "database_damaged"
    assert "backup" in caught.value.sentence


def test_a_transaction_that_fails_is_rolled_back_whole(tmp_path: Path) -> None:
    database = fresh(tmp_path)

    def fail() -> None:
        with database.write() as connection:
            connection.execute(scripts.insert().values(name="a", kind="loop"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as connection:
        assert connection.execute(sa.select(scripts)).all() == []
    database.close()


def test_constraints_hold_in_the_database_too(tmp_path: Path) -> None:
    database = fresh(tmp_path)
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(scripts.insert().values(name="a", kind="opera"))
    database.close()


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    database = fresh(tmp_path)
    with database.write() as writing:
        writing.execute(scripts.insert().values(name="a", kind="loop"))
        with database.read() as reading:
            assert reading.execute(sa.select(scripts)).all() == []
    database.close()


def test_a_database_without_a_fleet_is_told(fleet: Fleet) -> None:
    for path in fleet.paths.state.glob("central.db*"):
        path.unlink()
    with pytest.raises(Unavailable):
        fleet.open()
    fresh(fleet.paths.state).close()
    with pytest.raises(Conflict) as caught:
        fleet.open()
    assert caught.value.code == "no_fleet"


def test_urls_of_databases_that_archid_does_not_know_are_refused(tmp_path: Path) -> None:
    for setting in ("mysql://x/y", "not a url"):
        with pytest.raises(UsageError):
            database_url(setting, tmp_path)
    assert database_url("postgresql://u@h/d", tmp_path).get_backend_name() == "postgresql"


async def test_a_killed_writer_leaves_the_serials_consistent(fleet: Fleet, tmp_path: Path) -> None:
    """The files as they are in the middle of a transaction, opened by the next process."""
    with fleet.running() as service:
        await publish(service, "one", "loop")
        order = service.state.order
        with pytest.raises(ZeroDivisionError):
            await _interrupted(service, fleet, tmp_path / "killed")
    killed = Fleet(
        type(fleet.paths)(tmp_path / "killed", fleet.paths.scripts),
        fleet.node,
        fleet.fleet,
        fleet.clock,
    )
    with killed.running() as service:
        assert service.state.order == order
        await publish(service, "two", "loop")
        assert service.state.order == (order[0], order[1] + 1)


async def _interrupted(service: CentralService, fleet: Fleet, target: Path) -> None:
    import shutil

    def change(connection: sa.Connection) -> None:
        connection.execute(scripts.insert().values(name="half", kind="loop"))
        shutil.copytree(fleet.paths.state, target)
        raise ZeroDivisionError

    await service._ledger.change(change, reason="never")
