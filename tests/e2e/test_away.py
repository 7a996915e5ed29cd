"""A server that was off for long and reaches nobody but its neighbour still catches up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from archid.control.client import ControlClient
from protocol.accepted import NEWEST_KEPT
from protocol.ids import NodeId
from tests.e2e.test_central_comes_back import publish
from tests.fleet.desk import node_id
from tests.fleet.events import EventTap
from tests.fleet.forger import trusted_head
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet

HEADS = 40


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path) as fleet:
        yield fleet


def definition(film: str, *, day: int, site: str = "lyon") -> str:
    return "\n".join(
        [
            f'name = "{film}"',
            *(f'{kind} = "{film}-{kind}"' for kind in ("feature", "sas", "loop")),
            "prefetch = 2026-01-01T00:00:00Z",
            "start = 2026-01-02T00:00:00Z",
            f"end = 2126-{1 + day // 28:02}-{1 + day % 28:02}T00:00:00Z",
            "[targets]",
            f'sites = ["{site}"]',
        ]
    )


def apply_at_once(fleet: LocalFleet, film: str, day: int) -> int:
    """A release over the control socket, without starting a command; returns the serial."""
    client = ControlClient(fleet.central.socket)
    text = {"definition": definition(film, day=day), "filename": "film.toml"}
    plan = client.call("release.apply", {**text, "sign": False, "plan": None})
    made = client.call("release.apply", {**text, "sign": True, "plan": plan["plan"]})
    return int(made["head"]["serial"])


@pytest.mark.long
def test_after_forty_heads_a_neighbour_gives_head_leaf_and_release(fleet: LocalFleet) -> None:
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris")
    near = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    away = fleet.join("lyon-1-sas", "ice", site="lyon", room="1", kind="sas")
    publish(fleet, "before", "first")
    apply_at_once(fleet, "before", 1)
    away.wait_active("before")
    away_id = node_id(away)
    # The neighbour has heard of it, and finds it again from what lies on its disk.
    knows(near, away_id)
    away.process.stop()
    near.process.stop()
    near.process.start()

    _, old_head, old_grants = trusted_head(away.state)
    sources = publish(fleet, "after", "first")
    apply_at_once(fleet, "after", 1)
    near.wait_active("after")
    with EventTap(near) as tap:
        for day in range(2, HEADS + 2):
            serial = apply_at_once(fleet, "after", day)
        tap.wait("head.accepted", lambda event: event["serial"] == serial)
        newest, _, _ = trusted_head(central.state)
        tap.wait(
            "site_leaf.kept",
            lambda event: (
                event["node"] == away_id.hex()
                and event["grants_root"] == newest.grants_roots[0].hex()
            ),
        )
    assert len(newest.grants_roots) == NEWEST_KEPT
    kept = [name for name in leaves(near.state) if name.startswith(away_id.hex())]
    assert kept == [f"{away_id.hex()}-{newest.grants_roots[0].hex()}"]
    near.wait_active("after", generation=HEADS + 1)
    central.process.kill()
    repo.process.kill()

    assert trusted_head(away.state)[1:] == (old_head, old_grants)
    away.peers = (near.address,)
    away.write_config()
    away.process.start()
    away.wait_active("after", generation=HEADS + 1)
    head, _, _ = trusted_head(away.state)
    assert head.order == newest.order
    for kind, folder in sources.items():
        check_arrived(folder, away.scripts / "releases" / "after" / kind)
    peers = {peer["name"] for peer in away.status()["peers"] if peer["state"] == "admitted"}
    assert peers <= {"lyon-1-salle"}


def leaves(state: Path) -> list[str]:
    return [path.name for path in (state / "documents" / "leaves").rglob("*-*")]


def knows(node: FleetNode, other: NodeId) -> None:
    """Return when the leaf of `other` lies on the disk of `node`."""
    node.wait(
        lambda _: any(name.startswith(other.hex()) for name in leaves(node.state)),
        what="the neighbour's leaf",
    )
