"""Lanes beside real peers: what fails in one ends its connection, never the node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from archid.net.errors import PeerLost
from archid.net.lane import TakenSpan
from archid.net.lane_desk import LaneDesk
from archid.net.peer import Peer
from protocol.features import LANES, SWARM
from protocol.ids import ManifestId, PieceId
from protocol.messages import GetAny, GetSpan, OpenLane, Picked, SpanAnswer
from tests.unit.net.fleet_nodes import SETTINGS, FleetNodes, Node, connected

MANIFEST, PIECE = ManifestId.of(b"manifest"), PieceId.of(b"piece")
QUICK = replace(SETTINGS, goodbye_timeout_s=0.5)


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    fleet = FleetNodes(tmp_path)
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    made = fleet.node(one), fleet.node(two)
    for node in made:
        node.features = (LANES,)
    return made


async def answer_all(peer: Peer, desk: LaneDesk) -> None:
    async for request in peer.requests:
        if isinstance(request, OpenLane):
            await peer.answer(desk.offer(peer, request))
        elif isinstance(request, GetSpan):
            await peer.answer(SpanAnswer(request.request, request.piece, request.n, b"bytes"))


async def listen(
    port: int, desk: LaneDesk, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with listener:
        task_status.started()
        await desk.accept(await listener.accept(), lambda: None)


@asynccontextmanager
async def with_lane(nodes: tuple[Node, Node]) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two peers between which a lane stands."""
    desks = [LaneDesk(one.identity.node_id, timeout_s=10) for one in nodes]
    async with (
        connected(*nodes, QUICK) as (client, server),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer_all, server, desks[1])
        await nursery.start(partial(listen, client.stream.remote_port, desks[1]))
        client.want_lane()
        nursery.start_soon(desks[0].attend, client)
        with trio.fail_after(20):
            while client.lane is None or server.lane is None:
                await trio.lowlevel.checkpoint()
        yield client, server
        nursery.cancel_scope.cancel()


async def fetch(client: Peer, taker: Callable[[PieceId, int, memoryview], None]) -> SpanAnswer:
    with trio.fail_after(20):
        return await client.request(GetSpan(0, MANIFEST, PIECE, 0, b""), SpanAnswer, taker=taker)


async def test_a_span_goes_to_its_taker(nodes: tuple[Node, Node]) -> None:
    taken: list[bytes] = []
    async with with_lane(nodes) as (client, _):
        answer = await fetch(client, lambda _piece, _n, data: taken.append(bytes(data)))
    assert isinstance(answer, TakenSpan)
    assert taken == [b"bytes"]


@pytest.mark.expect_errors("lane_failed")
async def test_a_defect_in_a_taker_ends_the_connection_and_nothing_else(
    nodes: tuple[Node, Node],
) -> None:
    def defect(_piece: PieceId, _n: int, _data: memoryview) -> None:
        raise RuntimeError("a defect")

    async with with_lane(nodes) as (client, server):
        with pytest.raises(PeerLost, match="the lane failed"):
            await fetch(client, defect)
        with trio.fail_after(20):
            await server.closed.wait()


@pytest.mark.expect_errors("lane_failed")
async def test_a_defect_in_who_hears_an_answer_ends_the_connection_and_nothing_else(
    nodes: tuple[Node, Node],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def defect(_answer: object) -> None:
        raise RuntimeError("a defect")

    async with with_lane(nodes) as (client, server):
        monkeypatch.setattr(client, "take_answer", defect)
        with pytest.raises(PeerLost, match="the lane failed"):
            await fetch(client, lambda _piece, _n, _data: None)
        with trio.fail_after(20):
            await server.closed.wait()


async def test_a_lane_on_which_nothing_can_be_sent_takes_its_connection_along(
    nodes: tuple[Node, Node],
) -> None:
    async with with_lane(nodes) as (_, server):
        assert server.lane is not None
        server.lane.end("the other end took nothing")
        with trio.fail_after(20):
            await server.closed.wait()
        assert "took nothing" in str(server.error)


async def test_a_pick_that_crosses_its_cancellation_is_followed_by_no_bytes(
    nodes: tuple[Node, Node],
) -> None:
    for node in nodes:
        node.features = (SWARM,)
    async with connected(*nodes) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.request_all, GetAny(0, MANIFEST, ((0, b"\1"),)))
        with trio.fail_after(20):
            request = await server.requests.receive()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                while server.still_wants(request):
                    await trio.lowlevel.checkpoint()
                await server.answer(Picked(request.request, 0, 0))
                assert not server.still_wants(request)
                await server.answer(SpanAnswer(request.request, PIECE, 0, b"bytes"))
    assert server.traffic.span_bytes_sent == 0
