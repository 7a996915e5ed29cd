"""What a node believes meets its disk: saved before it is told, and believed again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing

from archid.errors import TrustFailure
from archid.identity import Identity
from archid.store.documents import DocumentStore
from archid.store.layout import StatePaths
from archid.store.trust_file import TrustFile
from archid.sync.trust_keeper import MAX_FORKS_TOLD
from protocol.errors import FormatError, ProtocolError
from protocol.ids import DocumentId
from protocol.trust import GrantsNotAccepted, HeadForked, HeadRolledBack, Outcome
from tests.expected_errors import ErrorWatch
from tests.unit.sync.sync_nodes import SyncFleet, SyncNode, event, release, running


@pytest.fixture
def fleet(tmp_path: Path) -> SyncFleet:
    return SyncFleet(tmp_path)


@pytest.fixture
def salle(fleet: SyncFleet) -> Identity:
    return fleet.enrol("salle")


@pytest.fixture
def node(fleet: SyncFleet, salle: Identity) -> Iterator[SyncNode]:
    fleet.sign()
    with fleet.node(salle) as node:
        yield node


def on_disk(node: SyncNode) -> tuple[object, ...]:
    """The head in the trust file, and the floor."""
    state = node.trust_file.load()
    return (state.head if state else None), node.journal.floor()


async def test_a_head_is_on_disk_before_anybody_is_told(node: SyncNode) -> None:
    found: list[tuple[object, ...]] = []

    async def listen() -> None:
        await node.keeper.changed.wait(0)
        found.append(on_disk(node))

    node.fleet.sign()
    async with running(listen):
        await trio.testing.wait_all_tasks_blocked()
        outcome = await node.keeper.accept_head(node.fleet.head_bytes, node.fleet.grants_bytes)
    assert outcome is Outcome.NEWER
    assert found == [(node.fleet.head_bytes, (1, 2))]
    assert node.keeper.unsaved is None


async def test_the_same_head_again_tells_nobody(node: SyncNode) -> None:
    version = node.keeper.changed.version
    assert await node.keeper.accept_head(node.fleet.head_bytes) is Outcome.SAME
    assert node.keeper.changed.version == version


async def test_what_the_disk_does_not_take_is_an_alarm_and_saved_later(
    node: SyncNode, monkeypatch: pytest.MonkeyPatch, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("trust_not_saved")
    monkeypatch.setattr("archid.sync.trust_keeper.SAVE_AGAIN_S", 0.01)
    before = on_disk(node)
    blocked = node.paths.trust.with_name("elsewhere")
    # A folder where the file belongs: root may write everywhere else.
    node.paths.trust.rename(blocked)
    node.paths.trust.mkdir()
    (node.paths.trust / "in the way").touch()
    node.fleet.sign()
    async with node.events.subscribe() as events, running(node.keeper.run):
        await node.keeper.accept_head(node.fleet.head_bytes, node.fleet.grants_bytes)
        assert node.keeper.changed.version == 0, "nobody is told of what could be forgotten"
        assert node.keeper.unsaved is not None
        assert node.journal.floor() == before[1]
        await event(events, "alarm", code="trust_not_saved")
        (node.paths.trust / "in the way").unlink()
        node.paths.trust.rmdir()
        await node.keeper.changed.wait(0)
        await event(events, "head.accepted", serial=2)
    assert on_disk(node) == (node.fleet.head_bytes, (1, 2))
    assert node.keeper.unsaved is None


async def test_a_fork_is_told_once_for_each_other_head(
    node: SyncNode, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("head_forked")
    fleet = node.fleet
    mine = fleet.head
    assert mine is not None
    async with node.events.subscribe(prefixes=["alarm"]) as alarms:
        for expires_s in (1, 1, 2):
            other = fleet.signed.sign_head(replace(mine, expires_s=expires_s))
            with pytest.raises(HeadForked):
                await node.keeper.accept_head(other.encode())
        told = [(await anext(alarms))["code"] for _ in range(2)]
        node.events.publish("alarm", code="the next one")
        assert (await anext(alarms))["code"] == "the next one"
    assert told == ["head_forked", "head_forked"]
    assert node.keeper.forked
    assert node.keeper.head == mine


async def test_somebody_who_forges_fork_after_fork_does_not_fill_log_and_memory(
    node: SyncNode, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("head_forked")
    for number in range(MAX_FORKS_TOLD + 10):
        node.keeper.alarm_fork(DocumentId.of(b"%d" % number), HeadForked("two heads"))
    assert len(expected_errors.seen()) == MAX_FORKS_TOLD


async def test_grants_that_nothing_can_be_read_from_do_not_keep_the_head_from_being_saved(
    node: SyncNode,
) -> None:
    node.fleet.sign()
    await node.keeper.accept_head(node.fleet.head_bytes, b"garbage")
    assert on_disk(node) == (node.fleet.head_bytes, (1, 2))


async def test_an_older_head_is_refused_and_changes_nothing(node: SyncNode) -> None:
    older = node.fleet.head_bytes
    node.fleet.sign()
    await node.take_head()
    before = on_disk(node)
    with pytest.raises(HeadRolledBack):
        await node.keeper.accept_head(older)
    assert on_disk(node) == before


async def test_grants_and_heads_that_count_no_more_are_not_kept_for_ever(node: SyncNode) -> None:
    for _ in range(3):
        node.fleet.sign()
        await node.take_head()
    assert len(node.documents.grants()) == 4
    node.fleet.sign(forget_old=True)
    await node.take_head()
    assert node.documents.grants() == [node.fleet.grants_roots[0]]
    assert len(node.documents.heads()) == 1


# Leaves


async def test_only_the_leaf_that_was_asked_for_is_kept(node: SyncNode) -> None:
    fleet = node.fleet
    other = fleet.enrol("other")
    first = fleet.grants_roots[0]
    fleet.sign()
    await node.keeper.accept_head(fleet.head_bytes, fleet.grants_bytes)
    newest = fleet.grants_roots[0]
    with pytest.raises(FormatError):
        await node.keeper.keep_leaf(fleet.leaf(other), node.id, newest)
    with pytest.raises(FormatError):  # one of an older root, which is accepted too
        await node.keeper.keep_leaf(fleet.leaf(node.identity, first), node.id, newest)
    with pytest.raises(ProtocolError):
        await node.keeper.keep_leaf(b"garbage", node.id, newest)
    nowhere = DocumentId.of(b"nowhere")
    leaf = replace(fleet.trees[newest].leaf(node.id, newest), grants_root=nowhere)
    with pytest.raises(GrantsNotAccepted):
        await node.keeper.keep_leaf(leaf.encode(), node.id, nowhere)
    assert not node.documents.has_leaf(node.id, newest)
    kept = await node.keeper.keep_leaf(fleet.leaf(node.identity), node.id, newest)
    assert kept.facts.name == "salle"


async def test_a_leaf_that_was_changed_on_disk_gives_way_to_the_one_before(
    node: SyncNode, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("leaf_damaged")
    fleet = node.fleet
    fleet.give(node.identity, [release("Dune")])
    fleet.sign()
    await node.take_head()
    newest, first = fleet.grants_roots
    forged = replace(fleet.trees[newest].leaf(node.id, newest), items=(b"nothing",))
    node.documents.put_leaf(node.id, newest, forged.encode())
    found = await node.keeper.newest_leaf(node.id)
    assert found is not None
    assert found[0].grants_root == first
    assert not node.documents.has_leaf(node.id, newest)


# The next start


def restart(fleet: SyncFleet, salle: Identity, paths: StatePaths) -> SyncNode:
    with fleet.restarted(salle, paths) as node:
        return node


async def after_two_heads(fleet: SyncFleet, salle: Identity) -> StatePaths:
    """A state folder that has seen two heads."""
    fleet.sign()
    with fleet.node(salle) as node:
        fleet.sign()
        await node.take_head()
        return node.paths


async def test_everything_is_believed_again(fleet: SyncFleet, salle: Identity) -> None:
    paths = await after_two_heads(fleet, salle)
    with fleet.restarted(salle, paths) as node:
        assert node.keeper.head == fleet.head
        assert set(node.keeper.trust.accepted_grants) == set(fleet.grants_roots)
        await node.leaf.load()
        assert node.leaf.facts == fleet.facts[salle.node_id]


async def test_a_trust_file_that_was_put_back_is_refused_by_the_floor(
    fleet: SyncFleet, salle: Identity, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("trust_rolled_back")
    fleet.sign()
    with fleet.node(salle) as node:
        older = node.paths.trust.read_bytes()
        fleet.sign()
        await node.take_head()
        paths = node.paths
    paths.trust.write_bytes(older)
    with fleet.restarted(salle, paths) as node:
        assert node.keeper.order == (1, 2), "the documents have the newer head"
    paths.trust.write_bytes(older)
    documents = DocumentStore(paths.documents)
    for head in documents.heads():
        documents.remove_head(head)
    documents.put_head(older_head(older))
    with fleet.restarted(salle, paths) as node:
        assert node.keeper.order == (0, 0), "an older head is worse than none"
        assert await node.keeper.accept_head(fleet.head_bytes) is Outcome.NEWER
        with pytest.raises(HeadRolledBack):
            await node.keeper.accept_head(older_head(older))


def older_head(stored: bytes) -> bytes:
    """The head in the bytes of a trust file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trust")
        file.write_bytes(stored)
        state = TrustFile(file).load()
        assert state is not None
        assert state.head is not None
        return state.head


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "gone", "a folder"])
async def test_a_damaged_trust_file_is_rebuilt_from_the_documents(
    fleet: SyncFleet, salle: Identity, how: str, expected_errors: ErrorWatch
) -> None:
    if how != "gone":
        expected_errors.expect("trust_file_damaged")
    paths = await after_two_heads(fleet, salle)
    good = paths.trust.read_bytes()
    paths.trust.unlink()
    if how == "a folder":
        paths.trust.mkdir()
    elif how != "gone":
        flipped = bytes([good[50] ^ 1])
        damaged = {"flipped": good[:50] + flipped + good[51:], "truncated": good[:-9], "empty": b""}
        paths.trust.write_bytes(damaged[how])
    with fleet.restarted(salle, paths) as node:
        assert node.keeper.head == fleet.head
        assert set(node.keeper.trust.accepted_grants) == set(fleet.grants_roots)
    # And it is whole again: nothing to say at the next start.
    again = TrustFile(paths.trust).load()
    assert again is not None
    assert again.head == fleet.head_bytes


