"""Backups of central: whole or refused, and nobody else's to read."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest

from archid.central import restoring
from archid.central.backup import Backup, take_backup
from archid.central.backup_file import BackupReader
from archid.central.keys import keys_folder
from archid.central.restoring import SERIAL_GAP, restore, was_restored
from archid.errors import ArchidError, Conflict, Denied, StorageError, Unavailable, UsageError
from archid.identity import Identity
from archid.journal import MIGRATIONS, Journal
from archid.store.database import Database
from archid.store.layout import StatePaths
from tests.unit.central.fleet import NOW, Clock, Fleet, publish

SECRET = "nothing that anybody would guess"


def back_up(fleet: Fleet, file: Path, passphrase: str = "", *, replace: bool = False) -> Backup:
    return take_backup(
        fleet.paths,
        file,
        database="",
        now=NOW,
        software="1",
        passphrase=passphrase,
        replace=replace,
    )


def put_back(file: Path, folder: Path, passphrase: str = "") -> StatePaths:
    paths = StatePaths(folder / "state", folder / "scripts")
    with file.open("rb") as opened:
        restore(BackupReader(opened, file.name), paths, database="", now=NOW, passphrase=passphrase)
    return paths


@pytest.mark.parametrize("passphrase", ["", SECRET])
async def test_a_restored_central_knows_what_the_backed_up_one_knew(
    fleet: Fleet, tmp_path: Path, passphrase: str
) -> None:
    with fleet.running() as service:  # the daemon runs meanwhile
        await publish(service, "film", "loop")
        taken = back_up(fleet, tmp_path / "backup", passphrase)
        order, scripts = service.state.order, await service.scripts()
    assert stat.S_IMODE(taken.file.stat().st_mode) == 0o600
    assert (taken.label.epoch, taken.label.serial) == order
    paths = put_back(taken.file, tmp_path / "new", passphrase)
    assert Identity.load(paths.state).node_id == fleet.node
    for path in (paths.identity, keys_folder(paths.state)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(one.stat().st_mode) & 0o077 == 0 for one in path.iterdir())
    restored = Fleet(paths, fleet.node, fleet.fleet, Clock())
    with restored.running() as service:
        assert service.state.order == order
        assert await service.scripts() == scripts


async def test_without_a_repo_to_ask_a_person_decides_and_no_number_is_used_twice(
    fleet: Fleet, tmp_path: Path
) -> None:
    taken = back_up(fleet, tmp_path / "backup")
    paths = put_back(taken.file, tmp_path / "new")
    with Fleet(paths, fleet.node, fleet.fleet, Clock()).running() as service:
        with pytest.raises(Unavailable, match="knows of no REPO"):
            await publish(service, "film", "loop")
        assert was_restored(paths.state)
        state = await service.trust_database(by="root")
        assert state.order[1] > taken.label.serial + SERIAL_GAP
        assert not was_restored(paths.state)
        await publish(service, "film", "loop")
        assert service.state.order[1] == state.order[1] + 1


def test_states_of_a_restored_central_are_newer_than_all_it_has_said(
    fleet: Fleet, tmp_path: Path
) -> None:
    with Database(fleet.paths.journal_db, MIGRATIONS) as database:
        Journal(database, Identity.load(fleet.paths.state)).advance("incarnation")
    paths = put_back(back_up(fleet, tmp_path / "backup").file, tmp_path / "new")
    with Database(paths.journal_db, MIGRATIONS) as database:
        journal = Journal(database, Identity.load(paths.state))
        assert journal.advance("incarnation") == int(NOW) + 1


@pytest.mark.parametrize("passphrase", ["", SECRET])
def test_a_file_that_is_not_whole_is_refused_and_nothing_is_written(
    fleet: Fleet, tmp_path: Path, passphrase: str
) -> None:
    whole = back_up(fleet, tmp_path / "backup", passphrase).file.read_bytes()
    middle = len(whole) // 2
    damaged = [
        *(whole[:length] for length in (1, 9, 17, 40, 200, middle, len(whole) - 33)),
        whole[:-1],
        whole + b"\0",
        *(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (18, 90, middle)),
    ]  # fmt: skip
    for number, data in enumerate(damaged):
        file = tmp_path / "damaged"
        file.write_bytes(data)
        with pytest.raises(StorageError) as refusal:
            put_back(file, tmp_path / "new", passphrase)
        assert refusal.value.code == "backup_damaged", number
        assert not (tmp_path / "new").exists()


def test_what_is_no_backup_or_of_a_newer_archid_is_refused() -> None:
    for data, error in (
        (b"", UsageError),
        (b"-----BEGIN ARCHID ROOT KEYS-----\n", UsageError),
        (b"archid backup 2\nwhatever", Conflict),
    ):
        with pytest.raises(error):
            BackupReader(io.BytesIO(data), "it")


def test_a_wrong_passphrase_is_told_from_damage(fleet: Fleet, tmp_path: Path) -> None:
    file = back_up(fleet, tmp_path / "backup", SECRET).file
    with pytest.raises(Denied) as refusal:
        put_back(file, tmp_path / "new", SECRET + " ")
    assert refusal.value.code == "passphrase"
    with pytest.raises(UsageError) as missing:
        put_back(file, tmp_path / "new")
    assert missing.value.code == "passphrase"
    data = file.read_bytes()
    for name in ("head", "ca"):
        assert (keys_folder(fleet.paths.state) / f"{name}.pem").read_bytes() not in data
    assert (keys_folder(fleet.paths.state) / "salt").read_bytes() not in data


def test_nothing_is_overwritten(fleet: Fleet, tmp_path: Path) -> None:
    taken = back_up(fleet, tmp_path / "backup")
    before = taken.file.read_bytes()
    with pytest.raises(Conflict, match="not overwritten"):
        back_up(fleet, taken.file)
    assert taken.file.read_bytes() == before
    back_up(fleet, taken.file, replace=True)
    with pytest.raises(UsageError):
        back_up(fleet, fleet.paths.state / "backup")
    with pytest.raises(UsageError):
        back_up(fleet, tmp_path / "missing" / "backup")

    taken_state = tmp_path / "used"
    (taken_state / "state").mkdir(parents=True)
    (taken_state / "state" / "something").touch()
    with pytest.raises(Conflict) as refusal:
        put_back(taken.file, taken_state)
    assert refusal.value.code == "state_not_empty"
    assert [one.name for one in (taken_state / "state").iterdir()] == ["something"]


def test_a_restore_that_fails_half_way_leaves_nothing_behind(fleet: Fleet, tmp_path: Path) -> None:
    file = back_up(fleet, tmp_path / "backup").file

    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restoring, "_build_documents", fail)
        with pytest.raises(ArchidError):
            put_back(file, tmp_path / "new")
    assert list((tmp_path / "new" / "state").iterdir()) == []
    put_back(file, tmp_path / "new")
