"""State that is damaged on disk: what can be had again comes back, the rest is told.

One server with a release in force is stopped, one of its files is damaged, and it is started: it
must either come back with the release whole, or refuse with a sentence and leave all as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.refusals import refused
from tests.fleet.relay import Relay
from tests.fleet.scripts import noise
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")
MB = 1_000_000
NOTICED = (
    "index_damaged",
    "trust_file_damaged",
    "trust_file_rolled_back",
    "held_manifest_lost",
    "tree_damaged",
    "document_damaged",
    "leaf_damaged",
    "root_damaged",
    "fetch_failed",
)
"""What a daemon says at ERROR when it finds damage that it can make good."""


@dataclass(frozen=True)
class Setting:
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
    with watched_fleet(base, allow=NOTICED) as fleet, Relay(fleet.address()) as relay:
        relay.target = fleet.found(advertise=relay.address).address
        room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        for kind in KINDS:
            for number in range(3):
                write(base / kind / f"reel-{number}", MB + number)
            fleet.publish(base / kind, f"film-{kind}", kind)
        apply(fleet, "film", "film-feature")
        room.wait_active("film", timeout_s=60)
        yield Setting(fleet, relay, base)


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in noise(path.name + path.parent.name, size):
            file.write(block)


def apply(fleet: LocalFleet, name: str, feature: str) -> None:
    fleet.apply(
        name,
        scripts={"feature": feature, "sas": "film-sas", "loop": "film-loop"},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2099-01-02T00:00:00Z",
        sites='["lyon"]',
    )


# Ways of damage

Damage = Callable[[Path], None]


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    """A bit in the middle of every 64 bytes."""
    data = bytearray(path.read_bytes())
    for at in range(min(32, len(data) - 1), len(data), 64):
        data[at] ^= 0x20
    overwrite(path, bytes(data))


def replaced(path: Path) -> None:
    overwrite(path, b"this is something else\n" * 20)


def gone(path: Path) -> None:
    path.unlink()


def overwrite(path: Path, data: bytes) -> None:
    """In place, as a disk changes bytes: same inode, same modes."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


# What can be had again

RECOVERED: dict[str, tuple[str, Damage]] = {
    "index truncated": ("node.db", truncated),
    "index flipped": ("node.db", flipped),
    "index replaced": ("node.db", replaced),
    "index gone": ("node.db", gone),
    "trust truncated": ("trust", truncated),
    "trust flipped": ("trust", flipped),
    "trust emptied": ("trust", emptied),
    "trust gone": ("trust", gone),
    "addresses replaced": ("addresses.json", replaced),
    "piece truncated": ("documents/pieces", truncated),
    "piece flipped": ("documents/pieces", flipped),
    "manifest flipped": ("documents/manifests", flipped),
    "manifest gone": ("documents/manifests", gone),
    "leaf flipped": ("documents/leaves", flipped),
    "head truncated": ("documents/heads", truncated),
    "grants flipped": ("documents/grants", flipped),
}


UNREAD = ("documents/heads", "documents/grants")
"""Kept for the day when the trust file is lost."""


def files_at(place: Path) -> list[Path]:
    """The file itself, or every file below the folder."""
    if place.is_file():
        return [place]
    return [path for path in sorted(place.rglob("*")) if path.is_file()]


@pytest.mark.parametrize(("name", "damage"), RECOVERED.values(), ids=RECOVERED)
def test_what_can_be_had_again_is_had_again(setting: Setting, name: str, damage: Damage) -> None:
    room = setting.room
    room.process.stop()
    targets = files_at(room.state / name)
    assert targets, f"there is no {name}"
    for path in targets:
        damage(path)
    logged = room.log.stat().st_size
    room.process.start()
    room.wait_active("film", timeout_s=60)
    status = room.wait(
        lambda found: [
            script["state"] for script in found["deliveries"][0]["scripts"]
        ] == ["held"] * 3,
        what="holding all three scripts",
    )  # fmt: skip
    assert status["trust"]["serial"] == setting.central.status()["trust"]["serial"]
    for kind in KINDS:
        check_arrived(setting.base / kind, room.release_file("film", kind))
    _verify_until_whole(room)
    if damage is not gone and name not in UNREAD:
        said = room.log.read_bytes()[logged:].decode()
        assert "damaged" in said or "unreadable" in said, said


