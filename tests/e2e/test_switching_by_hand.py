"""What a person at a server does with its releases: fetch early, activate, roll back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from archid.control.client import ControlClient
from archid.errors import Unavailable
from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.refusals import refused
from tests.fleet.watched import watched_fleet

DATES = {
    "prefetch": "2026-01-01T00:00:00Z",
    "start": "2026-01-02T00:00:00Z",
    "end": "2098-01-01T00:00:00Z",
}
LATER = {**DATES, "prefetch": "2097-01-01T00:00:00Z", "start": "2097-01-02T00:00:00Z"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path_factory.mktemp("fleet")) as made:
        made.found()
        made.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        publish(made, "film", "one")
        (made.base / "loop").mkdir()
        (made.base / "loop" / "cue").write_text("loop")
        made.publish(made.base / "loop", "loop", "loop")
        made.apply("film", scripts=scripts("film"), sites='["lyon"]', **DATES)
        made.nodes["lyon-1-salle"].wait_active("film")
        yield made


@pytest.fixture
def room(fleet: LocalFleet) -> FleetNode:
    return fleet.nodes["lyon-1-salle"]


def scripts(name: str) -> dict[str, str]:
    return {"feature": f"{name}-feature", "sas": f"{name}-sas", "loop": "loop"}


def publish(
    fleet: LocalFleet, name: str, content: str, kinds: tuple[str, ...] = ("feature", "sas")
) -> None:
    """A small version of each of these scripts, told apart by what is in it."""
    for kind in kinds:
        folder = fleet.base / "src" / f"{name}-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cue").write_text(f"{content} {kind}")
        fleet.publish(folder, f"{name}-{kind}", kind)


def generation(fleet: LocalFleet, content: str, number: int) -> None:
    publish(fleet, "film", content)
    applied = fleet.apply("film", scripts=scripts("film"), sites='["lyon"]', **DATES)
    assert applied["generation"] == number


def plays(room: FleetNode, release: str = "film") -> str:
    """What the feature and the SAS script of a release say, which must be the same."""
    feature, sas = (
        room.release_file(release, f"{kind}/cue").read_text().split()[0]
        for kind in ("feature", "sas")
    )
    assert feature == sas
    return feature


def state(room: FleetNode, release: str = "film") -> str:
    return next(str(d["state"]) for d in room.status()["deliveries"] if d["name"] == release)


def first_state(room: FleetNode, release: str = "film") -> str:
    """What the first answer of a daemon that starts says of a release."""
    while True:
        with suppress(Unavailable):
            deliveries = ControlClient(room.socket).call("status", {})["deliveries"]
            return next(str(one["state"]) for one in deliveries if one["name"] == release)


def test_a_rollback_holds_over_a_crash_and_ends_with_a_newer_generation(
    fleet: LocalFleet, room: FleetNode
) -> None:
    refused(room, "rollback", "film").check(6, "nothing to roll film back to")
    generation(fleet, "two", 2)
    room.wait_active("film", generation=2)
    told = room.json("rollback", "film", "--reason", "the left wall is dark")
    assert (told["name"], told["held_generation"]) == ("film", 2)
    assert plays(room) == "one"
    room.process.kill()
    room.process.launch()
    assert first_state(room) == "rolled_back"
    room.process.wait_ready()
    assert plays(room) == "one"
    assert state(room) == "rolled_back"
    shown = room.run("status").stdout
    assert "rolled back" in shown
    assert "the left wall is dark" in " ".join(shown.split())
    refused(room, "rollback", "film").check(6, "rolled back already")
    generation(fleet, "three", 3)
    room.wait_active("film", generation=3)
    assert plays(room) == "three"


def test_activating_ends_a_rollback_at_once(fleet: LocalFleet, room: FleetNode) -> None:
    generation(fleet, "four", 4)
    room.wait_active("film", generation=4)
    room.run("rollback", "film")
    assert plays(room) == "three"
    told = room.json("activate", "film")
    assert (told["generation"], told["changed"]) == (4, True)
    assert plays(room) == "four"
    assert state(room) == "active"
    assert not room.json("activate", "film")["changed"]


def test_a_release_is_fetched_and_activated_ahead_of_its_dates_only_by_hand(
    fleet: LocalFleet, room: FleetNode
) -> None:
    publish(fleet, "next", "soon")
    with EventTap(room) as tap:
        fleet.apply("next", scripts=scripts("next"), sites='["lyon"]', **LATER)
        tap.wait("leaf.accepted")
    assert state(room, "next") == "planned"
    refused(room, "activate", "next", "--yes").check(
        6, "Not everything of next generation 1 is here yet", "archid fetch next"
    )
    with EventTap(room) as tap:
        assert len(room.json("fetch", "next")["versions"]) == 3
        tap.wait("release.ready", lambda event: event["name"] == "next")
    assert "is here already" in room.run("fetch", "next").stdout
    assert "is here already" in room.run("fetch", "next-sas").stdout
    refused(room, "activate", "next").check(2, "nobody could be asked", "--yes")
    assert state(room, "next") == "ready"
    room.run("activate", "next", "--yes")
    assert plays(room, "next") == "soon"
    assert state(room, "next") == "active"
    room.process.kill()
    room.process.start()
    room.wait_active("next")
    assert plays(room, "next") == "soon"


def test_names_that_nobody_knows_are_refused(room: FleetNode, fleet: LocalFleet) -> None:
    for command in ("rollback", "activate"):
        refused(room, command, "mars").check(3, "no release 'mars'", "archid status")
        refused(fleet.central, command, "film").check(2, "what was asked is for an ICE server only")
    refused(room, "fetch", "mars").check(3, "no release or script 'mars'")
    refused(fleet.central, "fetch", "mars").check(3, "'mars' is published")
