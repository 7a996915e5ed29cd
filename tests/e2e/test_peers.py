"""What `archid peers` says: content counted alike at both ends, and why somebody is not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from archid.control.schema import OUTPUTS
from archid.control.validation import check
from tests.fleet.film import publish_film, release_film
from tests.fleet.local import FleetNode, LocalFleet, local_fleet

NOBODY = "127.0.0.9:9"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    base = tmp_path_factory.mktemp("peers")
    with local_fleet(base) as made:
        made.found()
        made.join("repo-1", "repo", site="paris", peers=[NOBODY])
        made.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        publish_film(made)
        release_film(made)
        made.nodes["lyon-1-salle"].wait_active("film")
        yield made


def content(node: FleetNode, direction: str) -> dict[str, int]:
    """Content bytes by the other node's name, as `status --json` has them."""
    status = node.json("status")
    check(status, OUTPUTS["status"])
    return {
        one["name"]: one[f"content_{direction}_bytes"]
        for one in status["traffic"]["nodes"]
        if one[f"content_{direction}_bytes"]
    }


def test_content_is_counted_alike_at_both_ends(fleet: LocalFleet) -> None:
    received = content(fleet.nodes["lyon-1-salle"], "received")
    assert received
    for name, size_bytes in received.items():
        assert content(fleet.nodes[name], "sent")["lyon-1-salle"] == size_bytes


def test_what_a_node_sent_is_remembered_when_its_connection_has_ended(fleet: LocalFleet) -> None:
    salle, repo = fleet.nodes["lyon-1-salle"], fleet.nodes["repo-1"]
    before = content(fleet.central, "sent"), content(repo, "sent")
    salle.process.stop()
    repo.wait(lambda one: not connected(one, "lyon-1-salle"), what="the salle leaving")
    shown = repo.run("peers").stdout
    assert "Were connected" in shown
    assert "lyon-1-salle, lost" in shown
    salle.process.start()
    repo.wait(lambda one: connected(one, "lyon-1-salle"), what="the salle coming back")
    assert (content(fleet.central, "sent"), content(repo, "sent")) == before
    [again] = [one for one in repo.json("peers")["nodes"] if one["name"] == "lyon-1-salle"]
    assert again["connections"] == 2
    assert again["connected"]
    assert again["gossip_received_bytes"] > 0


def test_an_address_where_nothing_listens_is_said_to_be_that(fleet: LocalFleet) -> None:
    repo = fleet.nodes["repo-1"]
    repo.wait(lambda one: "nothing listens" in reason(one), what="a refused connection")
    shown = repo.json("peers")
    check(shown, OUTPUTS["peers"])
    [dialled] = [one for one in shown["peers"] if one["address"] == NOBODY]
    assert dialled["reason"] == dialled["last_error"]
    screen = repo.run("peers").stdout
    assert f"{NOBODY}: nothing listens on {NOBODY}: archid is not running there" in screen
    assert "central" in screen.splitlines()[2]
    failed = [line for line in repo.log.read_text().splitlines() if '"dial_failed"' in line]
    assert sum(NOBODY in line for line in failed) == 1, "the same reason is logged once"


def connected(status: dict[str, Any], name: str) -> bool:
    return any(one["name"] == name and one["state"] == "admitted" for one in status["peers"])


def reason(status: dict[str, Any]) -> str:
    [dialled] = [one for one in status["peers"] if one["address"] == NOBODY]
    return dialled["reason"] or ""
