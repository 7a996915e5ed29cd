"""What nodes say of themselves: believed only when they said it, told only where it may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from archid.identity import Identity
from protocol.envelope import Envelope, PublicKey
from protocol.ids import FleetId, NodeId
from protocol.messages import SentState, StateDigest, StateRow, States
from protocol.state import NodeState, open_state
from tests.unit.sync.sync_nodes import SyncFleet, SyncNode, connect, running, until


@dataclass
class Stage:
    fleet: SyncFleet
    repo: SyncNode
    salle: SyncNode
    sas: SyncNode
    nice: SyncNode


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    fleet = SyncFleet(tmp_path)
    repo = fleet.enrol("repo", "repo", "")
    ice = [fleet.enrol("salle"), fleet.enrol("sas"), fleet.enrol("nice", site="nice")]
    fleet.sign()
    with ExitStack() as stack:
        nodes = [stack.enter_context(fleet.node(one)) for one in (repo, *ice)]
        yield Stage(fleet, *nodes)


def said(
    node: SyncNode, /, *, signer: Identity | None = None, seq: int = 1, **changes: object
) -> SentState:
    """What a node would send of itself, or what somebody made up."""
    state = NodeState(
        node.fleet.signed.fleet, node.id, 1, seq, 1_900_000_000, "test", (), (1, 1), "ok", (), 0,
        (), (),
    )  # fmt: skip
    payload = replace(state, **changes).encode()  # type: ignore[arg-type]
    envelope = Envelope(payload, ((signer or node.identity).sign(NodeState.TYPE, payload),))
    held = node.leaf.document_and_leaf
    assert held is not None
    return SentState(envelope.encode(), held[0].proof().encode())


async def test_a_room_is_heard_by_its_neighbour_through_a_repo_and_not_by_another_cinema(
    stage: Stage,
) -> None:
    rooms = (stage.salle, stage.sas, stage.nice)
    async with running(*(node.states.run for node in (stage.repo, *rooms))) as nursery:
        for node in rooms:
            await connect(nursery, node, stage.repo)
        known = stage.sas.states.known
        await until(lambda: stage.salle.id in known, stage.sas.states.changed)
        repo_knows = stage.repo.states.known
        await until(lambda: len(repo_knows) == 4, stage.repo.states.changed)
        await until(lambda: stage.repo.id in stage.nice.states.known, stage.nice.states.changed)
        assert stage.nice.states.known.keys() == {stage.nice.id, stage.repo.id}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lie", ["signed by another", "of another node", "of another fleet"])
async def test_nobody_speaks_for_another(stage: Stage, lie: str) -> None:
    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.repo)
        await stage.nice.leaf.load()
        if lie == "signed by another":
            forged = said(stage.nice, signer=stage.salle.identity)
        elif lie == "of another node":
            forged = said(stage.salle, node=stage.nice.id)
        else:
            forged = said(stage.salle, fleet=FleetId(bytes(32)))
        stage.repo.states.take(link.right, States((forged,)))
        assert stage.repo.states.known == {}
        stage.repo.states.take(link.right, States((said(stage.salle),)))
        assert stage.repo.states.known.keys() == {stage.salle.id}
        nursery.cancel_scope.cancel()


async def test_what_is_not_newer_changes_nothing(stage: Stage) -> None:
    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.repo)
        take = stage.repo.states.take
        take(link.right, States((said(stage.salle, seq=5, health="alarm"),)))
        take(link.right, States((said(stage.salle, seq=4, health="ok"),)))
        assert stage.repo.states.known[stage.salle.id].health == "alarm"
        nursery.cancel_scope.cancel()


async def test_what_is_held_already_is_not_verified_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[NodeId] = []

    def counted(envelope: Envelope, key: PublicKey) -> NodeState:
        state = open_state(envelope, key)
        verified.append(state.node)
        return state

    monkeypatch.setattr("archid.sync.states.open_state", counted)
    async with running() as nursery:
        one = await connect(nursery, stage.salle, stage.repo)
        two = await connect(nursery, stage.sas, stage.repo)
        sent, newer = said(stage.salle), said(stage.salle, seq=2, health="alarm")
        for peer in (one.right, two.right, one.right):
            stage.repo.states.take(peer, States((sent,)))
        assert verified == [stage.salle.id]
        stage.repo.states.take(two.right, States((sent, newer)))
        assert verified == [stage.salle.id] * 2
        assert stage.repo.states.known[stage.salle.id].health == "alarm"
        stage.repo.states.take(one.right, States((sent,)))  # held no more
        assert verified == [stage.salle.id] * 3
        nursery.cancel_scope.cancel()


async def test_junk_is_passed_over_and_the_connection_stands(stage: Stage) -> None:
    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.repo)
        good = said(stage.salle)
        junk = [
            SentState(b"", b""),
            SentState(good.envelope, b"proof"),
            SentState(b"\xc1" * 100, good.proof),
        ]
        stage.repo.states.take(link.right, States((*junk, good)))
        rows = tuple(StateRow(stage.nice.id, 9, n) for n in range(512))
        stage.repo.states.take(link.right, StateDigest(rows, answer=True))
        assert stage.repo.states.known.keys() == {stage.salle.id}
        assert not link.right.closed.is_set()
        nursery.cancel_scope.cancel()


async def test_a_revoked_nodes_words_count_for_nothing(stage: Stage) -> None:
    async with running() as nursery:
        link = await connect(nursery, stage.sas, stage.repo)
        await stage.salle.leaf.load()
        words = said(stage.salle)
        stage.fleet.sign(denied=(stage.fleet.denial(stage.salle.identity),))
        await stage.repo.take_head()
        stage.repo.states.take(link.right, States((words,)))
        assert stage.salle.id not in stage.repo.states.known
        nursery.cancel_scope.cancel()


async def test_what_a_node_said_is_forgotten_when_it_is_revoked(stage: Stage) -> None:
    async with running() as nursery:
        link = await connect(nursery, stage.sas, stage.repo)
        for node in (stage.salle, stage.nice):
            await node.leaf.load()
            stage.repo.states.take(link.right, States((said(node),)))
        told = said(stage.salle, addresses=("10.0.0.7:4777",))
        stage.sas.states.take(link.left, States((told,)))
        assert [facts.node for facts, _ in stage.sas.states.places()] == [stage.salle.id]
        stage.fleet.sign(denied=(stage.fleet.denial(stage.salle.identity),))
        for node in (stage.repo, stage.sas):
            await node.take_head()
            node.states.forget_revoked()
            assert node.states.facts(stage.salle.id) is None
        assert stage.repo.states.known.keys() == {stage.nice.id}
        assert stage.sas.states.places() == ()
        nursery.cancel_scope.cancel()


async def test_holders_and_servers_of_the_own_site_may_be_dialled_where_they_say_they_listen(
    stage: Stage,
) -> None:
    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.repo)
        await stage.sas.leaf.load()
        told = said(stage.sas, addresses=("10.0.0.7:4777", "no address", "[::1]:4777"))
        stage.salle.states.take(link.left, States((told, said(stage.repo, addresses=("r:1",)))))
        await stage.nice.leaf.load()
        stage.salle.states.take(link.left, States((said(stage.nice, addresses=("n:1",)),)))
        found = {facts.node: state.addresses for facts, state in stage.salle.states.places()}
        assert found[stage.sas.id] == ("10.0.0.7:4777", "no address", "[::1]:4777")
        assert found.keys() == {stage.sas.id, stage.repo.id}
        nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint()
