"""Publishing a folder again: what looks as when it was read is not opened, the rest is.

A real central and the real command; that a file is opened is seen by inotify, and what was
published is compared with the folder.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archid.store.settling import TRUSTED_FILE_SYSTEMS
from archid.store.syscalls import file_system_type
from tests.fleet.inotify import CREATE, OPEN, FileWatch, Happened
from tests.fleet.local import FleetNode
from tests.fleet.refusals import begun, ended
from tests.fleet.watched import watched_fleet

FILES = 400
PUBLISH = ("--kind", "loop")


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetNode]:
    base = tmp_path_factory.mktemp("fleet")
    fd = os.open(base, os.O_RDONLY)
    kind = file_system_type(fd)
    os.close(fd)
    if kind not in TRUSTED_FILE_SYSTEMS:
        pytest.skip("facts prove nothing on the file system of the temporary files")
    with watched_fleet(base) as fleet:
        yield fleet.found()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Many small files in one folder, so that one watch sees all of them."""
    made = tmp_path / "many"
    made.mkdir()
    for number in range(FILES):
        (made / f"{number:04}").write_bytes(os.urandom(number + 1))
    return made


def publish(central: FleetNode, folder: Path, script: str, *more: str) -> dict[str, Any]:
    made: dict[str, Any] = central.json("publish", str(folder), "--script", script, *PUBLISH, *more)
    return made


def settle(central: FleetNode, folder: Path, script: str) -> dict[str, Any]:
    """Publish until all of it is known; files that were written just before are read twice."""
    publish(central, folder, script)
    made = publish(central, folder, script)
    assert made["version"] == 1
    return made


def opened(folder: Path, act: Callable[[], object]) -> set[str]:
    """The files in the folder that are opened while something is done."""
    with FileWatch(folder, OPEN) as watch:
        act()
        found: set[str] = set()

        def take(event: Happened) -> bool:
            found.add(event.name)
            return event.name == "last"

        (folder / "last").touch()
        watch.wait(take)
        (folder / "last").unlink()
    return found - {"last", ""}


def compare(central: FleetNode, folder: Path, script: str) -> None:
    shown = central.scripts / "scripts" / script
    subprocess.run(["diff", "-r", str(folder), f"{shown}/"], check=True)


def test_a_folder_that_did_not_change_is_not_opened(central: FleetNode, folder: Path) -> None:
    settle(central, folder, "still")
    again: list[dict[str, Any]] = []
    assert opened(folder, lambda: again.append(publish(central, folder, "still"))) == set()
    assert (again[0]["version"], again[0]["unchanged"]) == (1, True)
    assert (again[0]["files"], again[0]["size_bytes"]) == (FILES, FILES * (FILES + 1) // 2)


def test_of_a_folder_that_changed_only_what_changed_is_opened(
    central: FleetNode, folder: Path
) -> None:
    settle(central, folder, "some")
    dates = (folder / "0100").stat()
    (folder / "0100").write_bytes(os.urandom(101))
    os.utime(folder / "0100", ns=(dates.st_atime_ns, dates.st_mtime_ns))
    (folder / "0200").unlink()
    (folder / "new").write_bytes(b"new")
    (folder / "0300").chmod(0o755)
    made: list[dict[str, Any]] = []
    found = opened(folder, lambda: made.append(publish(central, folder, "some")))
    assert found == {"0100", "0300", "new"}
    assert (made[0]["version"], made[0]["files"], made[0]["new_bytes"]) == (2, FILES, 104)
    compare(central, folder, "some")


def test_who_distrusts_the_dates_has_everything_read(central: FleetNode, folder: Path) -> None:
    settle(central, folder, "distrusted")
    found = opened(folder, lambda: publish(central, folder, "distrusted", "--rehash"))
    assert len(found) == FILES


def test_another_folder_with_the_same_content_is_read_and_is_no_new_version(
    central: FleetNode, folder: Path
) -> None:
    settle(central, folder, "copied")
    copy = folder.with_name("copy")
    subprocess.run(["cp", "-a", str(folder), str(copy)], check=True)
    made = publish(central, copy, "copied")
    assert (made["version"], made["unchanged"]) == (1, True)


@pytest.mark.parametrize("whose", ["command", "daemon"])
def test_a_kill_while_a_known_folder_is_published_leaves_nothing(
    central: FleetNode, folder: Path, whose: str
) -> None:
    script = f"killed {whose}"
    settle(central, folder, script)
    (folder / "0399").write_bytes(b"changed")
    staging = central.state / "staging"
    before = sorted(os.listdir(central.state / "trees"))
    with FileWatch(staging, CREATE) as watch:
        process = begun(central, "publish", str(folder), "--script", script, *PUBLISH)
        watch.wait(lambda one: one.name.startswith(".publish-"))
        (process if whose == "command" else central.process).kill()
    assert ended(process).code == (-9 if whose == "command" else 5)
    if whose == "daemon":
        central.process.start()
    made = publish(central, folder, script)
    assert (made["version"], made["unchanged"]) == (2, False)
    compare(central, folder, script)
    assert sorted(os.listdir(staging)) == []
    assert len(os.listdir(central.state / "trees")) == len(before) + 1