async def test_without_trust_file_and_heads_a_node_starts_and_waits_for_a_peer(
    fleet: SyncFleet, salle: Identity
) -> None:
    paths = await after_two_heads(fleet, salle)
    paths.trust.unlink()
    documents = DocumentStore(paths.documents)
    for head in documents.heads():
        documents.remove_head(head)
    with fleet.restarted(salle, paths) as node:
        assert node.keeper.order == (0, 0)
        assert node.keeper.grants_root is None
        assert node.keeper.head_bytes() == (b"", b"")
        await node.leaf.load()
        assert node.leaf.leaf is None
        await node.take_head()
        assert node.leaf.facts == fleet.facts[salle.node_id]


async def test_a_root_that_was_lost_in_a_power_cut_is_in_the_trust_file(
    fleet: SyncFleet, salle: Identity
) -> None:
    fleet.sign()
    with fleet.node(salle) as node:
        second = fleet.signed.sign_root(replace(fleet.root, version=2))
        await node.keeper.accept_root(second.encode())
        paths = node.paths
    (path,) = (paths.documents / "roots").glob("*2")
    path.unlink()
    with fleet.restarted(salle, paths) as node:
        assert node.keeper.root.version == 2
        assert node.keeper.order == (1, 1)


async def test_a_gap_in_the_roots_costs_the_head_and_not_the_node(
    fleet: SyncFleet, salle: Identity, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("root_missing", "head_not_restored")
    fleet.sign()
    with fleet.node(salle) as node:
        for version in (2, 3):
            root = fleet.signed.sign_root(replace(fleet.root, version=version))
            await node.keeper.accept_root(root.encode())
        assert fleet.head is not None
        newer = replace(fleet.head, serial=9, root_version=3)
        await node.keeper.accept_head(fleet.signed.sign_head(newer).encode())
        paths = node.paths
    (path,) = (paths.documents / "roots").glob("*2")
    path.unlink()
    with fleet.restarted(salle, paths) as node:
        assert node.keeper.root.version == 1
        assert node.keeper.order == (0, 0)
        assert node.keeper.trust.floor == (1, 9)


async def test_without_its_first_root_a_node_says_what_to_do(
    fleet: SyncFleet, salle: Identity, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("document_damaged", "root_damaged")
    paths = await after_two_heads(fleet, salle)
    (path,) = (paths.documents / "roots").glob("*1")
    path.write_bytes(b"rotten")
    (paths.trust).unlink()
    with pytest.raises(TrustFailure, match="first Root") as refused:
        restart(fleet, salle, paths)
    assert refused.value.remedy is not None