def _verify_until_whole(room: FleetNode) -> None:
    """A piece of a manifest is read when it is needed; verify needs all of them."""
    with EventTap(room) as tap:
        report = room.call("verify", script=None, manifest=None)
        lost = [one["manifest"] for one in report["trees"] if not one["ok"]]
        for damage in (damage for one in report["trees"] for damage in one["damage"]):
            assert damage["reason"] == "manifest", report
            assert "fetched again" in damage["sentence"]
        while lost:
            lost.remove(tap.wait("tree.placed", lambda one: one["manifest"] in lost)["manifest"])
    assert room.call("verify", script=None, manifest=None)["ok"]


# What must be told

REFUSED: dict[str, tuple[str, Damage, int, tuple[str, ...]]] = {
    "journal truncated": ("journal.db", truncated, 7, ("damaged",)),
    "journal replaced": ("journal.db", replaced, 7, ("damaged",)),
    "key truncated": ("identity/key.pem", truncated, 7, ("damaged", "backup", "archid leave")),
    "key emptied": ("identity/key.pem", emptied, 7, ("damaged", "backup", "archid leave")),
    "key gone": ("identity/key.pem", gone, 7, ("missing", "backup", "archid leave")),
    "key readable": ("identity/key.pem", lambda path: path.chmod(0o644), 7, ("chmod 600",)),
    "id flipped": ("identity/node", flipped, 7, ("damaged", "backup", "archid leave")),
    "certificate truncated": ("identity/certificate.pem", truncated, 7, ("damaged", "backup")),
    "certificate gone": ("identity/certificate.pem", gone, 7, ("missing", "backup")),
    "membership truncated": ("identity/fleet.json", truncated, 7, ("damaged", "backup")),
    "membership of the future": (
        "identity/fleet.json",
        lambda path: overwrite(path, b'{"format": 99}'),
        7,
        ("format 99", "newer archid"),
    ),
    "format of the future": (
        "format",
        lambda path: overwrite(path, b"archid state 99\n"),
        6,
        ("format 99", "newer archid"),
    ),
    "format replaced": ("format", replaced, 7, ("damaged", "archid state 1")),
    "journal of the future": (
        "journal.db",
        lambda path: set_version(path, 99),
        6,
        ("99", "newer"),
    ),
    "index of the future": ("node.db", lambda path: set_version(path, 99), 6, ("99", "newer")),
}  # fmt: skip


