"""Disks that are full, read-only or several: a clear word, nothing lost, and on it goes.

The disks are small file systems in memory, mounted where a node's folders are, so that "full" is
what the kernel says.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from archid.store.bundles import KEEP_S
from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.refusals import refused
from tests.fleet.relay import Relay
from tests.fleet.scripts import noise
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet
from tests.unit.store.disks import as_root, read_only, small_disk

pytestmark = [as_root, pytest.mark.timeout(400)]

KINDS = ("feature", "sas", "loop")
MB = 1_000_000
ROOMY = "400m"
TIGHT = "45m"
WINDOW_BYTES = (8 << 20) + (1 << 20) + (128 << 10)
FAILURES = (
    "fetch_failed",
    "release_not_switched",
    "script_not_linked",
    "trust_not_saved",
    "journal_not_written",
    "index_unusable",
)
"""What a daemon may say at ERROR while its disk takes nothing."""


@dataclass(frozen=True)
class Setting:
    """Central and a server, each on a disk of its own; the line between them can be held."""

    fleet: LocalFleet
    relay: Relay
    base: Path

    @property
    def central(self) -> FleetNode:
        return self.fleet.central

    @property
    def room(self) -> FleetNode:
        return self.fleet.nodes["lyon-1-salle"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    base = tmp_path_factory.mktemp("fleet")
    states = [base / name / "state" for name in ("central", "lyon-1-salle")]
    for state in states:
        state.parent.mkdir()
    with (
        small_disk(states[0], ROOMY),
        small_disk(states[1], ROOMY),
        watched_fleet(base, allow=FAILURES) as fleet,
        Relay(fleet.address()) as relay,
    ):
        relay.target = fleet.found(advertise=relay.address).address
        fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        for kind in KINDS[1:]:
            write(base / kind / "index.json", 2000)
            fleet.publish(base / kind, kind, kind)
        yield Setting(fleet, relay, base)


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in noise(str(path), size):
            file.write(block)
    return path.parent


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[Callable[[], None]]:
    """Not a byte is free there; what is yielded frees them again."""
    filler = folder / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        size = 1 << 20
        while size >= 4096:
            try:
                os.write(fd, bytes(size))
            except OSError:
                size //= 2
    finally:
        os.close(fd)
    try:
        yield lambda: filler.unlink(missing_ok=True)
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def no_files_left(folder: Path) -> Iterator[None]:
    """Not a file, folder or link can be made there: the disk's table of them is full."""
    space = os.statvfs(folder)
    used = space.f_files - space.f_ffree
    mount = ["mount", "-o"]
    subprocess.run([*mount, f"remount,nr_inodes={used}", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run([*mount, f"remount,nr_inodes={space.f_files}", str(folder)], check=True)


def apply(setting: Setting, name: str, feature: str) -> None:
    setting.fleet.apply(
        name,
        scripts={"feature": feature, "sas": "sas", "loop": "loop"},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2099-01-02T00:00:00Z",
        sites='["lyon"]',
    )


def reasons(status: dict[str, Any]) -> str:
    """What health says, in one text."""
    return "\n".join(
        f"{one['level']}: {one['sentence']} {one['remedy'] or ''}"
        for one in status["health"]["reasons"]
    )


# Publishing


def test_publishing_on_a_full_disk_says_so_and_leaves_nothing(
    setting: Setting, tmp_path: Path
) -> None:
    central = setting.central
    folder = write(tmp_path / "large" / "reel", 60 * MB)
    before = central.call("scripts")
    trees = os.listdir(central.state / "trees")
    publish = ("publish", str(folder), "--script", "large", "--kind", "feature")
    resize(central.state, TIGHT)
    try:
        refused(central, *publish).check(
            7, "The disk is full", str(central.state), "Free some space"
        )
    finally:
        resize(central.state, ROOMY)
    assert central.call("scripts") == before
    assert os.listdir(central.state / "trees") == trees
    assert os.listdir(central.state / "staging") == []
    made = central.json(*publish)
    assert (made["version"], made["unchanged"]) == (1, False)
    assert central.json("verify", "large")["ok"]


def test_central_on_a_full_disk_signs_nothing_and_goes_on_afterwards(
    setting: Setting, tmp_path: Path
) -> None:
    central = setting.central
    small = write(tmp_path / "small" / "index", 100)
    publish = ("publish", str(small), "--script", "small", "--kind", "loop")
    before = (central.call("scripts"), central.status()["trust"])
    with filled(central.state):
        refused(central, *publish).check(7, "full", "Free some space")
        status = central.status()
        assert status["health"]["level"] in ("attention", "alarm")
        assert "0.0 GB are free" in reasons(status), reasons(status)
        assert "keep_free" in reasons(status)
        refused(
            central, "token", "create", "--role", "repo", "--name", "repo-9", "--site", "x"
        ).check(7, "full", "Free some space")
    assert (central.call("scripts"), central.status()["trust"]) == before
    assert os.listdir(central.state / "staging") == []
    assert central.json(*publish)["version"] == 1


# Fetching


def test_a_release_that_does_not_fit_waits_for_space(setting: Setting, tmp_path: Path) -> None:
    room = setting.room
    source = write(tmp_path / "film-1" / "reel", 40 * MB)
    setting.fleet.publish(source, "film-1", "feature")
    resize(room.state, TIGHT)
    try:
        apply(setting, "first", "film-1")
        status = room.wait(
            lambda found: any(one["state"] == "failed" for one in found["deliveries"]),
            what="saying that the disk is full",
        )
        [delivery] = status["deliveries"]
        assert "The disk is full" in delivery["reason"]
        assert "bytes were to be written" in delivery["reason"]
        assert "bytes are missing" in delivery["reason"]
        assert status["health"]["level"] == "alarm"
        assert "first: The disk is full" in reasons(status)
        assert "Free some space" in reasons(status)
        # What fits is there all the same.
        room.wait(
            lambda found: (
                [one["state"] for one in found["deliveries"][0]["scripts"]].count("held") == 2
            ),
            what="fetching what fits",
        )
    finally:
        resize(room.state, ROOMY)
    room.wait_active("first", timeout_s=60)
    check_arrived(source, room.release_file("first", "feature"))
    assert room.status()["health"]["level"] == "ok", reasons(room.status())


def test_a_disk_that_fills_up_in_mid_fetch_costs_no_byte_that_was_there(
    setting: Setting, tmp_path: Path
) -> None:
    room, relay = setting.room, setting.relay
    size = 40 * MB
    source = write(tmp_path / "film-2" / "reel", size)
    setting.fleet.publish(source, "film-2", "feature")
    before = setting.central.status()["traffic"]["span_bytes_sent"]
    relay.count_again()
    held = relay.at(size // 2, relay.hold)
    with EventTap(room) as tap:
        apply(setting, "second", "film-2")
        assert held.wait(60)
        with filled(room.state):
            relay.open()
            failed = tap.wait("fetch.failed")
            assert "The disk is full" in failed["reason"]
            # A new head comes while nothing can be written: the node must outlive it.
            apply(setting, "second", "film-1")
            apply(setting, "second", "film-2")
            status = room.status()
            assert status["health"]["level"] == "alarm"
            assert "The disk is full" in reasons(status)
    room.wait_active("second", generation=3, timeout_s=90)
    check_arrived(source, room.release_file("second", "feature"))
    sent = setting.central.status()["traffic"]["span_bytes_sent"] - before
    assert sent <= size + 2 * WINDOW_BYTES
    room.wait(
        lambda found: (
            found["trust"]["serial"] == setting.central.status()["trust"]["serial"]
            and found["health"]["level"] == "ok"
        ),
        what="believing the newest head and being well",
    )


# Switching


def generation(setting: Setting, text: str, start: str) -> None:
    """A version of a small script, and a release that switches to it at `start`."""
    folder = setting.base / "switched"
    folder.mkdir(exist_ok=True)
    (folder / "cue").write_text(text)
    setting.fleet.publish(folder, "switched", "feature")
    setting.fleet.apply(
        "switched",
        scripts={"feature": "switched", "sas": "sas", "loop": "loop"},
        prefetch="2026-01-01T00:00:00Z",
        start=start,
        end="2099-01-02T00:00:00Z",
        sites='["lyon"]',
    )


def test_a_full_disk_at_the_switch_leaves_the_old_release_and_a_rollback_still_works(
    setting: Setting,
) -> None:
    room = setting.room
    generation(setting, "old", "2026-01-02T00:00:00Z")
    room.wait_active("switched")
    with EventTap(room) as tap:
        generation(setting, "new", "2098-01-02T00:00:00Z")
        tap.wait("release.ready", lambda event: event["generation"] == 2)
    cue = room.release_file("switched", "feature/cue")
    with no_files_left(room.state):
        refused(room, "activate", "switched", "--yes").check(
            7, "The disk is full", str(room.state), "Free some space"
        )
        assert cue.read_text() == "old"
        assert not [name for name in os.listdir(room.scripts / "releases") if "new-" in name]
    room.run("activate", "switched", "--yes")
    assert cue.read_text() == "new"
    with filled(room.state):
        # What is kept back for this is spent.
        room.run("rollback", "switched", "--reason", "too dark")
        assert cue.read_text() == "old"
        room.process.kill()
    room.process.start()
    assert cue.read_text() == "old"
    assert "too dark" in str(room.status()["deliveries"])
    setting.fleet.central.run("release", "withdraw", "switched", "--yes")
    ballast = room.state / "ballast"  # made again by a service that starts beside the others
    room.wait(
        lambda found: (
            "withdrawn" in {one["state"] for one in found["deliveries"]}
            and ballast.exists()
            and ballast.stat().st_size > 0
        ),
        what="taking it away, with the ballast there again",
    )


def test_room_is_made_for_what_is_granted_by_removing_what_is_not(
    setting: Setting, tmp_path: Path
) -> None:
    room = setting.room
    for name in ("large-1", "large-2"):
        setting.fleet.publish(write(tmp_path / name / "reel", 60 * MB), name, "feature")
    apply(setting, "yielding", "large-1")
    room.wait_active("yielding", timeout_s=90)
    with EventTap(room) as tap:
        setting.fleet.central.run("release", "withdraw", "yielding", "--yes")
        tap.wait("release.withdrawn", lambda event: event["name"] == "yielding")
    then = time.time() - KEEP_S - 60
    for bundle in (room.state / "bundles").iterdir():
        os.utime(bundle, (then, then))
    space = os.statvfs(room.state)
    used = (space.f_blocks - space.f_bfree) * space.f_frsize
    resize(room.state, str(used + 50 * MB))
    try:
        with EventTap(room) as tap:
            apply(setting, "taking", "large-2")
            tap.wait("gc.finished")
        room.wait_active("taking", timeout_s=90)
        names = {one["name"] for one in room.call("scripts")["scripts"]}
        assert "large-1" not in names
    finally:
        resize(room.state, ROOMY)


# Read-only


def test_a_read_only_state_folder_is_named_at_the_start(setting: Setting) -> None:
    for node in (setting.room, setting.central):
        node.process.stop()
        with read_only(node.state):
            refused(node, "run").check(
                7, str(node.state), "mounted read-only", "Mount it read-write"
            )
        node.process.start()
    setting.room.wait_active("first", timeout_s=60)


def test_a_staging_folder_that_becomes_read_only_is_told_and_got_over(
    setting: Setting, tmp_path: Path
) -> None:
    room = setting.room
    source = write(tmp_path / "film-3" / "reel", 3 * MB)
    setting.fleet.publish(source, "film-3", "feature")
    with EventTap(room) as tap, read_only(room.state / "staging"):
        apply(setting, "third", "film-3")
        failed = tap.wait("fetch.failed")
        assert "mounted read-only" in failed["reason"]
        assert str(room.state / "staging") in failed["reason"]
        assert f"third: {failed['reason']}" in reasons(room.status())
    room.wait_active("third", timeout_s=60)
    check_arrived(source, room.release_file("third", "feature"))


def test_publishing_on_a_read_only_disk_says_so(setting: Setting, tmp_path: Path) -> None:
    folder = write(tmp_path / "late" / "reel", 1000)
    publish = ("publish", str(folder), "--script", "late", "--kind", "loop")
    with read_only(setting.central.state / "staging"):
        refused(setting.central, *publish).check(
            7, str(setting.central.state), "mounted read-only", "Mount it read-write"
        )
    assert setting.central.json(*publish)["version"] == 1


# Several


def test_the_scripts_folder_may_be_on_another_disk(setting: Setting) -> None:
    folder = setting.base / "lyon-1-sas" / "scripts"
    folder.mkdir(parents=True)
    with small_disk(folder, "4m"):
        other = setting.fleet.join("lyon-1-sas", "ice", site="lyon", room="1", kind="sas")
        try:
            # Who is in a room is settled when a release is applied.
            apply(setting, "third", "film-3")
            other.wait_active("third", generation=2, timeout_s=60)
            assert os.stat(other.scripts).st_dev != os.stat(other.state).st_dev
            check_arrived(setting.base / "sas", other.release_file("third", "sas"))
            check_arrived(setting.base / "sas", other.scripts / "scripts" / "sas")
        finally:
            other.process.stop()
