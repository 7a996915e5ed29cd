"""What happens on a connection by itself: heads go round, the revoked are cut off, hints flow."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from archid.addresses import Address
from archid.errors import StorageError
from archid.net.errors import PeerLost
from archid.net.peer import Peer
from archid.store.seeding import Seeding
from archid.sync import sources as sources_module
from archid.sync.address_book import AddressBook
from archid.sync.fetcher import Want
from archid.sync.signal import Signal
from protocol.ids import NodeId
from protocol.messages import (
    ErrorCode,
    GetHead,
    HeadAnnounce,
    HeadAnswer,
    HeadDigest,
    PeerHint,
    PeerHints,
)
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import Version
from tests.unit.sync.sync_nodes import (
    MIB,
    SETTINGS,
    Session,
    SyncFleet,
    SyncNode,
    connect,
    entries,
    linked,
    reel,
    release,
    running,
    until,
)


@dataclass
class Stage:
    fleet: SyncFleet
    film: Version
    salle: SyncNode
    repo: SyncNode
    third: SyncNode


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    fleet = SyncFleet(tmp_path)
    film = fleet.publish("film", reel(1, 8 * MIB))
    salle = fleet.enrol("salle")
    repo, third = fleet.enrol("repo", "repo", ""), fleet.enrol("third", "repo", "")
    fleet.give(salle, entries(release("Dune"), feature=film))
    fleet.sign()
    with ExitStack() as stack:
        nodes = [stack.enter_context(fleet.node(one)) for one in (salle, repo, third)]
        yield Stage(fleet, film, *nodes)


async def test_a_head_reaches_nodes_that_only_others_know(stage: Stage) -> None:
    async with running() as nursery:
        await connect(nursery, stage.salle, stage.repo)
        await connect(nursery, stage.third, stage.repo)
        stage.fleet.sign()
        await stage.third.take_head()
        await until(lambda: stage.salle.keeper.order == (1, 2), stage.salle.keeper.changed)
        assert stage.repo.keeper.order == (1, 2)
        nursery.cancel_scope.cancel()


async def test_a_revoked_node_is_cut_off_in_the_middle_of_a_transfer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "FIRST_RETRY_S", 0.02)
    stage.repo.hold(stage.film)
    stage.salle.fetcher.want([Want(stage.film.manifest, 0)])
    halfway, go_on, read = trio.Event(), threading.Event(), Seeding.read_span
    reads = itertools.count()

    def pausing(*arguments: Any) -> Any:
        if next(reads) == 3:
            trio.from_thread.run_sync(halfway.set)
            go_on.wait(30)
        return read(*arguments)

    monkeypatch.setattr(Seeding, "read_span", pausing)
    async with running(stage.salle.fetcher.run) as nursery:
        link = await connect(nursery, stage.salle, stage.repo)
        await halfway.wait()
        stage.fleet.sign(denied=(stage.fleet.denial(stage.salle.identity),))
        await stage.repo.take_head()
        await link.left.closed.wait()
        go_on.set()
        assert isinstance(link.left.error, PeerLost)
        assert link.left.error.reason is ErrorCode.DENIED
        assert 0 < link.left.traffic.span_bytes_received < stage.film.root.size_bytes
        await until(lambda: stage.repo.directory.all() == (), stage.repo.directory.changed)
        assert not stage.salle.library.holds(stage.film.manifest)
        nursery.cancel_scope.cancel()


async def test_a_revoked_node_that_takes_nothing_cannot_put_it_off(stage: Stage) -> None:
    async with running() as nursery:
        over = trio.Event()

        async def deaf(_peer: Peer) -> None:
            await over.wait()

        link = await connect(nursery, stage.repo, stage.salle, right=deaf)
        # More than any buffer takes, so that announcing the head has to wait.
        big = HeadAnnounce(bytes(60_000), b"")

        async def fill() -> None:
            with suppress(PeerLost):
                while True:
                    await link.left.announce(big)

        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert link.left.outbox.queued_bytes >= SETTINGS.outbox_bytes
        stage.fleet.sign(denied=(stage.fleet.denial(stage.salle.identity),))
        await stage.repo.take_head()
        await link.left.closed.wait()
        over.set()
        nursery.cancel_scope.cancel()


async def test_who_says_that_it_lacks_the_head_gets_it_again(stage: Stage) -> None:
    heard = Signal()
    heads: list[bytes] = []

    async def forgetful(peer: Peer) -> None:
        async for notice in peer.notices:
            if isinstance(notice, HeadAnnounce):
                heads.append(notice.head)
                heard.fire()

    async with running() as nursery:
        link = await connect(nursery, stage.repo, stage.salle, right=forgetful)
        epoch, serial = stage.repo.keeper.order
        await link.right.announce(HeadDigest((epoch, serial - 1)))
        await until(lambda: len(heads) == 1, heard)
        assert heads[0] == stage.repo.keeper.head_bytes()[0]
        nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint()


async def test_who_hears_of_a_newer_head_asks_for_it(stage: Stage) -> None:
    asked = trio.Event()

    async def ahead(peer: Peer) -> None:
        epoch, serial = stage.repo.keeper.order
        await peer.announce(HeadDigest((epoch, serial + 1)))
        async for notice in peer.notices:
            if isinstance(notice, HeadDigest) and notice.head_order == (epoch, serial):
                asked.set()

    async with running() as nursery:
        await connect(nursery, stage.repo, stage.salle, right=ahead)
        await asked.wait()
        nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint()


async def test_hints_are_believed_of_central_and_repos_only(stage: Stage) -> None:
    elsewhere = PeerHint(NodeId.of(b"elsewhere"), "repo", ("elsewhere.example:1",))
    async with linked(stage.salle, stage.repo) as link:
        await link.left.announce(PeerHints((elsewhere,)))
        await link.right.announce(PeerHints((elsewhere,)))
        addresses = stage.salle.addresses
        await until(lambda: bool(addresses.addresses()), addresses.changed)
        assert addresses.addresses() == (Address("elsewhere.example", 1),)
        assert stage.repo.addresses.addresses() == ()


async def test_a_repo_tells_where_it_is(stage: Stage) -> None:
    own = Address("repo.example", 4777)
    stage.repo.links._addresses = stage.repo.addresses = AddressBook(
        stage.repo.paths.state / "addresses.json", stage.repo.id, "repo", [own]
    )
    async with linked(stage.salle, stage.repo):
        addresses = stage.salle.addresses
        await until(lambda: addresses.addresses() == (own,), addresses.changed)


async def test_announcements_of_nonsense_leave_the_connection_as_it_is(stage: Stage) -> None:
    async with linked(stage.salle, stage.repo) as link:
        await link.left.announce(HeadAnnounce(b"garbage", b"garbage"))
        stage.fleet.sign()
        await stage.salle.keeper.accept_head(stage.fleet.head_bytes, stage.fleet.grants_bytes)
        await until(lambda: stage.repo.keeper.order == (1, 2), stage.repo.keeper.changed)
        assert link.left.error is None


async def test_what_goes_wrong_with_one_peer_leaves_its_connection_and_the_node(
    stage: Stage, expected_errors: ErrorWatch
) -> None:
    expected_errors.allow("session_failed")
    failed = trio.Event()

    async def failing(_peer: Peer) -> None:
        failed.set()
        raise StorageError("The database is on a disk that fails")

    stage.repo.links._on_admitted = failing
    async with linked(stage.salle, stage.repo) as link:
        await failed.wait()
        stage.fleet.sign()
        await stage.repo.take_head()
        await until(lambda: stage.salle.keeper.order == (1, 2), stage.salle.keeper.changed)
        assert link.left.error is None


async def test_a_node_that_does_not_know_itself_serves_nobody(stage: Stage) -> None:
    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.repo, right=_never_knew(stage.repo))
        await link.left.closed.wait()
        assert isinstance(link.left.error, PeerLost)
        assert link.left.error.reason is ErrorCode.NOT_READY
        nursery.cancel_scope.cancel()


async def test_a_node_that_lost_its_leaf_takes_it_from_the_peer_that_it_proved_itself_to(
    stage: Stage,
) -> None:
    def forgot(node: SyncNode) -> Session:
        async def session(peer: Peer) -> None:
            node.leaf._held = None  # what is on disk came with the proofs, before the session
            await node.links.session(peer)

        return session

    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.repo, right=forgot(stage.repo))
        assert (await link.left.request(GetHead(0), HeadAnswer)).head
        nursery.cancel_scope.cancel()


def _never_knew(node: SyncNode) -> Session:
    async def session(peer: Peer) -> None:
        node.leaf._held = None
        for owner, grants_root in node.documents.leaves():
            node.documents.remove_leaf(owner, grants_root)
        await node.links.session(peer)

    return session
