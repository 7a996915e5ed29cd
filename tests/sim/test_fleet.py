"""Two hundred nodes through a day's worst: heads, states and a release are where they belong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from protocol.facts import ROLE_ICE
from protocol.peer_view import HOLDERS, NEIGHBOURS, SPARE
from tests.sim.fleet import FleetSpec, SimFleet, Spread, played, quiet_spread

HEAD_BYTES = 2000
"""About what one head with its Grants root has, after a month of heads."""
HEARD_BYTES = 3500
"""For each holder there is, what a server hears because of one head: two copies of that holder's
state with its proof, and its share of heads, digests and the neighbours' states."""


def spread_head(fleet: SimFleet) -> tuple[Spread, dict[str, tuple[int, int]], int]:
    """One head in a fleet at rest, and the most bytes that a server heard because of it."""
    before = Counter(fleet.net.heard_bytes)
    spread, kinds = quiet_spread(fleet)
    servers = [node for node, facts in fleet.facts.items() if facts.role == ROLE_ICE]
    return spread, kinds, max(fleet.net.heard_bytes[node] - before[node] for node in servers)


@cache
def fleet() -> SimFleet:
    """The story, played once: see `tests.sim.fleet.story`, which looks at its parts as it goes."""
    return played(1)


def test_every_head_arrives_everywhere_through_cuts_losses_and_returns() -> None:
    newest = fleet().node(fleet().central).order
    assert len(fleet().present) == 200
    assert all(node.order == newest for node in fleet().present)


def test_the_release_reaches_every_server() -> None:
    servers = [node for node in fleet().present if node.facts.role == ROLE_ICE]
    assert len(servers) == 194
    assert all(fleet().delivery.whole(node.node) for node in servers)
    received = sum(fleet().spans_received[node.node] for node in servers)
    assert received == len(servers) * fleet().spec.spans, "each span once, restarts included"


def test_states_are_where_they_belong_and_nowhere_else() -> None:
    assert fleet().wrongly_told == []
    said = {node.node: node.states.states[node.node].order for node in fleet().present}
    for node in fleet().present:
        held = {one: state.order for one, state in node.states.states.items()}
        if node.facts.reads_everything:
            assert held.keys() == said.keys()
        else:
            near = {
                other.node
                for other in fleet().present
                if other.facts.reads_everything or other.facts.site == node.facts.site
            }
            assert held.keys() == near
        # Whoever spoke in the last moments is still on its way.
        late = [one for one, order in held.items() if order[0] != said[one][0]]
        assert not late, "a state from before a restart is the newest that is known"
        assert all(said[one][1] - order[1] <= 1 for one, order in held.items())


def test_a_server_keeps_to_few_connections_and_holders_know_one_another() -> None:
    holders = set(fleet().holders)
    for node in fleet().present:
        kept = node.links.keys() & holders
        if node.node in holders:
            assert kept == holders - {node.node}
        else:
            assert HOLDERS <= len(kept) <= HOLDERS + SPARE
            assert len(node.links) <= HOLDERS + SPARE + NEIGHBOURS
    most = max(len(fleet().node(one).links) for one in holders)
    assert most <= 2.5 * HOLDERS * 194 / len(holders)


def test_a_head_reaches_all_within_a_second_and_costs_each_about_two_copies() -> None:
    resting = SimFleet(FleetSpec(seed=3))
    resting.start_all()
    resting.net.run(90.0)
    spread, kinds, heard = spread_head(resting)
    assert len(spread.arrived) == 200
    assert spread.seconds() < 1.0
    messages, size = kinds["head"]
    assert messages <= 2.5 * 200
    assert size <= messages * HEAD_BYTES
    digests, _ = kinds["head digest"]
    assert digests <= 3 * 200
    assert heard <= HEARD_BYTES * len(resting.holders)


def test_one_seed_is_one_run_in_every_process() -> None:
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.fleet", "1"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": other},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == fleet().net.log_hash
    assert played(2, sites=7, spans=2).net.log_hash != played(3, sites=7, spans=2).net.log_hash


@pytest.mark.long
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_other_seeds_end_as_well(seed: int) -> None:
    assert len(played(seed).present) == 200


@pytest.mark.long
def test_two_thousand_nodes_hear_of_a_head_as_soon_and_at_the_same_cost_each() -> None:
    many = SimFleet(FleetSpec(seed=4, repos=9, sites=995))
    many.start_all()
    many.net.run(120.0)
    spread, kinds, heard = spread_head(many)
    assert len(spread.arrived) == 2000
    assert heard <= HEARD_BYTES * len(many.holders), "ten times the servers, and not a byte more"
    assert spread.seconds() < 1.0
    assert kinds["head"][0] <= 2.5 * 2000
    assert many.wrongly_told == []
