"""A central that comes back: when it may sign, and what it takes over from the fleet."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archid.central.estate import Place
from archid.central.importing import collect_documents
from archid.central.keys import OnlineKeys, keys_folder
from archid.central.recovery import (
    PATIENCE_S,
    CentralGate,
    Finding,
    GateState,
    HeadMark,
    compare,
    enough_answers,
)
from archid.central.service import CentralService
from archid.errors import Conflict, TrustFailure, Unavailable
from archid.store.documents import DocumentStore
from protocol.envelope import Envelope, Signature
from protocol.grants import LeafDocument
from protocol.ids import DocumentId, NodeId
from protocol.join_token import JoinToken
from protocol.limits import MAX_HEAD_BYTES
from tests.unit.central.fleet import (
    SALLE,
    SAS,
    Fleet,
    definition,
    join,
    new_key,
    publish,
    publish_three,
)

REPO = Place("repo", "paris")


def mark(epoch: int, serial: int, content: bytes = b"") -> HeadMark:
    return HeadMark((epoch, serial), DocumentId.of(b"%d %d " % (epoch, serial) + content))


def node(number: int) -> NodeId:
    return NodeId.of(bytes([number]))


def gate(
    own: HeadMark,
    *repos: NodeId,
    signed: Mapping[tuple[int, int], DocumentId] | None = None,
) -> CentralGate:
    known = {own.order: own.id} | dict(signed or {})
    return CentralGate(own, repos=repos, signed=known.get, now=0)


# -- the gate, pure


def test_a_fleet_without_a_repo_opens_at_once() -> None:
    assert gate(mark(1, 1)).is_open


def test_central_signs_nothing_before_every_repo_has_answered() -> None:
    closed = gate(mark(1, 5), node(1), node(2))
    with pytest.raises(Unavailable) as caught:
        closed.require_open(now=1)
    assert caught.value.code == "central_asking"
    assert closed.head_shown(node(1), mark(1, 4), now=1) is GateState.ASKING
    assert closed.head_shown(node(2), mark(1, 5), now=2) is GateState.OPEN
    closed.require_open(now=2)


def test_a_node_that_is_no_repo_does_not_answer_for_one() -> None:
    closed = gate(mark(1, 5), node(1))
    assert closed.head_shown(node(9), mark(1, 5), now=1) is GateState.ASKING


def test_half_of_the_repos_are_enough_after_a_while_and_fewer_never() -> None:
    two = gate(mark(1, 5), node(1), node(2))
    two.head_shown(node(1), mark(1, 5), now=1)
    assert two.tick(now=PATIENCE_S - 1) is GateState.ASKING
    assert two.tick(now=PATIENCE_S) is GateState.OPEN
    three = gate(mark(1, 5), node(1), node(2), node(3))
    three.head_shown(node(1), mark(1, 5), now=1)
    assert three.tick(now=10 * PATIENCE_S) is GateState.ASKING
    three.trust_database()
    three.require_open(now=10 * PATIENCE_S)


def test_a_newer_head_is_imported_and_then_all_are_asked_again() -> None:
    closed = gate(mark(1, 5), node(1))
    assert closed.head_shown(node(1), mark(1, 9), now=1) is GateState.IMPORTING
    with pytest.raises(Unavailable, match="newer than this central's database"):
        closed.require_open(now=1)
    assert closed.head_shown(node(1), mark(1, 7), now=2) is GateState.IMPORTING
    assert closed.wanted == mark(1, 9)
    assert closed.imported(mark(1, 9), repos=[node(1), node(2)], now=3) is GateState.ASKING
    assert closed.head_shown(node(2), mark(1, 9), now=4) is GateState.OPEN


def test_an_open_gate_closes_when_somebody_shows_a_newer_head() -> None:
    opened = gate(mark(1, 5))
    assert opened.head_shown(node(7), mark(1, 6), now=1) is GateState.IMPORTING


def test_a_fork_stops_central_with_a_sentence_also_when_it_lies_behind() -> None:
    forked = gate(mark(1, 5), node(1))
    assert forked.head_shown(node(1), mark(1, 5, b"other"), now=1) is GateState.STOPPED
    with pytest.raises(Conflict, match="two centrals"):
        forked.require_open(now=1)
    behind = gate(mark(1, 7), signed={(1, 5): mark(1, 5).id})
    assert behind.head_shown(node(1), mark(1, 5, b"other"), now=1) is GateState.STOPPED


def test_a_newer_epoch_stops_central_and_cannot_be_overridden() -> None:
    stopped = gate(mark(1, 500))
    assert stopped.head_shown(node(1), mark(2, 1), now=1) is GateState.STOPPED
    assert "new epoch" in stopped.reason
    with pytest.raises(Conflict):
        stopped.trust_database()


def test_trusting_the_database_goes_above_every_serial_that_was_shown() -> None:
    stopped = gate(mark(1, 5), node(1))
    stopped.head_shown(node(1), mark(1, 40), now=1)
    stopped.head_shown(node(2), mark(1, 5, b"other"), now=1)
    assert stopped.state is GateState.STOPPED
    assert stopped.trust_database() == 40
    assert stopped.is_open


orders = st.tuples(st.integers(1, 3), st.integers(1, 6))


@given(own=orders, shown=st.lists(st.tuples(st.integers(1, 4), orders, st.booleans())))
def test_the_gate_is_never_open_while_something_newer_or_forked_was_shown(
    own: tuple[int, int], shown: list[tuple[int, tuple[int, int], bool]]
) -> None:
    watched = gate(mark(*own), node(1), node(2))
    alarming = False
    for who, order, other in shown:
        seen = mark(*order, b"other" if other else b"")
        finding = compare(mark(*own), seen, mark(*own).id if order == own else None)
        alarming |= finding is not Finding.SAME_OR_OLDER
        watched.head_shown(node(who), seen, now=0)
        assert not (alarming and watched.is_open)
    answered = {who for who, _, _ in shown} >= {1, 2}
    assert watched.is_open == (answered and not alarming)


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.floats(0, 1000))
def test_more_answers_never_close_what_fewer_opened(
    repos: set[int], answered: set[int], waited_s: float
) -> None:
    asked = {node(number) for number in repos}
    fewer = {node(number) for number in answered}
    if enough_answers(asked, fewer, waited_s=waited_s):
        assert enough_answers(asked, fewer | {node(3)}, waited_s=waited_s)


# -- importing


async def lively(service: CentralService) -> None:
    """What happened before the backup."""
    repo = await join(service, REPO, "repo-1")
    await service.membership.confirm(repo.node.node)
    await join(service, SALLE, "paris-1-salle")
    await join(service, SAS, "paris-1-sas")
    await publish_three(service)
    await service.apply_release(definition(), source="d", by="t")


async def livelier(service: CentralService) -> None:
    """What happened after it: something of every kind."""
    await join(service, Place("ice", "lyon", "2", "salle"), "lyon-2-salle")
    await join(service, Place("ice", "lyon", "2", "sas"), "lyon-2-sas")
    await publish(service, "dune-feature", "feature")
    await publish_three(service, "alien")
    await service.apply_release(
        definition(targets='sites = ["lyon"]\nnodes = ["paris-1-salle"]'),
        source="d",
        by="t",
        confirm=True,
    )
    await service.apply_release(
        definition("Alien", stem="alien", targets='rooms = ["lyon/2"]'), source="d", by="t"
    )
    await service.withdraw_release("Alien", by="t", confirm=True)
    await service.membership.remove_node("lyon-2-sas", by="t", confirm=True)


def repo_of(service: CentralService) -> NodeId:
    return next(
        row.node
        for row in service.state.tree.index_rows
        if LeafDocument.decode(service.state.leaf(row.node)).items[0].find(b"repo-1") > 0
    )


async def test_an_older_database_takes_over_the_newer_documents_of_the_fleet(
    fleet: Fleet, tmp_path: Path
) -> None:
    with fleet.running() as service:
        await lively(service)
        open_token = JoinToken.decode(
            (await service.membership.create_token(SALLE, name="late", by="t")).text
        )
    restored = fleet.copy(tmp_path / "restored")
    with fleet.running() as service:
        service.gate.trust_database()
        await livelier(service)
        newer = service.state
        original = {name.name: name.place for name in await service.membership.nodes()}
        releases = {
            each.name: (each.generation, each.state, dict(each.scripts), set(each.servers))
            for each in await service.releases()
            if each.state == "active"
        }
    # What a REPO would bring: the documents, not the database.
    shutil.copytree(fleet.paths.documents, restored.paths.documents, dirs_exist_ok=True)

    with restored.running() as back:
        repo = repo_of(back)
        with pytest.raises(Unavailable):
            await back.begin_publication("x", "loop")
        with pytest.raises(Unavailable):
            await back.membership.redeem(
                token=open_token.token_id,
                secret=open_token.secret,
                public_key=new_key(),
                name="",
            )
        assert back.head_shown(repo, newer.head_envelope) is GateState.IMPORTING
        state = await back.import_newer(newer.head_envelope, roots=newer.roots)
        assert state is GateState.OPEN, "its one REPO has answered with what was imported"
        assert back.head_shown(repo, newer.head_envelope) is GateState.OPEN

        assert back.state.head_envelope == newer.head_envelope
        assert back.state.grants_envelopes == newer.grants_envelopes
        assert dict(back.state.leaves()) == dict(newer.leaves())
        assert back.state.complete
        assert {each.name: each.place for each in await back.membership.nodes()} == original
        assert {
            each.name: (each.generation, each.state, dict(each.scripts), set(each.servers))
            for each in await back.releases()
            if each.state == "active"
        } == releases
        assert (await back.release("Alien")).state == "withdrawn"

        # It goes on above, and a leaf that nothing concerns is still the same.
        await publish(back, "another", "loop")
        assert back.state.order == (newer.order[0], newer.order[1] + 1)
        assert back.state.head.grants_roots == newer.head.grants_roots
        assert back.state.head.denied == newer.head.denied

        # Nobody can say whether this token was used meanwhile.
        with pytest.raises(Exception, match="called back"):
            await back.membership.redeem(
                token=open_token.token_id,
                secret=open_token.secret,
                public_key=new_key(),
                name="",
            )


async def test_the_import_waits_until_everything_was_fetched(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.running() as service:
        await lively(service)
    restored = fleet.copy(tmp_path / "restored")
    with fleet.running() as service:
        service.gate.trust_database()
        await publish(service, "dune-loop", "loop")
        newer = service.state
        manifest = (await service.scripts())[-1].manifest
        assert manifest
    with restored.running() as back:
        repo = repo_of(back)
        back.head_shown(repo, newer.head_envelope)
        with pytest.raises(Unavailable) as caught:
            await back.import_newer(newer.head_envelope, roots=newer.roots)
        assert caught.value.code == "documents_missing"
        assert back.gate.state is GateState.IMPORTING
        assert back.state.order < newer.order


@pytest.mark.expect_errors("central_stopped")
async def test_two_centrals_are_noticed_and_nothing_is_imported(
    fleet: Fleet, tmp_path: Path
) -> None:
    with fleet.running() as service:
        await lively(service)
    twin = fleet.copy(tmp_path / "twin")
    with fleet.running() as service:
        service.gate.trust_database()
        await publish(service, "one", "loop")
        await publish(service, "two", "loop")
        newer = service.state
    with twin.running() as other:
        other.gate.trust_database()
        await publish(other, "three", "loop")
        order = other.state.order
        repo = repo_of(other)
        assert other.head_shown(repo, newer.head_envelope) is GateState.IMPORTING
        shutil.copytree(fleet.paths.documents, twin.paths.documents, dirs_exist_ok=True)
        with pytest.raises(Conflict, match="two centrals"):
            await other.import_newer(newer.head_envelope, roots=newer.roots)
        assert other.gate.state is GateState.STOPPED
        assert other.state.order == order
        with pytest.raises(Conflict):
            await other.begin_publication("x", "loop")
        await other.trust_database(by="root")
        assert other.state.order > newer.order
        await publish(other, "four", "loop")


@pytest.mark.expect_errors("central_stopped")
async def test_a_salt_secret_that_is_not_the_fleets_stops_the_import(
    fleet: Fleet, tmp_path: Path
) -> None:
    with fleet.running() as service:
        await lively(service)
    restored = fleet.copy(tmp_path / "restored")
    with fleet.running() as service:
        service.gate.trust_database()
        await livelier(service)
        newer = service.state
    shutil.copytree(fleet.paths.documents, restored.paths.documents, dirs_exist_ok=True)
    (keys_folder(restored.paths.state) / "salt").write_text("00" * 32 + "\n")
    with restored.running() as back:
        before = dict(back.state.leaves())
        back.head_shown(repo_of(back), newer.head_envelope)
        with pytest.raises(Conflict, match="secret behind the salts"):
            await back.import_newer(newer.head_envelope, roots=newer.roots)
        assert back.gate.state is GateState.STOPPED
    with restored.running() as back:
        assert dict(back.state.leaves()) == before, "rolled back whole"


async def test_leaves_that_are_not_all_of_them_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.running() as service:
        await lively(service)
    restored = fleet.copy(tmp_path / "restored")
    with fleet.running() as service:
        service.gate.trust_database()
        await livelier(service)
        newer = service.state
    found = collect_documents(
        DocumentStore(fleet.paths.documents), head=newer.head_envelope, roots=newer.roots
    )
    from dataclasses import replace

    from archid.central.importing import import_documents
    from archid.central.store import CentralDatabase, database_url
    from protocol.errors import TrustError

    keys = OnlineKeys.load(restored.paths.state)
    database = CentralDatabase.open(database_url("", restored.paths.state))
    some = dict(list(found.leaves.items())[1:])
    broken = [
        replace(found, leaves=some),
        replace(found, catalogue=found.catalogue[1:]),
        replace(found, roster=found.roster[1:]),
        replace(found, publications={}),
        replace(found, grants=found.grants[1:]),
    ]
    for documents in broken:
        with pytest.raises(TrustError), database.write() as connection:
            import_documents(connection, keys, documents, now_s=0)
    with database.write() as connection:
        import_documents(connection, keys, found, now_s=0)
    database.close()


async def test_a_head_that_nobody_signed_counts_for_nothing(fleet: Fleet) -> None:
    with fleet.running() as service:
        await lively(service)
        envelope = Envelope.decode(service.state.head_envelope, max_bytes=MAX_HEAD_BYTES)
        forged = Envelope(
            envelope.payload, (Signature(envelope.signatures[0].key_id, bytes(64)),)
        ).encode()
        before = service.gate.state
        with pytest.raises(TrustFailure):
            service.head_shown(node(1), forged)
        assert service.gate.state is before


async def test_a_repo_that_never_got_ready_is_not_waited_for(fleet: Fleet) -> None:
    with fleet.running() as service:
        await join(service, REPO, "repo-1")
    with fleet.running() as service:
        assert service.gate.is_open


async def test_central_that_restarts_with_a_repo_asks_it_first(fleet: Fleet) -> None:
    with fleet.running() as service:
        await lively(service)
        newest = service.state
    with fleet.running() as service:
        assert service.gate.state is GateState.ASKING
        order = service.state.order
        await service.tick()
        assert service.state.order == order
        assert service.head_shown(repo_of(service), newest.head_envelope) is GateState.OPEN
        await publish(service, "x", "loop")
