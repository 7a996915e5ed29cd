"""Promises about the unit, the users and folders beside it, and the script that installs them.

What systemd itself makes of these files, without a machine that boots; for that there is
``tests/e2e/test_systemd.py``.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from archid.config import ControlSettings, StorageSettings
from archid.errors import (
    ArchidError,
    Conflict,
    Denied,
    NotFound,
    StorageError,
    TrustFailure,
    Unavailable,
    UsageError,
)

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "archid.service"


def settings() -> dict[str, list[str]]:
    """Every setting of the unit, by name, with each value given to it."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def systemd_analyze(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, args)], capture_output=True, text=True, check=False
    )


def test_the_sandbox_is_rated_under_two() -> None:
    rated = systemd_analyze("security", "--offline=true", "--no-pager", UNIT)
    assert rated.returncode == 0, rated.stderr
    score = re.search(r"exposure level for archid\.service: ([0-9.]+)", rated.stdout)
    assert score is not None
    assert float(score[1]) < 2.0


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/archid", "/bin/true"))
    verified = systemd_analyze("verify", unit)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_nothing_in_it_hides_the_scripts_or_who_is_calling() -> None:
    found = settings()
    # a user namespace makes every peer of the control socket "nobody"; the others move, hide or
    # re-own the folders that the player's group reads
    for name in (
        "PrivateUsers", "DynamicUser", "StateDirectory", "RootDirectory", "RootImage",
        "TemporaryFileSystem", "InaccessiblePaths", "PrivateNetwork",
    ):  # fmt: skip
        assert name not in found, name
    assert found["User"] == ["archid"]
    storage = StorageSettings()
    writable = found["ReadWritePaths"][0].replace("-/", "/").split()
    assert writable == [str(storage.state), str(storage.scripts)]
    assert f"/run/{found['RuntimeDirectory'][0]}" == str(ControlSettings().socket.parent)


def test_it_is_not_started_again_where_a_person_has_to_act() -> None:
    never = {int(code) for code in settings()["RestartPreventExitStatus"][0].split()}
    assert never == {
        each.exit_code for each in (UsageError, NotFound, Denied, Conflict, TrustFailure)
    }
    again = {each.exit_code for each in (ArchidError, Unavailable, StorageError)}
    assert not never & again
    assert settings()["Restart"] == ["on-failure"]
    assert settings()["StartLimitIntervalSec"] == ["0"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder like an installed system's, for systemd's own tools."""
    for kind in ("sysusers", "tmpfiles"):
        folder = tmp_path / f"usr/lib/{kind}.d"
        folder.mkdir(parents=True)
        shutil.copy(SYSTEMD / f"archid.{kind}.conf", folder / "archid.conf")
    for name in ("etc", "var/lib", "srv"):
        (tmp_path / name).mkdir(parents=True)
    made = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return tmp_path


def ids(file: Path) -> dict[str, list[str]]:
    return {line.split(":")[0]: line.split(":") for line in file.read_text().splitlines()}


def make_folders(root: Path) -> None:
    done = subprocess.run(
        ["systemd-tmpfiles", f"--root={root}", "--create"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_users_and_groups_are_those_of_the_configuration(root: Path) -> None:
    groups, users = ids(root / "etc/group"), ids(root / "etc/passwd")
    control = ControlSettings()
    assert {control.group, control.admin_group, "archid-player"} <= groups.keys()
    assert groups["archid-player"][3] == "archid"  # so that it may give folders to that group
    assert users["archid"][3] == groups["archid"][2]
    assert users["archid"][6].endswith("nologin")


def test_folders_are_private_when_made_and_left_alone_afterwards(root: Path) -> None:
    state, scripts = root / "var/lib/archid", root / "srv/archid"
    make_folders(root)
    uid = int(ids(root / "etc/passwd")["archid"][2])
    assert [(path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) for path in (state, scripts)]\
        == [(uid, 0o700), (uid, 0o750)]  # fmt: skip
    player = int(ids(root / "etc/group")["archid-player"][2])
    for path, mode in ((state, 0o710), (scripts, 0o750)):  # what the daemon makes of them
        shutil.chown(path, group=player)
        path.chmod(mode)
    make_folders(root)
    assert [(path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) for path in (state, scripts)]\
        == [(player, 0o710), (player, 0o750)]  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"ROLE": "rpo"}, "ROLE must be central, repo or ice, not 'rpo'"),
        ({"PREFIX": "usr"}, "PREFIX must be an absolute path, not 'usr'"),
        ({"PREFIX": "/usr/../etc"}, "PREFIX must be an absolute path"),
        ({"PREFIX": "/opt/my archid"}, "PREFIX must be an absolute path"),
        ({"DESTDIR": "stage"}, "DESTDIR must be an absolute path, not 'stage'"),
        ({"PYTHON": "/nowhere/python"}, "'/nowhere/python' is not Python 3.11 or later"),
    ],
)
def test_what_cannot_be_installed_is_refused_before_anything_is_written(
    tmp_path: Path, environment: dict[str, str], complaint: str
) -> None:
    target = tmp_path / "stage"
    done = subprocess.run(
        [SYSTEMD / "install", "install"],
        env={"PATH": "/usr/bin:/bin", "DESTDIR": str(target), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert complaint in done.stderr
    assert not target.exists()
