"""How a node says it is: each reason when it holds, and not when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio.testing

from archid.addresses import Address
from archid.config import LimitsSettings
from archid.control.node_status import NodeStatus, Reason
from archid.control.schema import METHODS
from archid.control.validation import check
from archid.membership import Membership
from archid.net.dialer import Dialer
from archid.net.lane_desk import LaneDesk
from archid.net.pacing import Pacing
from archid.net.settings import DialerSettings
from archid.net.switchboard import Switchboard
from archid.net.tls import TLSStream
from archid.net.tls_contexts import TlsContexts
from archid.store.errors import DocumentMissing
from archid.sync.deliveries import Deliveries
from archid.sync.fetcher import Want
from archid.sync.limits import Limits
from protocol.ids import DocumentId
from protocol.trust import HeadForked
from tests.expected_errors import ErrorWatch
from tests.unit.protocol.signed_fleet import NOW_S
from tests.unit.sync.sync_nodes import (
    SETTINGS,
    SyncFleet,
    SyncNode,
    entries,
    linked,
    reel,
    release,
    running,
)

NOWHERE = Address("127.0.0.1", 9)


@pytest.fixture
def fleet(tmp_path: Path) -> SyncFleet:
    return SyncFleet(tmp_path)


@pytest.fixture
def node(fleet: SyncFleet) -> Iterator[SyncNode]:
    salle = fleet.enrol("salle")
    fleet.sign()
    with fleet.node(salle) as node:
        node.clock.now += 10
        yield node


def status_of(node: SyncNode, *, role: str = "ice", extra: tuple[Reason, ...] = ()) -> NodeStatus:
    async def newcomer(stream: TLSStream) -> None:
        await stream.aclose()

    switchboard = Switchboard(
        own=node.id,
        doorkeeper=node.doorkeeper,
        contexts=TlsContexts(node.identity, node.keeper.root.ca_certificates),
        settings=SETTINGS,
        session=node.links.session,
        newcomer=newcomer,
        lanes=LaneDesk(node.id, timeout_s=SETTINGS.admission_timeout_s),
        now=node.clock,
    )
    chance = Random(1)
    deliveries = Deliveries(
        leaf=node.leaf, fetcher=node.fetcher, library=node.library, journal=node.journal,
        events=node.events, clock=node.clock,
    )  # fmt: skip
    return NodeStatus(
        role=role,
        node=node.id.hex(),
        membership=Membership(node.keeper.root.fleet, "demo", node.keeper.root.fingerprint, 1, ()),
        listen=lambda: (),
        advertise=(),
        keeper=node.keeper,
        leaf=node.leaf,
        switchboard=switchboard,
        dialer=Dialer(switchboard, DialerSettings(), random=chance, now=node.clock),
        fetcher=node.fetcher,
        library=node.library,
        healing=node.healing,
        documents=node.documents,
        limits=Limits(
            LimitsSettings(),
            pacing=Pacing(),
            slots=node.directory.spans.slots,
            journal=node.journal,
            events=node.events,
            clock=node.clock,
        ),
        started_s=NOW_S,
        deliveries=deliveries if role == "ice" else None,
        extra_reasons=lambda: extra,
        clock=node.clock,
    )


def codes(status: NodeStatus) -> dict[str, str]:
    _, reasons, _ = status.health()
    return {reason.code: reason.level for reason in reasons}


async def test_a_node_that_is_well_says_so_in_the_words_of_the_schema(node: SyncNode) -> None:
    await node.leaf.load()
    status = status_of(node)
    assert status.health() == ("ok", [], [])
    told = await status.status()
    check(told, METHODS["status"].result)
    assert told["health"] == {"level": "ok", "reasons": []}
    assert told["name"] == "salle"
    assert told["trust"]["serial"] == 1


async def test_an_expired_head_is_an_alarm(node: SyncNode) -> None:
    assert node.keeper.head.expires_s > node.clock.now
    node.clock.now = node.keeper.head.expires_s
    assert codes(status_of(node)) == {"head_expired": "alarm"}


async def test_a_node_without_a_head_still_answers(fleet: SyncFleet) -> None:
    salle = fleet.enrol("salle")
    fleet.sign()
    with fleet.node(salle) as node:
        for head in node.documents.heads():
            node.documents.remove_head(head)
        node.paths.trust.unlink()
        with fleet.restarted(salle, node.paths) as again:
            status = status_of(again)
            told = await status.status()
    check(told, METHODS["status"].result)
    assert told["trust"] is None
    assert [one["code"] for one in told["health"]["reasons"]] == ["no_head"]


async def test_a_fork_is_an_alarm(node: SyncNode, expected_errors: ErrorWatch) -> None:
    expected_errors.expect("head_forked")
    node.keeper.alarm_fork(DocumentId.of(b"other"), HeadForked("two heads are both (1, 1)"))
    assert codes(status_of(node)) == {"head_forked": "alarm"}


async def test_trust_that_cannot_be_saved_is_an_alarm(
    node: SyncNode, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("trust_not_saved")
    node.paths.trust.unlink()
    node.paths.trust.mkdir()
    node.paths.trust.joinpath("in the way").touch()
    node.fleet.sign()
    await node.keeper.accept_head(node.fleet.head_bytes)
    assert codes(status_of(node)) == {"trust_not_saved": "alarm"}


async def test_a_clock_behind_what_was_signed_is_said(node: SyncNode) -> None:
    node.clock.now = node.keeper.head.issued_s - 59
    assert codes(status_of(node)) == {}
    node.clock.now = node.keeper.head.issued_s - 3600
    status = status_of(node)
    assert codes(status) == {"clock_behind": "attention"}
    assert "60 minutes" in status.health()[1][0].sentence


@pytest.mark.parametrize(("off_s", "code"), [(3600, "clock_ahead"), (-3600, "clock_behind")])
async def test_a_clock_that_all_peers_contradict_is_said(
    node: SyncNode, off_s: int, code: str
) -> None:
    repo = node.fleet.enrol("repo", "repo", "")
    node.fleet.sign()
    await node.take_head()
    with node.fleet.node(repo) as right:
        # Both were signed to long ago: only the peers can tell.
        node.clock.now = NOW_S + 20_000 + off_s
        right.clock.now = NOW_S + 20_000
        status = status_of(node)
        async with linked(node, right) as link:
            status.switchboard._peers[right.id] = link.left
            assert codes(status) == {code: "attention"}
            right_status = status_of(right, role="repo")
            right_status.switchboard._peers[node.id] = link.right
            assert codes(right_status) == {}, "one ICE node proves nothing about a REPO's clock"


async def test_a_node_that_reaches_nobody_says_why(node: SyncNode) -> None:
    status = status_of(node)
    status.dialer.want([NOWHERE])
    async with running(status.dialer.run):
        while not any(one.reason for one in status.dialer.dialled):
            await trio.testing.wait_all_tasks_blocked()
        _, [reason], _ = status.health()
        assert reason.code == "no_peers"
        assert str(NOWHERE.port) in reason.sentence
        peers = {"peers": status.peers()}
    check({**peers, "nodes": status.nodes_met()}, METHODS["peers"].result)


async def test_failed_deliveries_and_full_disks_name_what_is_to_be_done(
    node: SyncNode, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("fetch_failed")
    film = node.fleet.publish("film", reel(1))
    node.fleet.give(node.identity, entries(release("Dune"), feature=film))
    node.fleet.sign()
    await node.take_head()
    node.hold_documents(film)
    node.library.keep_free_bytes = 1 << 60
    status = status_of(node)
    node.fetcher.want([Want(film.manifest, 0)])
    async with (
        node.events.subscribe(prefixes=["fetch.failed"]) as events,
        running(node.fetcher.run),
    ):
        await anext(events)
        assert codes(status) == {"delivery_failed": "alarm", "disk_nearly_full": "attention"}
        as_repo = status_of(node, role="repo")
        assert codes(as_repo) == {"fetch_failed": "attention", "disk_nearly_full": "attention"}
        told = await status.status()
    check(told, METHODS["status"].result)
    level, reasons, _ = status.health()
    assert level == "alarm"
    assert any(reason.remedy for reason in reasons)


async def test_damaged_documents_are_said(node: SyncNode, expected_errors: ErrorWatch) -> None:
    expected_errors.expect("document_damaged")
    [path] = (node.paths.documents / "grants").glob("*")
    path.write_bytes(b"rotten")
    with pytest.raises(DocumentMissing):
        node.documents.get_grants(node.fleet.grants_roots[0])
    assert codes(status_of(node)) == {"documents_damaged": "attention"}


async def test_storage_that_does_not_answer_is_an_alarm_and_no_end(node: SyncNode) -> None:
    gone = replace(node.paths, state=node.paths.state / "gone")
    node.library.paths = gone
    assert codes(status_of(node)) == {"storage_failing": "alarm"}
    told = await status_of(node).status()
    check(told, METHODS["status"].result)


async def test_what_only_a_role_knows_comes_first_and_counts(node: SyncNode) -> None:
    asking = Reason("attention", "central_asking", "It waits for REPOs")
    level, [reason], _ = status_of(node, extra=(asking,)).health()
    assert (level, reason) == ("attention", asking)
