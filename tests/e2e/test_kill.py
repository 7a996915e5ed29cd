"""Processes killed with -9 at the worst moments: what was there stays, what was begun goes on.

A receiver is killed by the line that feeds it, in mid-stream, after a chosen number of bytes; a
publication by whoever sees its files appear. No moment is left to luck.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.events import EventTap
from tests.fleet.inotify import CREATE, MOVED_TO, FileWatch
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.refusals import begun, ended
from tests.fleet.relay import Relay
from tests.fleet.scripts import ScriptShape, write_script
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")
FILM = ScriptShape(reels=4, panel_bytes=5_000_000, cues=200)  # about 122 MB
KILLED_AT = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
WINDOW_BYTES = 8 << 20
SPAN_BYTES = (1 << 20) + (128 << 10)
"""The largest span: what it aims at, and the chunk that goes beyond."""
BEGINNING_BYTES = 1 << 20
"""More than a connection carries before content: proofs, documents, pieces of the manifest."""


@dataclass(frozen=True)
class Fed:
    """A fleet whose one server hears from central through a relay and from nobody else."""

    fleet: LocalFleet
    relay: Relay
    source: Path
    size_bytes: int

    @property
    def central(self) -> FleetNode:
        return self.fleet.central

    @property
    def room(self) -> FleetNode:
        return self.fleet.nodes["lyon-1-salle"]


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    base = tmp_path_factory.mktemp("fleet")
    with watched_fleet(base) as fleet, Relay(fleet.address()) as relay:
        central = fleet.found(advertise=relay.address)
        relay.target = central.address
        fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle", start=False)
        size_bytes = write_script(base / "feature", "film", "feature", FILM)
        fleet.publish(base / "feature", "film-feature", "feature")
        for kind in KINDS[1:]:
            (base / kind).mkdir()
            size_bytes += (base / kind / "index.json").write_text(kind)
            fleet.publish(base / kind, f"film-{kind}", kind)
        yield Fed(fleet, relay, base / "feature", size_bytes)


def apply(fed: Fed, name: str) -> None:
    fed.fleet.apply(
        name,
        scripts={kind: f"film-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2099-01-02T00:00:00Z",
        sites='["lyon"]',
    )


def test_a_receiver_killed_ten_times_gets_all_of_it_and_little_twice(fed: Fed) -> None:
    apply(fed, "film")
    arrived = 0
    for point in KILLED_AT:
        fed.relay.hold()
        fed.relay.count_again()
        fed.room.process.start()
        with EventTap(fed.room) as tap:
            # The line stands still once content flows, until it is known how much there is.
            fed.relay.at(BEGINNING_BYTES, fed.relay.hold)
            fed.relay.open()
            begun = tap.wait("fetch.started", lambda one: one["size_bytes"] > 1 << 20)
        held = begun["held_bytes"]
        assert held >= arrived - WINDOW_BYTES - SPAN_BYTES - BEGINNING_BYTES, "a resume forgot"
        arrived = int(point * fed.size_bytes)
        killed = fed.relay.at(arrived - held, fed.room.process.kill)
        fed.relay.open()
        assert killed.wait(60), f"only {fed.relay.down_bytes} bytes came"
    assert not os.listdir(fed.room.state / "trees")[2:], "it was whole before it was killed"
    fed.room.process.start()
    fed.room.wait_active("film")
    check_arrived(fed.source, fed.room.release_file("film", "feature"))
    sent = fed.central.status()["traffic"]["span_bytes_sent"]
    assert sent >= fed.size_bytes
    assert sent <= fed.size_bytes + len(KILLED_AT) * (WINDOW_BYTES + SPAN_BYTES)
    assert os.listdir(fed.room.state / "staging") == []


def test_a_release_that_central_said_is_applied_survives_its_death(fed: Fed) -> None:
    if not fed.room.process.running:
        fed.room.process.start()
    apply(fed, "second film")
    fed.central.process.kill()
    fed.central.process.start()
    names = [one["name"] for one in fed.central.call("release.list")["releases"]]
    assert "second film" in names
    fed.room.wait_active("second film")


# Publishing

FILES = 4000


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of more files than the command hands over at a time."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:04}").write_bytes(number.to_bytes(2, "big") * 1_000)
    return folder


def estate(central: FleetNode) -> dict[str, Any]:
    """What a publication adds to."""
    folders = ("trees", "staging", "documents/manifests")
    return {
        "scripts": central.call("scripts"),
        **{name: sorted(os.listdir(central.state / name)) for name in folders},
        "links": sorted(os.listdir(central.scripts / "scripts")),
    }


def wait_staged(watch: FileWatch, name: str) -> None:
    """Return once the publication that is about to begin has staged the file `name`."""
    inside = watch.path / watch.wait(lambda one: one.name.startswith(".publish-")).name
    with FileWatch(inside, CREATE) as files:
        if not (inside / name).exists():
            files.wait(lambda one: one.name == name)


@pytest.mark.parametrize("name", ["0000", "0150", "0300"])
def test_a_publisher_that_is_killed_leaves_nothing(fed: Fed, many: Path, name: str) -> None:
    before = estate(fed.central)
    publish = ("publish", str(many), "--script", f"killed at {name}", "--kind", "loop")
    with EventTap(fed.central) as tap, FileWatch(fed.central.state / "staging", CREATE) as watch:
        process = begun(fed.central, *publish)
        wait_staged(watch, name)
        process.kill()
        assert ended(process).code == -9
        tap.wait("publish.abandoned")
    assert estate(fed.central) == before
    made = fed.central.json(*publish)
    assert (made["version"], made["files"], made["unchanged"]) == (1, FILES, False)


@pytest.mark.parametrize("name", ["0000", "0150", "0300"])
def test_a_central_that_is_killed_while_it_reads_leaves_nothing(
    fed: Fed, many: Path, name: str
) -> None:
    before = estate(fed.central)
    publish = ("publish", str(many), "--script", f"central killed at {name}", "--kind", "loop")
    with FileWatch(fed.central.state / "staging", CREATE) as watch:
        process = begun(fed.central, *publish)
        wait_staged(watch, name)
        fed.central.process.kill()
    ended(process).check(5, str(fed.central.socket), "went away", "try again")
    fed.central.process.start()
    assert estate(fed.central) == before
    made = fed.central.json(*publish)
    assert (made["version"], made["files"], made["unchanged"]) == (1, FILES, False)


def test_a_central_that_is_killed_between_tree_and_record_leaves_nothing(
    fed: Fed, many: Path
) -> None:
    before = estate(fed.central)
    publish = ("publish", str(many), "--script", "never recorded", "--kind", "loop")
    # Who holds central's database lets the tree be placed and nothing be signed.
    with closing(sqlite3.connect(fed.central.state / "central.db")) as database:
        with (
            FileWatch(fed.central.state / "staging", CREATE) as staging,
            FileWatch(fed.central.state / "trees", MOVED_TO) as trees,
        ):
            process = begun(fed.central, *publish)
            wait_staged(staging, "0000")
            database.execute("BEGIN IMMEDIATE")
            trees.wait()
            fed.central.process.kill()
        database.rollback()
    ended(process).check(5, "went away")
    fed.central.process.start()
    assert estate(fed.central) == before
    made = fed.central.json(*publish)
    assert (made["version"], made["files"], made["unchanged"]) == (1, FILES, False)
    assert fed.central.json("verify", "never recorded")["ok"]
