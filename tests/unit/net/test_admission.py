"""Two nodes come to believe one another, or say why not; over real TLS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from archid.net.admission import open_peer
from archid.net.errors import (
    ConnectedToSelf,
    PeerLost,
    PeerNotAdmitted,
    PeerRefused,
    Refusal,
    TlsRefused,
)
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from protocol.connection_states import Side
from protocol.errors import FormatError
from protocol.facts import NodeFacts
from protocol.head import Denial
from protocol.messages import Answer, ErrorCode, GetLeaf, LeafAnswer, Prove, Request
from tests.unit.net.certified import shake_hands, tcp_pair
from tests.unit.net.fleet_nodes import SETTINGS, FleetNodes, connected, meet
from tests.unit.protocol.signed_fleet import NOW_S, Signer


@pytest.fixture
def fleet(tmp_path: Path) -> FleetNodes:
    return FleetNodes(tmp_path)


async def test_two_nodes_of_a_fleet_learn_who_the_other_is(fleet: FleetNodes) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two", "repo")
    fleet.sign_state()
    async with connected(fleet.node(one), fleet.node(two)) as (client, server):
        assert client.facts.name == "two"
        assert client.facts.role == "repo"
        assert server.facts.name == "one"
        assert server.node == one.node_id
        assert client.dialled
        assert not server.dialled


async def test_a_node_with_an_older_head_takes_the_newer_one_on_the_way(fleet: FleetNodes) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    behind = fleet.node(one)
    fleet.sign_state()
    ahead = fleet.node(two)
    assert behind.trusted.head != ahead.trusted.head
    async with connected(behind, ahead):
        assert behind.trusted.head == ahead.trusted.head
        assert behind.kept == 1
    async with connected(ahead, behind):
        assert behind.kept == 1, "nothing was new the second time"


async def test_a_newcomer_that_a_peer_does_not_know_brings_the_head_along(
    fleet: FleetNodes,
) -> None:
    two = fleet.enrol("two")
    fleet.sign_state()
    behind = fleet.node(two)
    newcomer = fleet.enrol("newcomer")
    fleet.sign_state()
    async with connected(fleet.node(newcomer), behind) as (_, server):
        assert server.facts.name == "newcomer"


async def test_a_node_away_so_long_that_no_leaf_of_it_is_accepted_gets_its_new_one(
    fleet: FleetNodes,
) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    away = fleet.node(one)
    fleet.enrol("three")
    fleet.sign_state(forget_old=True)
    async with connected(away, fleet.node(two, all_leaves=True)) as (_, server):
        assert server.facts.name == "one"
        assert (one.node_id, fleet.grants_roots[0]) in away.leaves


async def test_newer_roots_are_fetched_one_by_one(fleet: FleetNodes) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    behind, ahead = fleet.node(one), fleet.node(two)
    key = Signer("new head key")
    for version in (2, 3, 4):
        root = fleet.signed.root(version, keys={"head": [key]})
        root = replace(root, ca_certificates=fleet.root.ca_certificates)
        ahead.trusted.accept_root(fleet.signed.sign_root(root))
    fleet.signed.signers["head"] = key
    fleet.sign_state()
    assert fleet.head is not None
    fleet.head = replace(fleet.head, root_version=4)
    fleet.bring_up_to_date(ahead)
    async with connected(behind, ahead):
        assert behind.trusted.root is not None
        assert behind.trusted.root.version == 4
        assert sorted(behind.trusted.roots) == [1, 2, 3, 4]
        assert behind.trusted.head == ahead.trusted.head


async def test_a_forked_head_raises_the_alarm_and_the_first_one_stays(fleet: FleetNodes) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    first = fleet.node(one)
    fleet.head = replace(fleet.head or fleet.signed.head(), expires_s=NOW_S + 5)
    second = fleet.node(two)
    second.trusted.head_envelope = fleet.head_envelope
    prove = await second.doorkeeper.prove(replace(first.doorkeeper.hello(), head_order=(0, 0)), no)
    facts = await first.doorkeeper.judge(
        prove, peer=second.doorkeeper.hello(), peer_key=two.public_key, ask=no
    )
    assert facts.name == "two"
    assert len(first.forks) == 1
    assert first.trusted.head != second.trusted.head


async def no(_message: Request) -> Answer:
    raise AssertionError("nothing has to be asked for")


async def test_a_node_of_another_fleet_is_refused_by_tls(fleet: FleetNodes, tmp_path: Path) -> None:
    other = FleetNodes(tmp_path, "other")
    one, two = fleet.enrol("one"), other.enrol("two")
    fleet.sign_state()
    other.sign_state()
    results = await meet(fleet.node(one), other.node(two))
    assert isinstance(results["client"], TlsRefused)
    assert isinstance(results["server"], TlsRefused)


async def test_a_revoked_node_is_refused_with_the_reason(fleet: FleetNodes) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    revoked = fleet.node(one)
    fleet.sign_state(denied=(Denial("node", one.node_id, fleet.grants_roots[0]),))
    results = await meet(revoked, fleet.node(two))
    error = results["client"]
    assert isinstance(error, PeerRefused)
    assert error.reason is ErrorCode.DENIED
    assert error.code == "denied"
    assert isinstance(results["server"], PeerNotAdmitted)


async def test_facts_of_another_node_do_not_pass(fleet: FleetNodes) -> None:
    one, two, victim = fleet.enrol("one"), fleet.enrol("two"), fleet.enrol("victim")
    fleet.sign_state()
    thief = fleet.node(one)
    newest = fleet.grants_roots[0]
    thief.leaves[one.node_id, newest] = fleet.trees[newest].leaf(victim.node_id, newest)
    results = await meet(thief, fleet.node(two))
    error = results["client"]
    assert isinstance(error, PeerRefused)
    assert error.reason is ErrorCode.BAD_PROOF


async def test_a_leaf_is_given_before_admission_only_to_the_key_that_it_names(
    fleet: FleetNodes,
) -> None:
    thief, victim, repo = fleet.enrol("thief"), fleet.enrol("victim"), fleet.enrol("repo", "repo")
    fleet.sign_state()
    newest = fleet.grants_roots[0]
    asked = GetLeaf(1, victim.node_id, newest)
    server = fleet.node(repo, all_leaves=True)
    answer = await server.doorkeeper.answer(asked, victim.node_id, victim.public_key)
    assert isinstance(answer, LeafAnswer)
    with pytest.raises(Refusal) as refused:  # a Hello can say anything
        await server.doorkeeper.answer(asked, victim.node_id, thief.public_key)
    assert refused.value.reason is ErrorCode.NOT_ENTITLED
    fleet.sign_state(denied=(Denial("node", victim.node_id, newest),))
    fleet.bring_up_to_date(server, all_leaves=True)
    with pytest.raises(Refusal) as refused:
        await server.doorkeeper.answer(asked, victim.node_id, victim.public_key)
    assert refused.value.reason is ErrorCode.NOT_ENTITLED
    fleet.sign_state(denied=(Denial("node", victim.node_id, newest),))
    fleet.bring_up_to_date(server, all_leaves=True)
    again = GetLeaf(1, victim.node_id, fleet.grants_roots[0])  # signed knowing of the denial
    assert isinstance(
        await server.doorkeeper.answer(again, victim.node_id, victim.public_key), LeafAnswer
    )
    fleet.sign_state(forget_old=True)
    fleet.bring_up_to_date(server, all_leaves=True)
    with pytest.raises(Refusal):  # the leaf is held, but no head stands behind it any more
        await server.doorkeeper.answer(asked, victim.node_id, victim.public_key)


async def test_a_node_with_a_certificate_but_without_facts_is_refused(fleet: FleetNodes) -> None:
    two = fleet.enrol("two")
    fleet.sign_state()
    stranger = fleet.tls.node("stranger")  # the CA signed it, Grants do not name it
    newest = fleet.grants_roots[0]
    node = fleet.node(stranger)
    node.leaves[stranger.node_id, newest] = fleet.trees[newest].leaf(two.node_id, newest)
    results = await meet(node, fleet.node(two))
    assert isinstance(results["client"], PeerRefused | ConnectedToSelf)
    assert not isinstance(results["server"], NodeFacts)


async def test_a_proof_under_grants_that_are_no_longer_accepted_is_refused(
    fleet: FleetNodes,
) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    away = fleet.node(one)
    fleet.enrol("three")
    fleet.sign_state(forget_old=True)
    # This peer does not hold the leaf that `away` would need.
    results = await meet(away, fleet.node(two))
    assert not isinstance(results["client"], NodeFacts)
    assert not isinstance(results["server"], NodeFacts)


async def test_a_peer_that_answers_with_a_leaf_that_does_not_hold_is_only_not_admitted(
    fleet: FleetNodes,
) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    away = fleet.node(one)
    fleet.enrol("three")
    fleet.sign_state(forget_old=True)
    hostile = fleet.node(two, all_leaves=True)
    place = (one.node_id, fleet.grants_roots[0])
    hostile.leaves[place] = replace(hostile.leaves[place], path=())
    results = await meet(away, hostile)
    assert isinstance(results["client"], PeerNotAdmitted), "an error that ends one connection only"
    assert isinstance(results["server"], PeerRefused)


async def test_a_head_is_kept_though_the_proof_that_came_with_it_is_worth_nothing(
    fleet: FleetNodes,
) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    behind = fleet.node(one)
    fleet.sign_state()
    ahead = fleet.node(two)

    async def ask(request: Request) -> Answer:
        raise AssertionError(f"{request} was not to be asked")

    prove = Prove(fleet.head_envelope.encode(), b"", b"no proof")
    with pytest.raises(FormatError):
        await behind.doorkeeper.judge(
            prove, peer=ahead.doorkeeper.hello(), peer_key=two.public_key, ask=ask
        )
    assert behind.trusted.head == ahead.trusted.head
    assert behind.kept == 1


async def test_dialling_oneself_is_noticed(fleet: FleetNodes) -> None:
    one = fleet.enrol("one")
    fleet.sign_state()
    results = await meet(fleet.node(one), fleet.node(one))
    assert isinstance(results["client"], ConnectedToSelf | PeerLost)
    assert isinstance(results["server"], ConnectedToSelf | PeerLost)


async def test_who_never_proves_itself_is_dropped(fleet: FleetNodes) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    node = fleet.node(two)
    left, right = await tcp_pair()
    silent = TLSStream(left, fleet.tls.client_context(one), server_side=False)
    server = TLSStream(right, fleet.tls.server_context(two), server_side=True)
    await shake_hands(silent, server)
    impatient = PeerSettings(admission_timeout_s=0.05, goodbye_timeout_s=0.05)
    with pytest.raises(PeerLost, match="did not prove itself"):
        async with open_peer(
            server, node.doorkeeper, impatient, side=Side.SERVER, now=trio.current_time
        ):
            raise AssertionError("it was admitted")
    silent.close()
    assert server.closed


async def test_garbage_inside_tls_ends_the_connection_with_a_typed_goodbye(
    fleet: FleetNodes,
) -> None:
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    node = fleet.node(two)
    left, right = await tcp_pair()
    rude = TLSStream(left, fleet.tls.client_context(one), server_side=False)
    server = TLSStream(right, fleet.tls.server_context(two), server_side=True)
    await shake_hands(rude, server)
    received = bytearray()

    async def talk() -> None:
        await rude.send_all([b"\xff" * 4096])
        while data := await rude.receive_some():
            received.extend(data)
        await rude.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        with pytest.raises(PeerLost, match="broke the protocol"):
            async with open_peer(
                server, node.doorkeeper, SETTINGS, side=Side.SERVER, now=trio.current_time
            ):
                raise AssertionError("it was admitted")
    assert received, "there was a Hello and a Goodbye"
