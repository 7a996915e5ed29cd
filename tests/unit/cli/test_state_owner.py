"""A command that root runs writes the state as the state's owner, and what is root's as root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from archid.cli.state_owner import StateOwner, acting, make_places, owner_of
from archid.errors import UsageError

NOBODY = 65534
CONFIG = """version = 1
[node]
role = "central"
name = "central"
[network]
advertise = ["127.0.0.1:4777"]
[storage]
state = "{base}/state"
scripts = "{base}/scripts"
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder of root's that others may pass through, which pytest's own may not be."""
    folder = Path(tempfile.mkdtemp(prefix="archid-owner-"))
    folder.chmod(0o755)
    (folder / "archid.toml").write_text(CONFIG.format(base=folder))
    (folder / "private").mkdir(mode=0o700)
    secret = folder / "private" / "passphrase"
    secret.write_text("a passphrase for a test\n")
    secret.chmod(0o600)
    yield folder
    shutil.rmtree(folder)


def init(base: Path, *args: str) -> subprocess.CompletedProcess[str]:
    private = base / "private"
    return subprocess.run(
        [sys.executable, "-m", "archid", "--config", base / "archid.toml", "init", "fleet",
         "--root-keys", private / "root-keys", "--passphrase-file", private / "passphrase", *args],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def owners(folder: Path) -> set[int]:
    return {folder.lstat().st_uid, *(path.lstat().st_uid for path in folder.rglob("*"))}


@pytest.mark.parametrize("there", [True, False])
def test_root_founds_a_fleet_whose_state_is_the_services(base: Path, there: bool) -> None:
    if there:  # as the service's installation leaves it
        for name in ("state", "scripts"):
            (base / name).mkdir(mode=0o700)
            os.chown(base / name, NOBODY, NOBODY)
        done = init(base)
    else:
        done = init(base, "--user", "nobody")
    assert done.returncode == 0, done.stderr
    assert (base / "state/identity/fleet.json").exists()
    assert owners(base / "state") | owners(base / "scripts") == {NOBODY}
    keys = (base / "private/root-keys").stat()
    assert (keys.st_uid, stat.S_IMODE(keys.st_mode)) == (0, 0o600)


def test_a_fleet_that_does_not_come_to_be_takes_its_root_keys_away(base: Path) -> None:
    (base / "state").mkdir(mode=0o700)
    (base / "state/documents").mkdir(mode=0o700)  # root's, so that the owner cannot write there
    os.chown(base / "state", NOBODY, NOBODY)
    done = init(base)
    assert done.returncode == 7, done.stderr
    assert "documents" in done.stderr
    assert not (base / "private/root-keys").exists()
    assert not (base / "state/identity/fleet.json").exists()


def test_a_state_folder_of_somebody_else_is_not_taken(base: Path) -> None:
    (base / "state").mkdir()
    done = init(base, "--user", "nobody")
    assert done.returncode == 2
    assert f"chown nobody: {base / 'state'}" in done.stderr
    unknown = init(base, "--user", "nobody-at-all")
    assert unknown.returncode == 2
    assert "no user 'nobody-at-all'" in unknown.stderr


def test_roots_own_state_and_one_that_is_not_there_are_written_by_root(base: Path) -> None:
    assert owner_of(base / "state") is None
    (base / "state").mkdir()
    assert owner_of(base / "state") is None
    os.chown(base / "state", NOBODY, NOBODY)
    assert owner_of(base / "state") == StateOwner.of(NOBODY)
    with pytest.raises(UsageError):
        owner_of(base, "nobody")


def test_acting_ends_with_its_block_and_rests_inside_another(base: Path) -> None:
    owner = StateOwner.of(NOBODY)
    before = os.getresuid(), os.getresgid(), os.getgroups()
    (base / "place").mkdir()
    os.chown(base / "place", NOBODY, NOBODY)
    with acting(owner):
        (base / "place/theirs").touch()
        with pytest.raises(PermissionError):
            (base / "private/x").touch()
        with owner.resting():
            (base / "private/mine").touch()
        with pytest.raises(PermissionError):
            (base / "private/x").touch()
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
    assert (base / "place/theirs").stat().st_uid == NOBODY
    assert (base / "private/mine").stat().st_uid == 0


def test_root_makes_folders_only_where_nobody_else_could_have_put_something(base: Path) -> None:
    owner = StateOwner.of(NOBODY)
    (base / "theirs").mkdir()
    os.chown(base / "theirs", NOBODY, NOBODY)
    make_places(owner, (base / "deep/er", base / "theirs/inside"))
    assert ((base / "deep").stat().st_uid, (base / "deep/er").stat().st_uid) == (0, NOBODY)
    assert not (base / "theirs/inside").exists()
