"""Who may not have it does not get it: from nobody, whatever they ask, not one byte.

The questions are the right ones, with correct ids and the real key of an enrolled node; that they
are right is shown by a node that is entitled and gets its answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from archid.addresses import parse_address
from archid.net.errors import PeerLost, PeerRefused, TlsRefused
from archid.net.lane_desk import LaneDesk
from protocol.connection_states import ALLOWED, State
from protocol.ids import ManifestId, NodeId
from protocol.messages import (
    Answer,
    Entitle,
    ErrorCode,
    GetAny,
    GetGrants,
    GetHave,
    GetHead,
    GetHolders,
    GetLeaf,
    GetList,
    GetManifest,
    GetPage,
    GetPieceDeltas,
    GetPieces,
    GetRoot,
    GetSpan,
    Goodbye,
    Hello,
    Message,
    OpenLane,
    Prove,
    Request,
    RootDocument,
)
from protocol.messages.lanes import LANE_ID_BYTES, LANE_RANDOM_BYTES
from tests.fleet.desk import at_the_desk, node_id
from tests.fleet.events import EventTap
from tests.fleet.insider import InsiderKnowledge
from tests.fleet.local import LocalFleet
from tests.fleet.probe import (
    Probe,
    ask_about_others,
    ask_about_script,
    ask_for_own,
    payload_bytes,
    probe_peer,
)
from tests.fleet.strangers import found_elsewhere, hello, with_certificate, without_certificate
from tests.fleet.trees import write_varied
from tests.fleet.watched import watched_fleet
from tests.unit.protocol.message_examples import EXAMPLES

KINDS = ("feature", "sas", "loop")
SPANS = ("GetPieces", "GetPieceDeltas", "GetSpan", "GetAny")
PEERS = ("central", "repo-1", "lyon-1-salle", "nice-2-salle")
"""Everyone who holds the release and answers: the last two are plain servers, of another cinema
than the outsider's and of its own."""
OUTSIDER, SIBLING, ENTITLED, LEAVER = "nice-1-salle", "lyon-1-sas", "lyon-2-salle", "oslo-1-salle"
"""Enrolled and never started: their identities are in the tests' hands."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    base = tmp_path_factory.mktemp("refusal")
    with watched_fleet(base) as fleet:
        fleet.found()
        fleet.join("repo-1", "repo", site="paris")
        fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        fleet.join("nice-2-salle", "ice", site="nice", room="2", kind="salle")
        fleet.join(SIBLING, "ice", site="lyon", room="1", kind="sas", start=False)
        fleet.join(ENTITLED, "ice", site="lyon", room="2", kind="salle", start=False)
        fleet.join(OUTSIDER, "ice", site="nice", room="1", kind="salle", start=False)
        fleet.join(LEAVER, "ice", site="oslo", room="1", kind="salle", start=False)
        for kind in KINDS:
            write_varied(base / "source" / kind, f"refusal {kind}")
            fleet.publish(base / "source" / kind, f"film-{kind}", kind)
        fleet.apply(
            "film",
            scripts={kind: f"film-{kind}" for kind in KINDS},
            prefetch="2026-01-01T00:00:00Z",
            start="2026-01-02T00:00:00Z",
            end="2126-01-02T00:00:00Z",
            nodes=f'["lyon-1-salle", "nice-2-salle", "{ENTITLED}"]',
        )
        for name in ("lyon-1-salle", "nice-2-salle"):
            fleet.nodes[name].wait_active("film")
        fleet.nodes["repo-1"].wait(
            lambda status: status["storage"]["trees"] == len(KINDS), what="replication"
        )
        yield fleet


@pytest.fixture(scope="module")
def known(fleet: LocalFleet) -> InsiderKnowledge:
    """All the right ids."""
    known = InsiderKnowledge.of(fleet.central.state)
    assert {script.kind for script in known.scripts} == set(KINDS)
    assert all(len(script.spans) > 1 for script in known.scripts)
    assert {kind for kind, _ in known.lists} == {"catalogue", "roster", "grants"}
    return known


def who(fleet: LocalFleet, name: str) -> NodeId:
    return node_id(fleet.nodes[name])


@pytest.mark.parametrize("peer", PEERS)
def test_a_node_that_is_not_targeted_is_refused_everything_by_every_peer(
    fleet: LocalFleet, known: InsiderKnowledge, peer: str
) -> None:
    report = probe_peer(
        fleet.nodes[OUTSIDER].state,
        fleet.nodes[peer].address,
        known,
        scripts=known.scripts,
        entitled=who(fleet, ENTITLED),
    )
    assert not report.given
    for_members = {"GetRoot", "GetHead", "GetGrants", "OpenLane"}
    requests = {type(one).__name__ for one in EXAMPLES if isinstance(one, Request)}
    assert {reply.request.split()[0] for reply in report.forbidden} == requests - for_members
    assert {reply.code for reply in report.forbidden} <= {
        ErrorCode.NOT_ENTITLED,
        ErrorCode.BAD_PROOF,
        ErrorCode.UNKNOWN_DOCUMENT,  # a leaf or a page that this peer does not hold
    }
    content = [r for r in report.forbidden if r.request.split()[0] in SPANS]
    assert {reply.code for reply in content} == {ErrorCode.NOT_ENTITLED}
    # What came over the wire is refusals alone: a sentence each.
    assert report.wire_bytes < 400 * len(report.forbidden)
    assert [reply.code for reply in report.own][:1] == [None]


@pytest.mark.parametrize("peer", PEERS)
def test_a_neighbour_in_the_same_room_that_is_not_targeted_is_refused_too(
    fleet: LocalFleet, known: InsiderKnowledge, peer: str
) -> None:
    async def ask() -> None:
        probe = Probe(fleet.nodes[SIBLING].state)
        async with probe.connect(parse_address(fleet.nodes[peer].address)) as asked:
            replies = []
            for script in known.scripts:
                stolen = known.stolen_proof(who(fleet, "lyon-1-salle"), script.manifest)
                proofs = {"none": b"", "its own facts": probe.own_proof(), "stolen": stolen}
                replies += await ask_about_script(asked, script, proofs)
            strangers = [who(fleet, name) for name in ("repo-1", OUTSIDER)]
            replies += await ask_about_others(asked, known, strangers)
            assert [reply for reply in replies if not reply.refused] == []
            if peer in PEERS[:2]:  # a server need not hold it
                [_, own] = await ask_for_own(asked, known, probe.node)
                assert own.payload_bytes > 0

    trio.run(ask)


@pytest.mark.parametrize("peer", PEERS)
def test_the_same_questions_are_answered_to_a_node_that_is_targeted(
    fleet: LocalFleet, known: InsiderKnowledge, peer: str
) -> None:
    async def ask() -> None:
        probe = Probe(fleet.nodes[ENTITLED].state)
        own = who(fleet, ENTITLED)
        async with probe.connect(parse_address(fleet.nodes[peer].address)) as asked:
            for script in known.scripts:
                proofs = {"its own": known.stolen_proof(own, script.manifest)}
                replies = await ask_about_script(asked, script, proofs)
                refused = [reply for reply in replies if reply.refused]
                # Before the entry is shown even the entitled get nothing.
                assert [r.request for r in refused] == [f"GetManifest ({script.kind})"]
                assert sum(reply.payload_bytes for reply in replies) > 1_000_000

    trio.run(ask)


@pytest.mark.parametrize("peer", PEERS)
def test_a_proof_that_is_not_one_is_refused(
    fleet: LocalFleet, known: InsiderKnowledge, peer: str
) -> None:
    script = known.scripts[0]
    stolen = known.stolen_proof(who(fleet, ENTITLED), script.manifest)
    other = next(one for one in known.scripts if one is not script)
    own_of_other = known.stolen_proof(who(fleet, ENTITLED), other.manifest)
    damaged = bytes([stolen[0]]) + bytes(byte ^ 1 for byte in stolen[1:])

    async def ask() -> None:
        for name, proofs in (
            (OUTSIDER, (b"\0", b"\xc1" * 100, stolen[:-1], stolen + b"\0", damaged, stolen * 2)),
            (ENTITLED, (own_of_other, stolen[: len(stolen) // 2])),
        ):
            probe = Probe(fleet.nodes[name].state)
            async with probe.connect(parse_address(fleet.nodes[peer].address)) as asked:
                for proof in proofs:
                    reply = await asked.ask(Entitle(1, script.manifest, proof))
                    assert reply.refused, proof
                    assert (await asked.ask(GetManifest(1, script.manifest))).refused

    trio.run(ask)


@pytest.mark.parametrize("peer", PEERS)
def test_ids_that_do_not_exist_are_refused_like_those_that_do(
    fleet: LocalFleet, known: InsiderKnowledge, peer: str
) -> None:
    """A refusal does not tell an outsider whether a script exists."""

    async def ask() -> None:
        probe = Probe(fleet.nodes[OUTSIDER].state)
        async with probe.connect(parse_address(fleet.nodes[peer].address)) as asked:
            real = known.scripts[0].manifest
            codes = [
                (await asked.ask(kind(1, manifest))).code
                for manifest in (real, ManifestId.of(b"no such script"))
                for kind in (GetManifest, GetHave)
            ]
            assert set(codes) == {ErrorCode.NOT_ENTITLED}

    trio.run(ask)


@pytest.mark.parametrize("peer", PEERS)
def test_before_any_proof_nobody_is_told_anothers_leaf(
    fleet: LocalFleet, known: InsiderKnowledge, peer: str
) -> None:
    target = who(fleet, ENTITLED)
    question = GetLeaf(1, target, known.leaves[target][0])

    async def ask() -> None:
        probe = Probe(fleet.nodes[OUTSIDER].state)
        where = parse_address(fleet.nodes[peer].address)
        for claim in (None, target):
            [reply] = await probe.ask_early(where, [question], claim=claim)
            assert reply.refused

    trio.run(ask)


@pytest.mark.parametrize("peer", PEERS)
def test_a_certificate_of_another_fleet_is_not_let_in(
    fleet: LocalFleet, peer: str, tmp_path: Path
) -> None:
    other, _ = found_elsewhere(tmp_path)
    ours = Probe(fleet.nodes[OUTSIDER].state)
    assert ours.trust.root is not None
    cas = ours.trust.root.ca_certificates

    async def connect() -> list[Message]:
        address = fleet.nodes[peer].address
        async with with_certificate(address, other.identity, cas) as stranger:
            await stranger.say(hello(ours.trust.fleet, ours.node))
            return await stranger.hears_all()

    # In TLS 1.3 the client's handshake is over before the server judges the certificate.
    with pytest.raises(TlsRefused):
        trio.run(connect)


NOT_FOR_NEWCOMERS = [
    message
    for message in EXAMPLES
    if type(message) not in ALLOWED[State.JOINING] and not isinstance(message, Hello)
]


@pytest.mark.parametrize("peer", PEERS)
def test_a_lane_gives_no_more_than_its_connection(
    fleet: LocalFleet, known: InsiderKnowledge, peer: str
) -> None:
    probe = Probe(fleet.nodes[OUTSIDER].state)

    async def ask() -> None:
        async with (
            probe.connect(parse_address(fleet.nodes[peer].address)) as there,
            trio.open_nursery() as nursery,
        ):
            lane = await LaneDesk(probe.node, timeout_s=20)._dialled(there.peer)
            there.peer.use_lane(lane)
            nursery.start_soon(lane.run)
            before_bytes = lane.wire_bytes_received
            for script in known.scripts:
                for request in (
                    GetAny(1, script.manifest, ((0, b"\x01"),)),
                    *(GetSpan(1, script.manifest, *span, b"") for span in script.spans),
                ):
                    reply = await there.ask(request)
                    assert reply.refused, reply
                    assert reply.code is ErrorCode.NOT_ENTITLED
            assert lane.wire_bytes_received > before_bytes, "they came by the lane"
            nursery.cancel_scope.cancel()
        lane.close()

    trio.run(ask)


@pytest.mark.parametrize("peer", PEERS)
def test_without_a_certificate_nothing_but_join_and_roots_is_answered(
    fleet: LocalFleet, known: InsiderKnowledge, peer: str
) -> None:
    script = known.scripts[0]
    node = who(fleet, ENTITLED)
    grants_root = known.leaves[node][0]
    list_type, list_id = known.lists[0]
    right: list[Message] = [
        GetHead(1),
        GetGrants(1, grants_root),
        GetLeaf(1, node, grants_root),
        GetList(1, list_type, list_id),
        GetPage(1, *known.pages[0]),
        Entitle(1, script.manifest, known.stolen_proof(node, script.manifest)),
        GetManifest(1, script.manifest),
        GetPieces(1, script.manifest, script.pieces),
        GetPieceDeltas(1, script.manifest, script.pieces, script.pieces),
        GetHave(1, script.manifest),
        GetSpan(1, script.manifest, *script.spans[0], b""),
        GetAny(1, script.manifest, ((0, b"\x01"),)),
        GetHolders(1, script.manifest),
        OpenLane(1, b"l" * LANE_ID_BYTES, b"r" * LANE_RANDOM_BYTES),
        Prove(b"", b"", known.stolen_proof(node, script.manifest)),
    ]
    requests = {type(one) for one in EXAMPLES if isinstance(one, Request)}
    assert requests - {GetRoot} <= {type(one) for one in right}
    ours = Probe(fleet.nodes[ENTITLED].state)

    async def ask() -> None:
        for message in (*right, *NOT_FOR_NEWCOMERS):
            for first in (hello(), hello(ours.trust.fleet, node)):
                async with without_certificate(fleet.nodes[peer].address) as stranger:
                    await stranger.say(first)
                    await stranger.say(message)
                    heard = await stranger.hears_all()
                    kinds = [type(one) for one in heard]
                    assert kinds == [Hello, Goodbye], message
                    assert isinstance(heard[1], Goodbye)
                    assert heard[1].code is ErrorCode.PROTOCOL_ERROR, message
                    assert sum(payload_bytes(a) for a in heard if isinstance(a, Answer)) == 0

        async with without_certificate(fleet.nodes[peer].address) as stranger:
            await stranger.say(hello())
            await stranger.say(GetRoot(1, 1))
            assert isinstance(await stranger.hears(), Hello)
            answer = await stranger.hears()
            assert isinstance(answer, RootDocument)
            assert ours.trust.root is not None
            assert answer.envelope == ours.trust.roots[1].encode()

    trio.run(ask)


@pytest.mark.parametrize("peer", PEERS[1:])
def test_only_central_lets_anybody_join(fleet: LocalFleet, peer: str) -> None:
    [begin] = [one for one in EXAMPLES if type(one).__name__ == "JoinBegin"]

    async def join() -> list[Message]:
        async with without_certificate(fleet.nodes[peer].address) as stranger:
            await stranger.say(hello())
            await stranger.say(begin)
            return await stranger.hears_all()

    [_, goodbye] = trio.run(join)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.code is ErrorCode.NOT_READY


def test_a_removed_node_is_cut_off_and_stays_out(fleet: LocalFleet) -> None:
    leaver = Probe(fleet.nodes[LEAVER].state)
    again = Probe(fleet.nodes[LEAVER].state)
    repo = fleet.nodes["repo-1"]

    async def stay_connected() -> None:
        async with leaver.connect(parse_address(repo.address)) as asked:
            assert (await asked.ask(GetHead(1))).code is None
            await trio.to_thread.run_sync(remove)
            await asked.peer.closed.wait()
            assert isinstance(asked.peer.error, PeerLost)
            assert asked.peer.error.reason is ErrorCode.DENIED

    def remove() -> None:
        at_the_desk(
            fleet, lambda service: service.membership.remove_node(LEAVER, confirm=True, by="test")
        )

    with ExitStack() as stack:
        taps = [stack.enter_context(EventTap(fleet.nodes[name])) for name in PEERS[1:]]
        serial = repo.status()["trust"]["serial"]
        trio.run(stay_connected)
        for tap in taps:
            tap.wait("head.accepted", lambda event: event["serial"] > serial)

    async def knock(address: str) -> None:
        async with again.connect(parse_address(address)):
            raise AssertionError("it was let in")

    for name in PEERS:
        with pytest.raises(PeerRefused) as refusal:
            trio.run(knock, fleet.nodes[name].address)
        assert refusal.value.reason is ErrorCode.DENIED, name
