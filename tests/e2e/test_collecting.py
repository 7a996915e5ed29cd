"""What a server removes when a person asks for it, and what it keeps for players and by pins."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from archid.store.bundles import KEEP_S
from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.refusals import refused
from tests.fleet.watched import watched_fleet

DATES = {
    "prefetch": "2026-01-01T00:00:00Z",
    "start": "2026-01-02T00:00:00Z",
    "end": "2098-01-01T00:00:00Z",
}
FILMS = ("first", "second")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path_factory.mktemp("fleet")) as made:
        made.found()
        room = made.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle", start=False)
        text = room.config.read_text()
        room.config.write_text(text.replace("[control]", 'keep_ungranted = "0s"\n[control]'))
        room.process.start()
        for script in (*FILMS, "sas", "loop"):
            folder = made.base / "src" / script
            folder.mkdir(parents=True)
            (folder / "cue").write_bytes(script.encode() * 20_000)
            made.publish(folder, script, script if script in ("sas", "loop") else "feature")
        for film in FILMS:
            scripts = {"feature": film, "sas": "sas", "loop": "loop"}
            made.apply(film, scripts=scripts, sites='["lyon"]', **DATES)
            room.wait_active(film)
        yield made


@pytest.fixture
def room(fleet: LocalFleet) -> FleetNode:
    return fleet.nodes["lyon-1-salle"]


def withdraw(fleet: LocalFleet, room: FleetNode, film: str) -> None:
    with EventTap(room) as tap:
        fleet.central.run("release", "withdraw", film, "--yes")
        tap.wait("release.withdrawn")
    # As if that had been longer ago than players without a lock are given.
    then = time.time() - KEEP_S - 60
    for bundle in (room.state / "bundles").iterdir():
        os.utime(bundle, (then, then))


def trees(result: dict[str, Any]) -> list[str]:
    return [one["name"] for one in result["gone"] if one["kind"] == "tree"]


def held(room: FleetNode) -> int:
    trees: int = room.status()["storage"]["trees"]
    return trees


def test_a_player_that_holds_the_lock_keeps_its_files_until_it_lets_go(
    fleet: LocalFleet, room: FleetNode
) -> None:
    player = os.open(room.scripts / "releases" / "first", os.O_RDONLY)
    fcntl.flock(player, fcntl.LOCK_SH)
    withdraw(fleet, room, "first")
    assert not (room.scripts / "releases" / "first").exists()
    done = room.json("gc")
    assert done["gone"] == []
    assert [one["why"] for one in done["waiting"]] == ["a player holds a lock on it"]
    file = os.open("feature/cue", os.O_RDONLY, dir_fd=player)
    assert os.read(file, 10) == b"firstfirst"
    os.close(file)
    os.close(player)
    told = room.json("gc", "--dry-run")
    assert [one["kind"] for one in told["gone"]] == ["bundle", "tree", "manifest", "pieces"]
    assert trees(told) == ["first v1"]
    assert told["size_bytes"] >= 100_000
    assert held(room) == 4
    shown = room.run("gc", "--dry-run").stdout
    assert "Would be removed" in shown
    assert "withdrawn" in shown
    done = room.json("gc")
    assert (done["gone"], done["size_bytes"]) == (told["gone"], told["size_bytes"])
    assert done["failed"] == []
    assert held(room) == 3
    assert room.json("gc")["gone"] == []
    assert (room.release_file("second", "feature/cue")).read_bytes()[:6] == b"second"


def test_a_pin_keeps_a_version_over_a_crash(fleet: LocalFleet, room: FleetNode) -> None:
    refused(room, "pin", "mars").check(3, "is called 'mars'")
    refused(room, "unpin", "second").check(3, "Nothing is pinned as 'second'")
    pinned = room.json("pin", "second")["pins"]
    assert {pin["script"] for pin in pinned} == {"second", "sas", "loop"}
    room.process.kill()
    room.process.start()
    assert room.json("pin", "--list")["pins"] == pinned
    assert "pinned" in room.run("status").stdout
    withdraw(fleet, room, "second")
    assert trees(room.json("gc")) == []
    assert held(room) == 3
    room.run("unpin", "second")
    assert sorted(trees(room.json("gc"))) == ["loop v1", "sas v1", "second v1"]
    assert held(room) == 0
    assert list((room.state / "trees").iterdir()) == []
    assert list((room.scripts / "scripts").iterdir()) == []


def test_central_keeps_every_published_version(fleet: LocalFleet) -> None:
    assert fleet.central.json("gc")["gone"] == []
    assert held(fleet.central) == 4