def set_version(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")


@pytest.mark.parametrize(("name", "damage", "code", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_again_is_told_and_left_alone(
    setting: Setting, name: str, damage: Damage, code: int, says: tuple[str, ...]
) -> None:
    room = setting.room
    if room.process.running:
        room.process.stop()
    path = room.state / name
    before, mode = path.read_bytes(), path.stat().st_mode
    damage(path)
    damaged = path.read_bytes() if path.exists() else None
    try:
        where = room.state if name == "format" else path
        refused(room, "run").check(code, str(where), *says)
        assert (path.read_bytes() if path.exists() else None) == damaged
    finally:
        path.write_bytes(before)
        path.chmod(mode)


def test_after_all_of_this_the_server_is_what_it_was(setting: Setting) -> None:
    room = setting.room
    room.process.start()
    room.wait_active("film", timeout_s=60)
    assert room.json("verify")["ok"]
    [reason] = room.status()["health"]["reasons"]
    assert reason["code"] == "documents_damaged"
    assert "Check the disk" in reason["remedy"]
    # What was set aside for whoever looks into it is a person's to remove.
    aside = room.state / "documents" / "damaged"
    assert str(aside) in reason["remedy"]
    shutil.rmtree(aside)
    assert room.status()["health"]["level"] == "ok"


# Central's own


def test_a_damaged_database_of_central_is_told_with_its_remedy(setting: Setting) -> None:
    central = setting.central
    central.process.stop()
    path = central.state / "central.db"
    before = path.read_bytes()
    for damage in (truncated, flipped, replaced):
        damage(path)
        refused(central, "run").check(7, str(path), "damaged", "backup")
        path.write_bytes(before)
    central.process.start()


# Trees and staging


def damage_file(path: Path, at: int | None) -> None:
    """Flip the bit `at`, or cut the file in two; its time stays."""
    info = path.stat()
    if at is None:
        os.truncate(path, info.st_size // 2)
    else:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.mark.parametrize(
    ("at", "reason"), [(500_000, "flipped"), (0, "flipped"), (None, "truncated")]
)
def test_verify_finds_what_is_wrong_with_a_tree(
    setting: Setting, at: int | None, reason: str
) -> None:
    room = setting.room
    path = room.release_file("film", "sas/reel-1").resolve()
    for arguments in (["--json", "verify"], ["verify", "film-sas"]):
        damage_file(path, at)
        with EventTap(room) as tap:
            done = room.run(*arguments, check=False)
            assert done.returncode == 7
            assert "Traceback" not in done.stderr
            if "--json" in arguments:
                report = json.loads(done.stdout)
                assert not report["ok"]
                [tree] = [one for one in report["trees"] if not one["ok"]]
                [damage] = tree["damage"]
                assert tree["name"] == "film-sas"
                assert (damage["path"], damage["reason"]) == ("reel-1", reason)
            else:
                assert "1 damaged file" in done.stdout
                assert damage["sentence"] in done.stdout
            tap.wait("tree.repaired")
    assert room.run("verify", "film-loop").returncode == 0
    assert room.json("verify")["ok"]


@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
def test_a_damaged_staging_file_is_fetched_again(setting: Setting, how: str) -> None:
    room, relay = setting.room, setting.relay
    source = setting.base / f"late-{how}"
    write(source / "reel", 20 * MB)
    setting.fleet.publish(source, f"late-{how}", "feature")
    relay.count_again()
    held = relay.at(10 * MB, relay.hold)
    apply(setting.fleet, f"late-{how}", f"late-{how}")
    assert held.wait(60)
    room.process.kill()
    [staged] = [path for path in files_at(room.state / "staging") if path.name == "reel"]
    assert staged.stat().st_blocks * 512 > 2 * MB, "nothing was staged yet"
    if how == "flipped":
        for at in range(100, 8 * MB, 100_000):
            damage_file(staged, at)
    elif how == "truncated":
        damage_file(staged, None)
    else:
        staged.unlink()
    relay.open()
    room.process.start()
    room.wait_active(f"late-{how}", timeout_s=60)
    check_arrived(source, room.release_file(f"late-{how}", "feature"))
    assert os.listdir(room.state / "staging") == []


# Two at one place


def test_a_second_daemon_on_the_same_state_is_refused(setting: Setting) -> None:
    room = setting.room
    second = FleetNode(room.folder, "second", "ice", setting.fleet.address())
    second.state = room.state
    second.write_config()
    refused(second, "run").check(
        6, str(room.state), f"(pid {room.process.pid})", "state folder of its own"
    )
    assert room.status()["pid"] == room.process.pid


def test_a_port_or_socket_in_use_is_named(setting: Setting) -> None:
    room = setting.room
    room.process.stop()
    host, _, port = room.address.rpartition(":")
    with closing(socket.create_server((host, int(port)))):
        refused(room, "run").check(6, room.address, "[network]")
    with closing(socket.socket(socket.AF_UNIX)) as taken:
        taken.bind(str(room.socket))
        taken.listen()
        refused(room, "run").check(6, str(room.socket), "[control]")
    room.socket.unlink()
    room.socket.write_text("not a socket")
    refused(room, "run").check(6, str(room.socket), "not a socket", "[control]")
    room.socket.unlink()
    room.process.start()
    room.wait_active("film", timeout_s=60)
