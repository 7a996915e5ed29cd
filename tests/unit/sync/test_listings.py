"""A REPO keeps everything under the newest head, and every node its own leaf."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio.testing

from archid.identity import Identity
from archid.net.errors import PeerLost
from archid.net.peer import Peer
from archid.sync import listings as listings_module
from archid.sync import own_leaf as own_leaf_module
from protocol import paged
from protocol.ids import DocumentId
from protocol.messages import (
    ErrorCode,
    GetGrants,
    GetLeaf,
    GrantsAnswer,
    HeadAnnounce,
    LeafAnswer,
    Refused,
)
from tests.expected_errors import ErrorWatch
from tests.unit.sync.sync_nodes import (
    Session,
    SyncFleet,
    SyncNode,
    connect,
    entries,
    event,
    reel,
    release,
    running,
    until,
)


@dataclass
class Stage:
    """Central, which has everything, a REPO and an ICE node that have their own leaves."""

    fleet: SyncFleet
    central: SyncNode
    repo: SyncNode
    salle: SyncNode

    async def complete(self) -> None:
        listings = self.repo.listings
        await until(lambda: listings.is_complete, listings.changed)

    def assert_all_leaves(self) -> None:
        """The REPO can give every node its leaf under the newest Grants, and it holds."""
        newest = self.fleet.grants_roots[0]
        grants = self.repo.keeper.trust.grants(newest)
        assert grants is not None
        for node in self.fleet.items:
            data = self.repo.documents.get_leaf(node, newest)
            assert data == self.fleet.trees[newest].leaf(node, newest).encode()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (listings_module, own_leaf_module):
        monkeypatch.setattr(module, "FIRST_RETRY_S", 0.02)


@pytest.fixture
def identities(tmp_path: Path) -> tuple[SyncFleet, list[Identity]]:
    fleet = SyncFleet(tmp_path)
    fleet.publish("film", reel(1))
    roles = ("central", "central", ""), ("repo", "repo", ""), ("salle", "ice", "lyon")
    return fleet, [fleet.enrol(name, role, site) for name, role, site in roles]


@pytest.fixture
def stage(identities: tuple[SyncFleet, list[Identity]]) -> Iterator[Stage]:
    fleet, (central, repo, salle) = identities
    for number in range(30):
        fleet.enrol(f"ice {number}", "ice", "paris")
    fleet.sign()
    with ExitStack() as stack:
        nodes = [stack.enter_context(fleet.node(one)) for one in (central, repo, salle)]
        nodes[0].hold_lists()
        yield Stage(fleet, *nodes)


def counting(node: SyncNode, counts: dict[type, int]) -> Session:
    """The node's own session, which counts the requests of the peer as it passes them on."""

    async def session(peer: Peer) -> None:
        receive = peer.requests.receive

        async def counted() -> object:
            request = await receive()
            counts[type(request)] = counts.get(type(request), 0) + 1
            return request

        peer.requests.receive = counted  # type: ignore[method-assign, assignment]
        await node.links.session(peer)

    return session


async def test_a_repo_fetches_everything_that_the_head_lists(stage: Stage) -> None:
    async with running(stage.repo.listings.run) as nursery:
        await connect(nursery, stage.repo, stage.central)
        await stage.complete()
    stage.assert_all_leaves()
    assert list(stage.repo.listings.catalogue) == stage.fleet.catalogue
    assert {row.facts.name for row in stage.repo.listings.roster} >= {"central", "ice 0"}


async def test_only_leaves_that_changed_come_over_the_network(stage: Stage) -> None:
    fleet, counts = stage.fleet, dict[type, int]()
    async with running(stage.repo.listings.run) as nursery:
        link = await connect(
            nursery, stage.repo, stage.central, right=counting(stage.central, counts)
        )
        await stage.complete()
        assert counts[GetLeaf] == len(fleet.items) - 1, "its own it had"
        counts.clear()
        film = fleet.publish("second", reel(2))
        fleet.give(stage.salle.identity, entries(release("Dune"), feature=film))
        fleet.sign()
        stage.central.hold_lists()
        await stage.central.take_head()
        await until(
            lambda: len(stage.repo.listings.catalogue) == 2 and stage.repo.listings.is_complete,
            stage.repo.listings.changed,
        )
        assert counts[GetLeaf] == 1
        stage.assert_all_leaves()
        assert link.left.error is None


