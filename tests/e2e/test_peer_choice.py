"""Whom a node is connected to, on real daemons: few, others when these go, none that is full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.peer_view import HOLDERS
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.watched import watched_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path) as fleet:
        yield fleet


def connected(status: dict[str, Any]) -> set[str]:
    return {peer["name"] for peer in status["peers"] if peer["state"] == "admitted"}


def join_repo(fleet: LocalFleet, name: str, **network: int) -> FleetNode:
    """A REPO, with more lines in its [network]."""
    repo = fleet.join(name, "repo", start=False)
    lines = "".join(f"{key} = {value}\n" for key, value in network.items())
    repo.config.write_text(repo.config.read_text().replace("[storage]", f"{lines}[storage]"))
    repo.process.start()
    return repo


@pytest.mark.long
def test_a_server_keeps_to_few_holders_and_finds_others_when_these_are_killed(
    fleet: LocalFleet,
) -> None:
    central = fleet.found()
    names = {"repo-1", "repo-2", "repo-3"}
    for name in sorted(names):
        join_repo(fleet, name)
    central.wait(lambda status: connected(status) == names, what="meeting every REPO")
    for name in sorted(names):
        others = {"central", *names} - {name}
        fleet.nodes[name].wait(
            lambda status, others=others: connected(status) == others,  # type: ignore[misc]
            what="meeting every holder",
        )
    room = fleet.join("room", "ice", site="lyon", room="1", kind="salle")
    status = room.wait(lambda status: len(connected(status)) >= HOLDERS, what="two holders")
    first = connected(status)
    assert len(first) < 4
    for name in first:
        fleet.nodes[name].process.kill()
    left = {"central", *names} - first
    status = room.wait(lambda status: connected(status) == left, what="finding the others")
    assert all(peer["direction"] == "outbound" for peer in status["peers"])


@pytest.mark.long
def test_a_repo_that_is_full_sends_servers_elsewhere_and_still_takes_repos(
    fleet: LocalFleet,
) -> None:
    central = fleet.found()
    full = join_repo(fleet, "full", max_peers=1)
    full.wait(lambda status: "central" in connected(status), what="meeting central")
    # It knows of nobody but the REPO that is full, and is told by it where to go.
    room = fleet.join("room", "ice", site="lyon", room="1", kind="salle", start=False)
    room.peers = (full.address,)
    room.write_config()
    room.process.start()
    room.wait(lambda status: "central" in connected(status), what="finding central")
    other = join_repo(fleet, "other")
    full.wait(lambda status: connected(status) == {"central", "other"}, what="meeting a REPO")
    room.wait(lambda status: connected(status) >= {"central", "other"}, what="another holder")
    assert "peer_turned_away" in full.log.read_text()
    central.wait(lambda status: connected(status) == {"full", "other", "room"}, what="all of them")
    assert other.process.running
