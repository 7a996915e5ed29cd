"""What central takes away is gone: a withdrawn release, a revoked node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet.local import LocalFleet, local_fleet
from tests.fleet.scripts import LOOP, write_script

KINDS = ("feature", "sas", "loop")
DATES = {
    "prefetch": "2026-01-01T00:00:00Z",
    "start": "2026-01-02T00:00:00Z",
    "end": "2098-01-01T00:00:00Z",
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    base = tmp_path_factory.mktemp("taking")
    with local_fleet(base) as made:
        made.found()
        made.join("repo-1", "repo", site="paris")
        for kind in ("salle", "sas"):
            made.join(f"lyon-1-{kind}", "ice", site="lyon", room="1", kind=kind)
        for kind in KINDS:
            write_script(base / "src" / kind, "film", kind, LOOP)
            made.publish(base / "src" / kind, f"film-{kind}", kind)
        made.apply(
            "film", scripts={kind: f"film-{kind}" for kind in KINDS}, sites='["lyon"]', **DATES
        )
        for name in ("lyon-1-salle", "lyon-1-sas"):
            made.nodes[name].wait_active("film")
        yield made


def admitted(status: dict[str, Any]) -> set[str]:
    return {peer["name"] for peer in status["peers"] if peer["state"] == "admitted"}


def test_nothing_is_taken_away_without_consent(fleet: LocalFleet) -> None:
    for args in (("release", "withdraw", "film"), ("revoke", "lyon-1-sas")):
        refused = fleet.central.run(*args, check=False)
        assert refused.returncode == 2
        assert "--yes" in refused.stderr
    assert fleet.central.json("release", "show", "film")["state"] == "active"


def test_a_revoked_node_is_cut_off_by_everybody_and_stays_out(fleet: LocalFleet) -> None:
    revoked = fleet.nodes["lyon-1-sas"]
    told = fleet.central.json("revoke", "lyon-1-sas", "--yes")
    assert told["name"] == "lyon-1-sas"
    status = revoked.wait(lambda one: not admitted(one), what="being cut off")
    assert status["deliveries"][0]["state"] == "active", "what it has, it keeps"
    for name in ("central", "repo-1", "lyon-1-salle"):
        fleet.nodes[name].wait(
            lambda one: "lyon-1-sas" not in admitted(one), what=f"{name} letting go"
        )
    # It comes back with its old key, and every peer says no in words.
    revoked.process.stop()
    revoked.process.start()
    status = revoked.wait(
        lambda one: any("denied" in (peer["reason"] or "") for peer in one["peers"]),
        what="being refused by name",
    )
    assert not admitted(status)
    listed = {node["name"] for node in fleet.central.call("fleet")["nodes"]}
    assert "lyon-1-sas" not in listed


def test_a_withdrawn_release_leaves_the_player_and_keeps_the_files(fleet: LocalFleet) -> None:
    room = fleet.nodes["lyon-1-salle"]
    link = room.scripts / "releases" / "film"
    tree = (link / "feature").resolve()
    assert tree.is_dir()
    result = fleet.central.json("release", "withdraw", "film", "--yes")
    assert result["servers"] == ["lyon-1-salle"]
    room.wait(
        lambda one: all(delivery["state"] == "withdrawn" for delivery in one["deliveries"]),
        what="the release being withdrawn",
    )
    assert not link.is_symlink()
    assert tree.is_dir(), "files go later, if nothing else needs them"
    assert fleet.central.run("release", "withdraw", "nothing", "--yes", check=False).returncode == 3
