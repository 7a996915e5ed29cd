"""Who else holds a version: told by central and REPOs, to whoever may read it, and dialled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from archid.net.errors import PeerRefused
from archid.net.peer import Peer
from archid.sync import fellows as fellows_module
from archid.sync.fellows import Fellows
from archid.sync.sources import Sources
from protocol.ids import NodeId
from protocol.messages import Entitle, ErrorCode, GetHolders, Holder, HoldersAnswer
from protocol.state import WHOLE, Holding
from tests.unit.store.trees import Version
from tests.unit.sync.sync_nodes import (
    MIB,
    SyncFleet,
    SyncNode,
    connect,
    entries,
    reel,
    release,
    running,
    until,
)


@dataclass
class Cast:
    fleet: SyncFleet
    film: Version
    repo: SyncNode
    lyon: SyncNode
    nice: SyncNode
    """Of another site; both are granted the film."""
    brest: SyncNode
    """Which is not."""


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    fleet = SyncFleet(tmp_path)
    film = fleet.publish("film", reel(1, 2 * MIB))
    repo = fleet.enrol("repo", "repo", "")
    servers = [fleet.enrol(site, site=site) for site in ("lyon", "nice", "brest")]
    for server in servers[:2]:
        fleet.give(server, entries(release("Dune"), feature=film))
    fleet.sign()
    with ExitStack() as stack:
        nodes = [stack.enter_context(fleet.node(one)) for one in (repo, *servers)]
        nodes[0].hold(film)
        yield Cast(fleet, film, *nodes)


async def show(peer: Peer, node: SyncNode, film: Version) -> None:
    await peer.request(Entitle(0, film.manifest, node.leaf.proof_for(film.manifest)))


async def told(peer: Peer, film: Version) -> tuple[Holder, ...]:
    return (await peer.request(GetHolders(0, film.manifest), HoldersAnswer)).holders


async def places(cast: Cast, nursery: trio.Nursery, *nodes: SyncNode) -> list[Peer]:
    """Connect servers to the REPO; they have said where they are, and it has heard."""
    links = []
    for node in nodes:
        node.said_addresses = (f"{node.facts.name}.example:4777",)
        nursery.start_soon(node.states.run)
        links.append((await connect(nursery, node, cast.repo)).left)
    known = cast.repo.states.known
    await until(
        lambda: all(node.id in known and known[node.id].addresses for node in nodes),
        cast.repo.states.changed,
    )
    return links


async def test_who_may_not_read_it_is_told_nothing(cast: Cast) -> None:
    async with running() as nursery:
        lyon, brest = await places(cast, nursery, cast.lyon, cast.brest)
        await show(lyon, cast.lyon, cast.film)
        with pytest.raises(PeerRefused) as refused:
            await told(brest, cast.film)
        assert refused.value.reason is ErrorCode.NOT_ENTITLED
        nursery.cancel_scope.cancel()


async def test_who_fetches_it_is_told_of_at_once_and_where_it_said_it_is(cast: Cast) -> None:
    async with running() as nursery:
        lyon, nice = await places(cast, nursery, cast.lyon, cast.nice)
        await show(lyon, cast.lyon, cast.film)
        assert await told(lyon, cast.film) == (), "neither itself nor the REPO"
        await show(nice, cast.nice, cast.film)
        assert await told(lyon, cast.film) == (Holder(cast.nice.id, ("nice.example:4777",)),)
        assert await told(nice, cast.film) == (Holder(cast.lyon.id, ("lyon.example:4777",)),)
        nursery.cancel_scope.cancel()


async def test_who_holds_it_by_its_state_is_told_of_until_it_is_revoked(cast: Cast) -> None:
    cast.nice.said_holdings = (Holding(cast.film.manifest, WHOLE),)
    async with running() as nursery:
        lyon, nice = await places(cast, nursery, cast.lyon, cast.nice)
        await show(lyon, cast.lyon, cast.film)
        assert [one.node for one in await told(lyon, cast.film)] == [cast.nice.id]
        cast.fleet.sign(denied=(cast.fleet.denial(cast.nice.identity),))
        await cast.repo.take_head()
        await nice.closed.wait()
        await cast.lyon.take_head()
        await show(lyon, cast.lyon, cast.film)
        assert await told(lyon, cast.film) == ()
        nursery.cancel_scope.cancel()


async def test_a_server_tells_nobody(cast: Cast) -> None:
    cast.nice.hold(cast.film)
    async with running() as nursery:
        link = await connect(nursery, cast.lyon, cast.nice)
        await show(link.left, cast.lyon, cast.film)
        assert await told(link.left, cast.film) == ()
        nursery.cancel_scope.cancel()


async def test_a_fetch_asks_and_keeps_who_was_told_of_for_a_while_after(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fellows_module, "FIRST_ASK_S", 0.01)
    fellows = Fellows(cast.lyon.id)
    sources = Sources(
        cast.film.manifest,
        cast.lyon.directory,
        lambda: cast.lyon.leaf.proof_for(cast.film.manifest),
        "lyon",
    )

    def found() -> dict[NodeId, tuple[str, ...]]:
        return dict(fellows.places(now=trio.current_time()))

    async with running(sources.run) as nursery:
        _, nice = await places(cast, nursery, cast.lyon, cast.nice)
        await show(nice, cast.nice, cast.film)
        async with trio.open_nursery() as fetch:
            fetch.start_soon(fellows.seek, sources)
            await until(lambda: bool(found()), fellows.changed)
            assert found() == {cast.nice.id: ("nice.example:4777",)}
            assert fellows.wake_at() is None
            fetch.cancel_scope.cancel()
        ends = fellows.wake_at()
        assert ends is not None
        assert found()
        assert not fellows.places(now=ends)
        nursery.cancel_scope.cancel()


async def test_who_has_a_neighbour_with_it_asks_nobody(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fellows_module, "FIRST_ASK_S", 0.01)
    fellows = Fellows(cast.lyon.id)
    sources = Sources(
        cast.film.manifest,
        cast.lyon.directory,
        lambda: cast.lyon.leaf.proof_for(cast.film.manifest),
        "nice",  # where the other server with the film stands too
    )
    cast.nice.hold(cast.film)
    async with running(sources.run) as nursery:
        await places(cast, nursery, cast.lyon, cast.nice)
        await connect(nursery, cast.lyon, cast.nice)
        await until(lambda: len(sources.ready) == 2, sources.changed)
        with trio.move_on_after(0.1):
            await fellows.seek(sources)
        assert not fellows.places(now=trio.current_time())
        nursery.cancel_scope.cancel()


async def test_neighbours_that_are_connected_are_left_the_time_to_begin(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    fellows = Fellows(cast.lyon.id)
    sources = Sources(
        cast.film.manifest,
        cast.lyon.directory,
        lambda: cast.lyon.leaf.proof_for(cast.film.manifest),
        "nice",  # where the other server stands too, which does not have the film yet
    )
    async with running(sources.run) as nursery:
        _, nice = await places(cast, nursery, cast.lyon, cast.nice)
        await show(nice, cast.nice, cast.film)
        await connect(nursery, cast.lyon, cast.nice)
        await until(lambda: bool(sources.ready) and sources.may_have_near, sources.changed)
        with trio.move_on_after(0.1):
            await fellows.seek(sources)
        assert not fellows.places(now=trio.current_time())
        # Only for a while: it may have no use for the film.
        monkeypatch.setattr(fellows_module, "NEAR_S", 0.01)
        async with trio.open_nursery() as fetch:
            fetch.start_soon(fellows.seek, sources)
            await until(lambda: bool(fellows.places(now=trio.current_time())), fellows.changed)
            fetch.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