async def test_leaves_of_heads_long_gone_are_dropped(stage: Stage) -> None:
    async with running(stage.repo.listings.run) as nursery:
        await connect(nursery, stage.repo, stage.central)
        for number in range(4):
            stage.fleet.enrol(f"newcomer {number}")
            stage.fleet.sign()
            stage.central.hold_lists()
            await stage.central.take_head()
            wanted = stage.fleet.head
            await until(
                lambda wanted=wanted: (
                    stage.repo.keeper.trust.head == wanted  # type: ignore[misc]
                    and stage.repo.listings.is_complete
                ),
                stage.repo.listings.changed,
                stage.repo.keeper.changed,
            )
    kept = {grants_root for _, grants_root in stage.repo.documents.leaves()}
    assert kept == set(stage.fleet.grants_roots[:2])
    stage.assert_all_leaves()


async def test_leaves_that_central_keeps_for_a_head_that_is_not_believed_yet_stay(
    stage: Stage,
) -> None:
    """Central puts them into the store first, while the head before is still being completed."""
    documents, listings = stage.repo.documents, stage.repo.listings
    node = stage.salle.identity.node_id
    old, signed, later = (DocumentId.of(name) for name in (b"old", b"signed", b"signed later"))
    documents.put_leaf(node, old, b"a leaf")
    documents.put_leaf(node, signed, b"a leaf")

    def signed_here() -> set[DocumentId]:
        documents.put_leaf(node, later, b"what comes in at this very moment")
        return {signed}

    stage.repo.keeper.signed_here = signed_here
    listings._drop_old_leaves(stage.repo.keeper.accepted)
    kept = {root for owner, root in documents.leaves() if owner == node}
    assert kept >= {signed, later}
    assert old not in kept


async def test_what_one_peer_lacks_comes_from_the_next(stage: Stage) -> None:
    second = stage.fleet.enrol("second", "repo", "")
    stage.fleet.sign()
    for node in (stage.central, stage.repo):
        await node.take_head()
    stage.central.hold_lists()
    with stage.fleet.node(second) as incomplete:
        async with running(stage.repo.listings.run) as nursery:
            await connect(nursery, stage.repo, incomplete)
            await trio.testing.wait_all_tasks_blocked()
            assert not stage.repo.listings.is_complete
            await connect(nursery, stage.repo, stage.central)
            await stage.complete()
    stage.assert_all_leaves()


