"""Open requests for spans: they wait for a slot, are given up in time, and say what went wrong."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from archid.errors import StorageError
from archid.net.errors import PeerRefused
from archid.net.peer import Peer
from archid.net.settings import PeerSettings
from archid.store import syscalls
from archid.store.errors import ChunkCorrupt
from archid.store.filling import SpanBytes
from archid.store.staging import Staging
from archid.sync.span_asks import SpanAsks
from protocol.features import FEATURES
from protocol.fetch_events import (
    OfferRefused,
    OneEvent,
    SpanKey,
    SpanPicked,
    SpanReceived,
    SpanRefused,
)
from protocol.layout import Span
from protocol.limits import MAX_OUTSTANDING_REQUESTS, MIB
from protocol.messages import (
    Entitle,
    ErrorCode,
    GetAny,
    GetHave,
    GetSpan,
    LaneProof,
    Request,
    SpanAnswer,
)
from tests.unit.store.trees import Version
from tests.unit.sync.lane_links import carry, lane_between, served
from tests.unit.sync.sync_nodes import (
    SETTINGS,
    SyncFleet,
    SyncNode,
    connect,
    entries,
    reel,
    release,
    running,
)


@dataclass
class Asked:
    """The requests of one fetch to one peer, and what has become of them."""

    film: Version
    staging: Staging
    peer: Peer
    asks: SpanAsks = field(init=False)
    told: list[OneEvent] = field(default_factory=list)
    came: trio.Event = field(default_factory=trio.Event)
    moved_bytes: int = 0
    lost: list[str] = field(default_factory=list)
    running: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.running:
            await self.asks.run(task_status=task_status)

    def key(self, n: int) -> SpanKey:
        span = self.film.layout.spans[n]
        return SpanKey(span.piece_index, span.n)

    def tell(self, _peer: Peer, event: OneEvent) -> None:
        self.told.append(event)
        self.came.set()
        self.came = trio.Event()

    def moved(self, size_bytes: int) -> None:
        self.moved_bytes += size_bytes

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not condition():
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def asking(node: SyncNode, film: Version, peer: Peer) -> AsyncIterator[Asked]:
    """A fetch that asks one peer."""
    node.hold_documents(film)
    staging = node.library.stage(film.layout)
    asked = Asked(film, staging, peer)
    spans: dict[SpanKey, Span] = {SpanKey(one.piece_index, one.n): one for one in film.layout.spans}
    asked.asks = SpanAsks(
        staging,
        spans,
        tell=asked.tell,
        moved=asked.moved,
        verified=lambda _piece, _n: None,
        lost=lambda _peer, why: asked.lost.append(why),
    )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(asked.run)
            yield asked
            nursery.cancel_scope.cancel()
    finally:
        await asked.asks.close()
        node.library.end_staging(staging)


@pytest.mark.parametrize("by_lane", [True, False])
async def test_what_is_asked_for_comes_is_written_and_told(tmp_path: Path, by_lane: bool) -> None:
    async with served(tmp_path, film_mib=6) as nodes, trio.open_nursery() as nursery:
        client, film = nodes.link.left, nodes.film
        lanes = lane_between(client, nodes.link.right) if by_lane else []
        for lane in lanes:
            nursery.start_soon(carry, lane)
        if by_lane:
            await _prove(client, nodes.link.right)
        await client.request(Entitle(0, film.manifest, nodes.salle.leaf.proof_for(film.manifest)))
        async with asking(nodes.salle, film, client) as asked:
            asked.asks.ask(client, asked.key(0))
            asked.asks.ask_any(client, 1, ((0, b"\x06"),))
            await asked.until(lambda: not len(asked.asks))
            picked = next(one for one in asked.told if isinstance(one, SpanPicked))
            assert picked.span in (asked.key(1), asked.key(2))
            assert SpanReceived(client.node, asked.key(0)) in asked.told
            assert SpanReceived(client.node, picked.span) in asked.told
            assert asked.told.index(picked) < asked.told.index(
                SpanReceived(client.node, picked.span)
            )
            assert asked.staging.held_bytes == asked.moved_bytes > 0
        for lane in lanes:
            lane.end()
        nursery.cancel_scope.cancel()
    for lane in lanes:
        lane.close()


async def _prove(*peers: Peer) -> None:
    for peer in peers:
        assert peer.lane is not None
        await peer.lane.send(LaneProof)


@asynccontextmanager
async def silent(
    base: Path, settings: PeerSettings = SETTINGS
) -> AsyncIterator[tuple[Asked, Peer, list[Request]]]:
    """A fetch that asks a peer which answers nothing by itself; the other end of it, and what it
    was asked."""
    fleet = SyncFleet(base)
    film = fleet.publish("film", reel(1, 6 * MIB))
    repo, salle = fleet.enrol("repo", "repo", ""), fleet.enrol("salle", "ice", "lyon")
    fleet.give(salle, entries(release("Dune"), feature=film))
    fleet.sign()
    heard: list[Request] = []

    async def listen(peer: Peer) -> None:
        async for request in peer.requests:
            heard.append(request)  # noqa: PERF401 - each as it comes

    with fleet.node(repo) as one, fleet.node(salle) as two:
        for node in (one, two):
            node.doorkeeper._features = FEATURES
        async with running() as nursery:
            link = await connect(nursery, two, one, right=listen, settings=settings)
            async with asking(two, film, link.left) as asked:
                yield asked, link.right, heard


async def test_an_offer_that_waits_for_a_slot_goes_out_without_what_was_taken_out(
    tmp_path: Path,
) -> None:
    async with silent(tmp_path) as (asked, server, heard), trio.open_nursery() as nursery:
        peer = asked.peer

        async def fill_a_slot() -> None:
            with pytest.raises(PeerRefused):
                await peer.request(GetHave(0, asked.film.manifest))

        # What the node asks by itself counts among them.
        while peer.connection.open_requests < MAX_OUTSTANDING_REQUESTS:
            nursery.start_soon(fill_a_slot)
            await asked.until(lambda: peer.connection.open_requests >= len(nursery.child_tasks))
        asked.asks.ask_any(peer, 1, ((0, b"\x07"),))
        asked.asks.ask_any(peer, 2, ((0, b"\x02"),))
        for n in (0, 1):
            asked.asks.leave_out(peer, asked.key(n))
        await trio.testing.wait_all_tasks_blocked()
        assert len(asked.asks) == 2
        assert not [one for one in heard if isinstance(one, GetAny)]
        await asked.until(lambda: sum(isinstance(one, GetHave) for one in heard) > 1)
        for request in [one for one in heard if isinstance(one, GetHave)]:
            await server.refuse(request, ErrorCode.BUSY, "not now")
        await asked.until(lambda: any(isinstance(one, GetAny) for one in heard))
        [sent] = [one for one in heard if isinstance(one, GetAny)]
        assert sent.wanted == ((0, b"\x04"),)
        assert asked.told == [OfferRefused(peer.node, 2, ErrorCode.CANCELLED)]
        # What goes out from now on is not made without anything.
        asked.asks.leave_out(peer, asked.key(2))
        assert len(asked.asks) == 1


async def test_what_is_not_answered_in_time_is_taken_for_busy_and_taken_back(
    tmp_path: Path,
) -> None:
    settings = replace(SETTINGS, request_timeout_s=0.2)
    async with silent(tmp_path, settings) as (asked, server, heard):
        asked.asks.ask(asked.peer, asked.key(0))
        await asked.until(lambda: bool(asked.told))
        assert asked.told == [SpanRefused(asked.peer.node, asked.key(0), ErrorCode.BUSY)]
        [request] = [one for one in heard if isinstance(one, GetSpan)]
        await asked.until(lambda: not server.still_wants(request))
        assert not len(asked.asks)


async def test_what_is_asked_while_all_else_waits_for_the_disk_is_ended_in_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, write = threading.Event(), Staging.write_spans

    def slow(staging: Staging, spans: Sequence[SpanBytes]) -> list[ChunkCorrupt | None]:
        assert free.wait(60)
        return write(staging, spans)

    monkeypatch.setattr(Staging, "write_spans", slow)
    async with silent(tmp_path) as (asked, server, heard):
        try:
            asked.asks.ask(asked.peer, asked.key(0))
            await answer_first(asked, server, heard)
            await asked.until(lambda: asked.moved_bytes > 0)
            asked.asks._look.set()  # its time is over, which nobody has to wait for here
            await asked.until(lambda: asked.asks._look_at == math.inf)
            asked.peer.settings = replace(SETTINGS, request_timeout_s=0.2)
            asked.asks.ask(asked.peer, asked.key(1))
            await asked.until(lambda: bool(asked.told))
            assert asked.told == [SpanRefused(asked.peer.node, asked.key(1), ErrorCode.BUSY)]
        finally:
            free.set()
        await asked.until(lambda: len(asked.told) == 2)
        assert asked.told[1] == SpanReceived(asked.peer.node, asked.key(0))


async def test_what_comes_while_the_fetch_ends_is_passed_over_and_harms_nobody(
    tmp_path: Path,
) -> None:
    async with silent(tmp_path) as (asked, server, heard):
        peer = asked.peer
        for n in (0, 1):
            asked.asks.ask(peer, asked.key(n))
        asked.running.cancel()
        await answer_first(asked, server, heard)
        await asked.until(lambda: asked.moved_bytes > 0)
        assert asked.told == []
        await asked.asks.close()
        assert not len(asked.asks)
        assert not peer.closed.is_set()
        await asked.until(lambda: not server.still_wants(heard[-1]))


async def answer_first(asked: Asked, server: Peer, heard: list[Request]) -> None:
    """Let the other end answer the first request for a span, inside TLS."""
    await asked.until(lambda: any(isinstance(one, GetSpan) for one in heard))
    request = next(one for one in heard if isinstance(one, GetSpan))
    data = asked.film.span_bytes(asked.film.layout.spans[request.n], request.skip)
    await server.answer(SpanAnswer(request.request, request.piece, request.n, data))


async def test_nothing_is_told_of_what_was_cancelled(tmp_path: Path) -> None:
    async with silent(tmp_path) as (asked, server, heard):
        asked.asks.ask(asked.peer, asked.key(0))
        asked.asks.ask_any(asked.peer, 1, ((0, b"\x02"),))
        asked.asks.cancel(asked.peer, asked.key(0))
        asked.asks.cancel_offer(asked.peer, 1)
        assert not len(asked.asks)
        await asked.until(lambda: sum(isinstance(one, GetSpan | GetAny) for one in heard) == 2)
        for request in [one for one in heard if isinstance(one, GetSpan | GetAny)]:
            await asked.until(lambda request=request: not server.still_wants(request))  # type: ignore[misc]
        assert asked.told == []


async def test_with_a_peer_all_that_it_was_asked_is_over(tmp_path: Path) -> None:
    async with silent(tmp_path) as (asked, server, _):
        asked.asks.ask(asked.peer, asked.key(0))
        asked.asks.ask_any(asked.peer, 1, ((0, b"\x02"),))
        server.disconnect(ErrorCode.CLOSING, "in a test")
        await asked.until(lambda: not len(asked.asks))
        assert len(asked.lost) == 2
        assert asked.told == []
        # Who asks it once more is told so too.
        asked.asks.ask(asked.peer, asked.key(1))
        assert len(asked.lost) == 3


async def test_a_disk_that_takes_no_more_ends_the_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _data: object, _offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with served(tmp_path, film_mib=2) as nodes:
        client, film = nodes.link.left, nodes.film
        await client.request(Entitle(0, film.manifest, nodes.salle.leaf.proof_for(film.manifest)))

        async def fetch() -> None:
            async with asking(nodes.salle, film, client) as asked:
                monkeypatch.setattr(syscalls, "pwrite_all", full)
                asked.asks.ask(client, asked.key(0))
                with trio.fail_after(60):
                    await trio.sleep_forever()

        with pytest.raises(BaseExceptionGroup) as group:
            await fetch()
        assert group.value.subgroup(StorageError) is not None
