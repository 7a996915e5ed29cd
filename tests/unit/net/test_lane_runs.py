"""What a lane sends in runs: whole, by a thread, and for as long as there is a lane to send it."""

from __future__ import annotations

import select
import threading
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from archid.net import lane as lanes
from archid.net.errors import PeerLost
from archid.net.lane import LaneMessage, TakenSpan
from archid.net.lane_socket import woken_when_gone
from archid.net.pacing import Pacer
from archid.net.token_bucket import TokenBucket
from protocol.limits import MIB
from protocol.messages import Picked, SpanAnswer
from tests.unit.net.lane_ends import PIECE, lane_pair, prove


async def test_a_run_is_sent_by_a_thread_until_nothing_comes_any_more() -> None:
    client, server = lane_pair()
    await prove(client, server)
    spans = {n: bytes([n]) * (MIB + n) for n in range(1, 9)}
    threads: set[int] = set()

    def produce(room: memoryview) -> Sequence[LaneMessage]:
        threads.add(threading.get_ident())
        if not left:
            return ()
        n = left.pop(0)
        room[: len(spans[n])] = spans[n]
        return Picked(n, 0, n), SpanAnswer(n, PIECE, n, room[: len(spans[n])])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.lane.run)
        left = list(spans)
        while left:
            await server.lane.send_run(produce)
        await client.wait_for(16)
        client.lane.end()
    assert client.taken == spans
    assert [type(one) for one in client.answers] == [Picked, TakenSpan] * 8
    assert threading.get_ident() not in threads
    assert client.lane.wire_bytes_received == server.lane.wire_bytes_sent
    client.lane.close()
    server.lane.close()


async def test_what_a_run_has_begun_arrives_whole_however_soon_it_ends() -> None:
    client, server = lane_pair()
    await prove(client, server)
    data = bytes(range(256)) * (MIB // 256)
    produced: list[int] = []

    def produce(_room: memoryview) -> Sequence[LaneMessage]:
        produced.append(len(produced) + 1)
        return (SpanAnswer(produced[-1], PIECE, 0, data),)

    ended = trio.Event()

    async def run() -> None:
        await server.lane.send_run(produce)
        ended.set()

    async with trio.open_nursery() as nursery:
        # Nobody receives at first: the kernel takes some of it, and waits with the rest.
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(client.lane.run)
        with trio.fail_after(20):
            await ended.wait()
        await client.wait_for(len(produced))
        client.lane.end()
    assert client.taken == dict.fromkeys(produced, data)
    client.lane.close()
    server.lane.close()


async def test_a_run_through_a_lane_that_has_ended_is_refused() -> None:
    client, server = lane_pair()
    await prove(client, server)
    server.lane.end("it is no longer needed")
    with pytest.raises(PeerLost):
        await server.lane.send_run(lambda _: (SpanAnswer(1, PIECE, 0, b"bytes"),))
    client.lane.close()
    server.lane.close()


async def test_a_run_through_a_lane_that_was_closed_is_refused() -> None:
    client, server = lane_pair()
    await prove(client, server)
    server.lane.close()
    with pytest.raises(PeerLost):
        await server.lane.send_run(lambda _: (SpanAnswer(1, PIECE, 0, b"bytes"),))
    client.lane.close()


async def test_a_lane_closed_during_a_run_keeps_its_socket_until_the_thread_is_back() -> None:
    client, server = lane_pair()
    await prove(client, server)
    connected = server.lane._socket
    during: list[int] = []

    def produce(_room: memoryview) -> Sequence[LaneMessage]:
        trio.from_thread.run_sync(server.lane.close)
        during.append(connected.fileno())
        return (SpanAnswer(1, PIECE, 0, b"bytes"),)

    with pytest.raises(PeerLost):
        await server.lane.send_run(produce)
    assert during[0] >= 0
    assert connected.fileno() < 0
    client.lane.close()


async def test_a_run_that_fails_ends_the_lane_since_something_may_be_sealed_and_not_sent() -> None:
    client, server = lane_pair()
    await prove(client, server)

    def produce(_room: memoryview) -> Sequence[LaneMessage]:
        raise LookupError("in a test")

    with pytest.raises(LookupError):
        await server.lane.send_run(produce)
    assert server.lane.ended
    with trio.fail_after(20), pytest.raises(PeerLost):
        await client.lane.run()
    client.lane.close()
    server.lane.close()


async def test_a_limit_that_is_set_during_a_run_stops_it_behind_the_span_that_it_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "RUN_S", 60)
    pacer = Pacer([TokenBucket(50_000_000, now=trio.current_time())])
    client, server = lane_pair(pacer)
    await prove(client, server)
    produced: list[int] = []

    def produce(_room: memoryview) -> Sequence[LaneMessage]:
        if len(produced) == 3:
            return ()
        produced.append(len(produced) + 1)
        trio.from_thread.run_sync(pacer.limits_changed, 16_384)
        return (SpanAnswer(produced[-1], PIECE, 0, b"bytes"),)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.lane.run)
        await server.lane.send_run(produce)
        await client.wait_for(1)
        client.lane.end()
    assert produced == [1]
    assert client.taken == {1: b"bytes"}
    client.lane.close()
    server.lane.close()


async def test_whoever_takes_nothing_while_that_is_measured_is_not_lost_by_it() -> None:
    client, server = lane_pair(dead_after_s=0.2)
    await prove(client, server)
    data = bytes(range(256)) * (MIB // 512)
    await server.lane.send(lambda: SpanAnswer(1, PIECE, 0, data))
    with woken_when_gone(server.lane._socket):  # or there is nothing to wait for
        assert not select.select([], [server.lane._socket], [], 0)[1]
    with trio.fail_after(20):
        await server.lane.until_gone()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.lane.run)
        await server.lane.send(lambda: SpanAnswer(2, PIECE, 0, data))
        await client.wait_for(2)
        client.lane.end()
    assert client.taken == {1: data, 2: data}
    client.lane.close()
    server.lane.close()
