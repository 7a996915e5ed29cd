"""Lanes over real sockets: spans arrive whole at their takers, and nothing else is believed."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest
import trio
import trio.testing

from archid.net import lane_socket
from archid.net.errors import PeerLost
from archid.net.lane import TakenSpan
from archid.net.pacing import Pacer
from archid.net.token_bucket import TokenBucket
from archid.store.errors import ChunkCorrupt
from protocol.errors import LimitExceeded
from protocol.ids import ChunkId
from protocol.lane import LENGTH, SPAN_ROOM_BYTES, LaneBroken
from protocol.limits import MIB
from protocol.messages import ErrorCode, Picked, Refused, SpanAnswer
from tests.unit.net.lane_ends import PIECE, lane_pair, prove


async def test_spans_arrive_at_their_takers_in_another_thread() -> None:
    client, server = lane_pair()
    await prove(client, server)
    spans = {n: bytes([n]) * (MIB + n) for n in range(1, 6)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.lane.run)
        for n, data in spans.items():
            await server.lane.send(lambda n=n: Picked(n, 0, n))  # type: ignore[misc]
            await server.lane.send(lambda n=n, data=data: SpanAnswer(n, PIECE, n, data))  # type: ignore[misc]
        await server.lane.send(lambda: Refused(9, ErrorCode.BUSY, "busy"))
        await client.wait_for(11)
        client.lane.end()
    assert client.taken == spans
    assert threading.get_ident() not in client.threads
    assert client.answers[0] == Picked(1, 0, 1)
    assert client.answers[1] == TakenSpan(1, PIECE, 1, b"", MIB + 1, None)
    assert client.answers[-1] == Refused(9, ErrorCode.BUSY, "busy")
    assert client.lane.wire_bytes_received == server.lane.wire_bytes_sent
    client.lane.close()
    server.lane.close()


async def test_what_a_taker_finds_wrong_comes_with_the_answer() -> None:
    client, server = lane_pair()
    await prove(client, server)
    client.fault = ChunkCorrupt(ChunkId(b"c" * 32), "in a test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.lane.run)
        await server.lane.send(lambda: SpanAnswer(1, PIECE, 0, b"wrong"))
        await client.wait_for(1)
        client.lane.end()
    assert client.answers == [TakenSpan(1, PIECE, 0, b"", 5, client.fault)]
    client.lane.close()
    server.lane.close()


async def test_a_span_that_nobody_waits_for_is_passed_over() -> None:
    client, server = lane_pair()
    await prove(client, server)
    client.wants = lambda request: request == 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.lane.run)
        for n in (1, 2):
            await server.lane.send(lambda n=n: SpanAnswer(n, PIECE, 0, b"bytes"))  # type: ignore[misc]
        await client.wait_for(2)
        client.lane.end()
    assert client.taken == {2: b"bytes"}
    client.lane.close()
    server.lane.close()


async def test_bytes_of_anybody_else_end_the_lane_and_reach_no_taker() -> None:
    client, server = lane_pair()
    await prove(client, server)
    with server.lane._socket.dup() as stolen:
        stolen.send(LENGTH.pack(68) + bytes(68))
    with pytest.raises(LaneBroken):
        await client.lane.run()
    assert not client.taken
    client.lane.close()
    server.lane.close()


async def test_a_length_beyond_all_bounds_is_refused_before_it_is_read() -> None:
    client, server = lane_pair()
    await prove(client, server)
    with server.lane._socket.dup() as stolen:
        stolen.send(LENGTH.pack(2**32 - 1))
    with pytest.raises(LimitExceeded):
        await client.lane.run()
    client.lane.close()
    server.lane.close()


async def test_the_other_ends_end_is_told() -> None:
    client, server = lane_pair()
    await prove(client, server)
    server.lane.close()
    with trio.fail_after(20), pytest.raises(PeerLost):
        await client.lane.run()
    client.lane.close()


async def test_ending_a_lane_ends_who_receives_and_who_sends() -> None:
    client, server = lane_pair()
    await prove(client, server)
    failed: list[PeerLost] = []

    async def send_much() -> None:
        try:
            while True:
                await server.lane.send(lambda: SpanAnswer(1, PIECE, 0, bytes(MIB)))
        except PeerLost as error:
            failed.append(error)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_much)  # nobody reads: it waits soon
            nursery.start_soon(server.lane.run)
            await trio.testing.wait_all_tasks_blocked()
            server.lane.end()
    assert failed
    client.lane.close()
    server.lane.close()


async def test_who_runs_a_lane_hears_that_the_other_end_takes_nothing() -> None:
    client, server = lane_pair(dead_after_s=0.2)
    await prove(client, server)

    async def send_much() -> None:
        with suppress(PeerLost):
            while True:
                await server.lane.send(lambda: SpanAnswer(1, PIECE, 0, bytes(MIB)))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_much)
            with pytest.raises(PeerLost, match="took nothing"):
                await server.lane.run()
    client.lane.close()
    server.lane.close()


async def test_whoever_takes_little_is_waited_for_as_long_as_it_takes_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, server = lane_pair(dead_after_s=0.05)
    await prove(client, server)
    looks: list[int] = []

    def less_each_time_at_first(_connected: socket.socket) -> int:
        looks.append(max(1000 - len(looks), 990))
        return looks[-1]

    async def send_much() -> None:
        while True:
            looks.clear()
            await server.lane.send(lambda: SpanAnswer(1, PIECE, 0, bytes(MIB)))

    monkeypatch.setattr(lane_socket, "waiting_bytes", less_each_time_at_first)
    with trio.fail_after(20), pytest.raises(PeerLost, match="took nothing"):
        await send_much()
    assert looks[-3:] == [991, 990, 990], "it went on for as long as there was less each time"
    client.lane.close()
    server.lane.close()


async def test_the_kernel_tells_what_of_a_lane_was_not_taken_yet() -> None:
    client, server = lane_pair()
    await prove(client, server)
    with suppress(BlockingIOError):
        while True:
            server.lane._socket.send(bytes(MIB))
    assert lane_socket.waiting_bytes(server.lane._socket) > 0
    client.lane.close()
    server.lane.close()
    assert lane_socket.waiting_bytes(server.lane._socket) == 0


async def test_the_kernel_watches_over_a_lane_through_which_nothing_goes() -> None:
    client, server = lane_pair(dead_after_s=60)
    for lane in (client.lane, server.lane):
        assert lane._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert lane._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
        assert lane._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        lane.close()


async def test_a_cancelled_send_ends_the_lane() -> None:
    client, server = lane_pair()
    await prove(client, server)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def send_much() -> None:
                while True:
                    await server.lane.send(lambda: SpanAnswer(1, PIECE, 0, bytes(MIB)))

            nursery.start_soon(send_much)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert server.lane.ended
    client.lane.close()
    server.lane.close()


async def test_a_limited_lane_takes_for_every_byte() -> None:
    bucket = TokenBucket(50_000_000, now=trio.current_time())
    pacer = Pacer([bucket])
    pacer.limits_changed(16_384)
    taken: list[int] = []
    inner = pacer.take

    async def counted(size_bytes: int) -> None:
        taken.append(size_bytes)
        await inner(size_bytes)

    pacer.take = counted  # type: ignore[method-assign]
    client, server = lane_pair(pacer)
    await prove(client, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.lane.run)
        await server.lane.send(lambda: SpanAnswer(1, PIECE, 0, bytes(MIB)))
        await client.wait_for(1)
        client.lane.end()
    assert sum(taken) == server.lane.wire_bytes_sent
    assert max(taken) <= 16_384
    assert client.taken == {1: bytes(MIB)}
    client.lane.close()
    server.lane.close()


async def test_the_end_of_a_span_is_read_by_a_limited_lane_though_nothing_follows() -> None:
    pacer = Pacer([TokenBucket(50_000_000, now=trio.current_time())])
    pacer.limits_changed(16_384)
    client, server = lane_pair(into=pacer)
    await prove(client, server)
    room = memoryview(bytearray(SPAN_ROOM_BYTES))
    span = server.lane._output.span(SpanAnswer(1, PIECE, 0, bytes(MIB)), room)
    half = len(span) // 2
    before = client.lane.wire_bytes_received
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.lane.run)
        with server.lane._socket.dup() as bare, trio.fail_after(20):
            bare.setblocking(True)
            await trio.to_thread.run_sync(bare.sendall, span[:half])
            reader = client.lane._reader
            # What is less than the low-water mark is left in the kernel.
            while reader._low_water < 5 or (
                client.lane.wire_bytes_received - before < half - reader._low_water
            ):
                await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(bare.sendall, span[half:])
        await client.wait_for(1)
        client.lane.end()
    assert client.taken == {1: bytes(MIB)}
    client.lane.close()
    server.lane.close()


async def test_who_reads_a_lane_is_woken_for_little_until_much_has_come() -> None:
    client, server = lane_pair()
    reader = client.lane._reader
    reader._target = memoryview(bytearray(MIB))

    def low_water(carried: int) -> int:
        reader.wire_bytes = carried
        reader.wake_for_more()
        return client.lane._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    assert low_water(0) == 1
    assert low_water(64 * 1024) == 4 * 1024, "a kernel's first window"
    assert low_water(1_000_000) == 32 * 1024
    assert low_water(100 * MIB) == low_water(1000 * MIB) == 256 * 1024
    reader._target = reader._target[:5]
    assert low_water(1000 * MIB) == 5, "the end of a span comes however little it is"
    client.lane.close()
    server.lane.close()


async def test_a_lane_that_waits_for_its_turn_to_receive_ends_at_once() -> None:
    pacer = Pacer([TokenBucket(10, now=trio.current_time())])
    pacer.limits_changed(16_384)
    client, server = lane_pair(into=pacer)
    await prove(client, server)

    async def send_one() -> None:
        with suppress(PeerLost):
            await server.lane.send(lambda: SpanAnswer(1, PIECE, 0, bytes(MIB)))

    async with trio.open_nursery() as nursery:
        with trio.fail_after(20):
            nursery.start_soon(send_one)
            nursery.start_soon(client.lane.run)
            while not pacer.waiting:
                await trio.lowlevel.checkpoint()
            client.lane.end()
            while pacer.waiting:
                await trio.lowlevel.checkpoint()
        server.lane.end()
    client.lane.close()
    server.lane.close()