async def test_pages_and_indexes_that_rotted_on_disk_are_fetched_again(
    stage: Stage, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("document_damaged")
    stage.repo.hold_lists()
    for folder in ("pages", "lists"):
        for path in (stage.repo.paths.documents / folder).rglob("*"):
            if path.is_file():
                path.write_bytes(b"rotten")
    async with running(stage.repo.listings.run) as nursery:
        await connect(nursery, stage.repo, stage.central)
        await stage.complete()
    assert list(stage.repo.listings.catalogue) == stage.fleet.catalogue
    assert stage.fleet.head is not None
    index = stage.repo.documents.get_list(stage.fleet.head.catalogue)
    for ref in paged.decode_index(index).pages:
        assert stage.repo.documents.get_page(ref.id)


async def test_a_peer_that_is_lost_in_the_middle_ends_nothing(stage: Stage) -> None:
    asked = trio.Event()

    async def falling(peer: Peer) -> None:
        counts: dict[type, int] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(counting(stage.central, counts), peer)
            while counts.get(GetLeaf, 0) < 3 and not peer.closed.is_set():
                await trio.testing.wait_all_tasks_blocked()
            peer.stream.close()
            asked.set()
            nursery.cancel_scope.cancel()

    async with running(stage.repo.listings.run) as nursery:
        await connect(nursery, stage.repo, stage.central, right=falling)
        await asked.wait()
        await connect(nursery, stage.repo, stage.central)
        await stage.complete()
    stage.assert_all_leaves()


# One's own leaf


async def test_a_node_asks_for_its_leaf_after_a_new_head(stage: Stage) -> None:
    film = stage.fleet.publish("second", reel(2))
    async with (
        stage.salle.events.subscribe(prefixes=["leaf."]) as events,
        running(stage.salle.leaf.run) as nursery,
    ):
        await connect(nursery, stage.salle, stage.central)
        await event(events, "leaf.accepted")
        stage.fleet.give(stage.salle.identity, entries(release("Dune"), feature=film))
        stage.fleet.sign()
        stage.central.hold_lists()
        await stage.central.take_head()
        await event(events, "leaf.accepted")
        leaf = stage.salle.leaf.leaf
        assert leaf is not None
        assert [one.name for one in leaf.releases] == ["Dune"]
        assert stage.salle.leaf.proof_for(film.manifest)


async def test_the_older_leaf_holds_until_the_newer_one_comes(stage: Stage) -> None:
    changes = 0
    async with running(stage.salle.leaf.run) as nursery:
        await connect(nursery, stage.salle, stage.repo)
        stage.fleet.enrol("newcomer")
        stage.fleet.sign()
        # The REPO has the head and not the leaf; it is asked, and has nothing to give.
        await stage.repo.take_head()
        await until(lambda: stage.salle.keeper.order == (1, 2), stage.salle.keeper.changed)
        before, changes = stage.salle.leaf.leaf, stage.salle.leaf.changed.version
        await trio.testing.wait_all_tasks_blocked()
        assert stage.salle.leaf.leaf is before is not None
        assert stage.salle.leaf.changed.version == changes
        stage.repo.hold_lists()
        await stage.salle.leaf.changed.wait(changes)
        assert stage.salle.keeper.grants_root == stage.fleet.grants_roots[0]


async def test_a_peer_that_gives_another_leaf_is_passed_over_for_the_next(stage: Stage) -> None:
    stage.fleet.enrol("newcomer")
    first = stage.fleet.grants_roots[0]
    stage.fleet.sign()
    for node in (stage.central, stage.repo):
        await node.take_head()
    stage.central.hold_lists()
    lies = 0

    async def lying(peer: Peer) -> None:
        nonlocal lies
        await peer.announce(announced(stage))
        try:
            async for request in peer.requests:
                if isinstance(request, GetLeaf):
                    lies += 1
                    # Its own and true, but of the head before.
                    older = stage.fleet.leaf(stage.salle.identity, first)
                    await peer.answer(LeafAnswer(request.request, older))
                elif isinstance(request, GetGrants):
                    await peer.answer(GrantsAnswer(request.request, stage.fleet.grants_bytes))
                else:
                    await peer.answer(Refused(request.request, ErrorCode.UNKNOWN_DOCUMENT, ""))
        except PeerLost:
            pass

    async with running(stage.salle.leaf.run) as nursery:
        await stage.salle.leaf.load()
        changes = stage.salle.leaf.changed.version
        await connect(nursery, stage.salle, stage.repo, right=lying)
        while lies < 3:
            await trio.testing.wait_all_tasks_blocked()
        assert stage.salle.leaf.changed.version == changes, "an old leaf is no news"
        await connect(nursery, stage.salle, stage.central)
        await stage.salle.leaf.changed.wait(changes)
    newest = stage.fleet.grants_roots[0]
    assert stage.salle.documents.has_leaf(stage.salle.id, newest)


def announced(stage: Stage) -> HeadAnnounce:
    return HeadAnnounce(stage.fleet.head_bytes, stage.fleet.grants_bytes)


async def test_a_leaf_that_is_kept_for_the_next_head_is_not_forgotten_with_old_ones(
    stage: Stage,
) -> None:
    """Central signs again while its own leaf under the head before is taken over."""
    documents, keeper, node = stage.central.documents, stage.central.keeper, stage.central.id
    old, signed, later = (DocumentId.of(name) for name in (b"old", b"signed", b"signed later"))
    documents.put_leaf(node, old, b"a leaf")
    documents.put_leaf(node, signed, b"a leaf")

    def signed_here() -> set[DocumentId]:
        documents.put_leaf(node, later, b"what comes in at this very moment")
        return {signed}

    keeper.signed_here = signed_here
    await keeper.forget_old_leaves(node)
    kept = {root for owner, root in documents.leaves() if owner == node}
    assert kept >= {signed, later}
    assert old not in kept


async def test_central_takes_its_own_leaf_from_its_disk(stage: Stage) -> None:
    stage.central.keeper.signed_here = lambda: stage.fleet.grants_roots[:1]
    async with running(stage.central.leaf.run):
        await until(lambda: stage.central.leaf.leaf is not None, stage.central.leaf.changed)
        changes = stage.central.leaf.changed.version
        stage.fleet.enrol("newcomer")
        stage.fleet.sign()
        stage.central.hold_lists()
        fleet = stage.fleet
        await stage.central.keeper.accept_head(fleet.head_bytes, fleet.grants_bytes)
        await stage.central.leaf.changed.wait(changes)
        assert stage.central.keeper.grants_root == fleet.grants_roots[0]


async def test_leaves_under_grants_that_count_no_more_are_removed(stage: Stage) -> None:
    async with running(stage.salle.leaf.run) as nursery:
        stage.fleet.enrol("newcomer")
        stage.fleet.sign(forget_old=True)
        stage.central.hold_lists()
        await stage.central.take_head()
        await connect(nursery, stage.salle, stage.central)
        newest = stage.fleet.grants_roots[0]
        while stage.salle.documents.leaves() != [(stage.salle.id, newest)]:
            await trio.testing.wait_all_tasks_blocked()
