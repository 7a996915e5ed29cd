"""Central knows which room is ready, and why another is not; neighbours find one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet.local import LocalFleet, local_fleet
from tests.fleet.scripts import LOOP, SAS, write_script

KINDS = ("feature", "sas", "loop")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    base = tmp_path_factory.mktemp("view")
    with local_fleet(base) as made:
        made.found()
        made.join("repo-1", "repo", site="paris")
        for name, site, kind in (
            ("lyon-1-salle", "lyon", "salle"),
            ("lyon-1-sas", "lyon", "sas"),
            ("nice-1-salle", "nice", "salle"),
        ):
            made.join(name, "ice", site=site, room="1", kind=kind)
        for kind in KINDS:
            write_script(base / "src" / kind, "film", kind, LOOP if kind != "sas" else SAS)
            made.publish(base / "src" / kind, f"film-{kind}", kind)
        yield made


def apply(fleet: LocalFleet, start: str) -> None:
    fleet.apply(
        "film",
        scripts={kind: f"film-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start=start,
        end="2098-01-01T00:00:00Z",
        sites='["lyon"]',
    )


def wait_for(fleet: LocalFleet, method: str, wanted: Any, **params: str) -> dict[str, Any]:
    """The answer of central once `wanted(answer)` holds; looks again at every event."""
    found: dict[str, Any] = {}

    def holds(_status: dict[str, Any]) -> bool:
        found.update(fleet.central.call(method, **params))
        return bool(wanted(found))

    fleet.central.wait(holds, what=f"the expected answer to {method}")
    return found


def test_a_release_shows_how_it_stands_on_each_server(fleet: LocalFleet) -> None:
    apply(fleet, "2097-01-01T00:00:00Z")
    shown = wait_for(
        fleet,
        "release.show",
        lambda one: {target["state"] for target in one["targets"]} == {"ready"},
        release="film",
    )
    assert {target["name"] for target in shown["targets"]} == {"lyon-1-salle", "lyon-1-sas"}
    [room] = shown["rooms"]
    assert (room["site"], room["ready"]) == ("lyon", True)
    assert room["servers"] == ["lyon-1-salle", "lyon-1-sas"]
    why = fleet.central.json("why", "lyon-1-salle", "film")
    assert why["solved"]
    assert "switches at 2097-01-01 00:00 UTC" in why["sentence"]
    apply(fleet, "2026-01-02T00:00:00Z")
    wait_for(
        fleet,
        "release.show",
        lambda one: {target["state"] for target in one["targets"]} == {"active"},
        release="film",
    )


def test_a_server_that_is_no_target_is_named_as_that(fleet: LocalFleet) -> None:
    why = fleet.central.json("why", "nice-1-salle", "film")
    assert why["sentence"] == "nice-1-salle is not among the servers of film"
    assert "apply it again" in why["remedy"]
    assert fleet.central.run("why", "nobody", "film", check=False).returncode == 3


def test_every_node_tells_the_fleet_how_it_is(fleet: LocalFleet) -> None:
    shown = wait_for(
        fleet,
        "fleet",
        lambda one: all(node["health"] is not None for node in one["nodes"]),
    )
    assert {node["name"] for node in shown["nodes"]} == set(fleet.nodes)
    screen = fleet.central.run("fleet").stdout
    assert "lyon 1 salle" in screen
    assert "never" not in screen


def test_servers_of_one_site_connect_and_those_of_two_sites_do_not(fleet: LocalFleet) -> None:
    salle = fleet.nodes["lyon-1-salle"]

    def neighbours(status: dict[str, Any]) -> set[str]:
        return {peer["name"] for peer in status["peers"] if peer["state"] == "admitted"}

    salle.wait(lambda one: "lyon-1-sas" in neighbours(one), what="meeting the neighbour")
    assert neighbours(salle.status()) == {"central", "repo-1", "lyon-1-sas"}
    assert neighbours(fleet.nodes["nice-1-salle"].status()) == {"central", "repo-1"}


def test_a_room_that_lacks_one_of_its_two_machines_is_not_ready(fleet: LocalFleet) -> None:
    fleet.apply(
        "half",
        scripts={kind: f"film-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start="2097-01-01T00:00:00Z",
        end="2098-01-01T00:00:00Z",
        sites='["nice"]',
    )
    [room] = wait_for(
        fleet,
        "release.show",
        lambda one: {target["state"] for target in one["targets"]} == {"ready"},
        release="half",
    )["rooms"]
    assert room["sentence"] == "room 1 of nice is not ready: it has no SAS server"
    assert room["sentence"] in " ".join(fleet.central.run("release", "show", "half").stdout.split())
    [told] = [one for one in fleet.central.json("fleet")["rooms"] if one["release"] == "half"]
    assert not told["ready"]
