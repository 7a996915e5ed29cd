"""Asking and answering between two admitted peers, and how a connection ends."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from blake3 import blake3

from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.peer import Peer
from protocol.connection_events import Event, MessageReceived
from protocol.ids import ManifestId, PieceId
from protocol.limits import MAX_OUTSTANDING_REQUESTS
from protocol.messages import (
    Answer,
    Entitled,
    ErrorCode,
    GetPieces,
    GetRoot,
    GetSpan,
    HeadAnnounce,
    PieceAnswer,
    Pong,
    Refused,
    Request,
    RootDocument,
    SpanAnswer,
)
from tests.unit.net.fleet_nodes import SETTINGS, FleetNodes, Node, connected

MANIFEST = ManifestId.of(b"manifest")
PIECE = PieceId.of(b"piece")
MIB = 1 << 20


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    fleet = FleetNodes(tmp_path)
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    return fleet.node(one), fleet.node(two)


Answerer = Callable[[Request], Answer | Refused]


async def answer_all(peer: Peer, answerer: Answerer) -> None:
    try:
        async for request in peer.requests:
            await peer.answer(answerer(request))
    except PeerLost:
        pass


def echo_root(request: Request) -> Answer:
    assert isinstance(request, GetRoot)
    return RootDocument(request.request, b"root %d" % request.version)


async def test_answers_find_their_requests_in_any_order(nodes: tuple[Node, Node]) -> None:
    async with connected(*nodes) as (client, server), trio.open_nursery() as nursery:
        answers: dict[int, bytes] = {}

        async def ask(version: int) -> None:
            answer = await client.request(GetRoot(1, version), RootDocument)
            answers[version] = answer.envelope

        for version in range(1, 11):
            nursery.start_soon(ask, version)
        requests = [await server.requests.receive() for _ in range(10)]
        for request in reversed(requests):
            await server.answer(echo_root(request))
        with trio.fail_after(10):
            while len(answers) < 10:
                await trio.testing.wait_all_tasks_blocked()
        assert answers == {version: b"root %d" % version for version in range(1, 11)}


async def test_both_sides_ask_at_once(nodes: tuple[Node, Node]) -> None:
    async with connected(*nodes) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, client, echo_root)
        nursery.start_soon(answer_all, server, echo_root)
        for version in range(1, 50):
            for peer in (client, server):
                answer = await peer.request(GetRoot(1, version), RootDocument)
                assert answer.envelope == b"root %d" % version
        nursery.cancel_scope.cancel()


async def test_more_requests_than_may_be_open_wait_for_their_turn(
    nodes: tuple[Node, Node],
) -> None:
    count = 3 * MAX_OUTSTANDING_REQUESTS
    done: list[int] = []

    async with connected(*nodes) as (client, server):

        async def ask(version: int) -> None:
            await client.request(GetRoot(1, version))
            done.append(version)

        async with trio.open_nursery() as outer:
            outer.start_soon(answer_all, server, echo_root)
            async with trio.open_nursery() as nursery:
                for version in range(1, count + 1):
                    nursery.start_soon(ask, version)
            outer.cancel_scope.cancel()
    assert sorted(done) == list(range(1, count + 1))


async def test_a_refusal_is_typed(nodes: tuple[Node, Node]) -> None:
    async with connected(*nodes) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(
            answer_all,
            server,
            lambda request: Refused(request.request, ErrorCode.NOT_ENTITLED, "not for you"),
        )
        with pytest.raises(PeerRefused, match="not for you") as caught:
            await client.request(GetSpan(1, MANIFEST, PIECE, 0, b""))
        assert caught.value.reason is ErrorCode.NOT_ENTITLED
        assert caught.value.code == "not_entitled"
        assert client.traffic.span_bytes_received == server.traffic.span_bytes_sent == 0
        nursery.cancel_scope.cancel()


async def test_an_answer_in_several_parts_is_returned_whole(nodes: tuple[Node, Node]) -> None:
    ids = tuple(PieceId.of(bytes([n])) for n in range(5))
    async with connected(*nodes) as (client, server), trio.open_nursery() as nursery:

        async def serve() -> None:
            request = await server.requests.receive()
            assert isinstance(request, GetPieces)
            for piece in request.piece_ids:
                await server.answer(PieceAnswer(request.request, piece, piece * 10))

        nursery.start_soon(serve)
        answers = await client.request_all(GetPieces(1, MANIFEST, ids))
        assert [answer.piece for answer in answers if isinstance(answer, PieceAnswer)] == [*ids]


async def test_64_mib_of_spans_each_way_arrive_whole_and_are_counted(
    nodes: tuple[Node, Node],
) -> None:
    spans = [os.urandom(MIB) for _ in range(8)]

    def serve(request: Request) -> Answer:
        assert isinstance(request, GetSpan)
        data = memoryview(spans[request.n % len(spans)])
        return SpanAnswer(request.request, request.piece, request.n, data)

    async def fetch(peer: Peer, start: int, counted: list[int]) -> None:
        for n in range(start, 64, 4):
            answer = await peer.request(GetSpan(1, MANIFEST, PIECE, n, b""), SpanAnswer)
            assert blake3(answer.data).digest() == blake3(spans[n % len(spans)]).digest()
            counted.append(n)

    counted: list[int] = []
    async with connected(*nodes) as (client, server):
        async with trio.open_nursery() as outer:
            outer.start_soon(answer_all, client, serve)
            outer.start_soon(answer_all, server, serve)
            async with trio.open_nursery() as nursery:
                for peer in (client, server):
                    for start in range(4):
                        nursery.start_soon(fetch, peer, start, counted)
            outer.cancel_scope.cancel()
        for peer in (client, server):
            traffic = peer.traffic
            assert traffic.span_bytes_received == traffic.span_bytes_sent == 64 * MIB
            assert 64 * MIB < traffic.received_bytes < 66 * MIB
            assert 64 * MIB < traffic.sent_bytes < 66 * MIB
    assert len(counted) == 128


async def test_what_is_queued_stays_bounded_while_the_peer_does_not_read(
    nodes: tuple[Node, Node],
) -> None:
    announce = HeadAnnounce(bytes(60_000), b"")
    sent = 0
    async with connected(*nodes) as (client, _server):

        async def flood() -> None:
            nonlocal sent
            while True:
                await client.announce(announce)
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked()
            stuck_at = sent
            assert client.outbox.queued_bytes < SETTINGS.outbox_bytes + 100_000
            await trio.testing.wait_all_tasks_blocked()
            assert sent == stuck_at
            nursery.cancel_scope.cancel()


async def test_a_slow_answer_times_out_and_the_connection_stands(
    nodes: tuple[Node, Node],
) -> None:
    async with connected(*nodes) as (client, server):
        with pytest.raises(PeerTooSlow, match="GetRoot"):
            await client.request(GetRoot(1, 1), timeout_s=0.01)
        late = await server.requests.receive()
        with trio.fail_after(10):
            while server.still_wants(late):
                await trio.testing.wait_all_tasks_blocked()
        await server.answer(echo_root(late))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, server, echo_root)
            answer = await client.request(GetRoot(1, 2), RootDocument)
            nursery.cancel_scope.cancel()
        assert answer.envelope == b"root 2"


async def test_cancelling_a_request_tells_the_peer(nodes: tuple[Node, Node]) -> None:
    async with connected(*nodes) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, GetRoot(1, 1))
            request = await server.requests.receive()
            assert server.still_wants(request)
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            while server.still_wants(request):
                await trio.testing.wait_all_tasks_blocked()
        assert not client.closed.is_set()


async def expect_lost(call: Callable[[], Awaitable[object]], caught: list[PeerLost]) -> None:
    with pytest.raises(PeerLost) as error:
        await call()
    caught.append(error.value)


async def test_a_disconnect_carries_its_code_and_fails_what_waits(
    nodes: tuple[Node, Node],
) -> None:
    caught: list[PeerLost] = []
    async with connected(*nodes) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_lost, lambda: client.request(GetRoot(1, 1)), caught)
            await server.requests.receive()
            server.disconnect(ErrorCode.DENIED, "revoked")
        await client.closed.wait()
        assert [request async for request in client.requests] == []
        assert [notice async for notice in client.notices] == []
        with pytest.raises(PeerLost):
            await client.announce(HeadAnnounce(b"", b""))
        with pytest.raises(PeerLost):
            await server.request(GetRoot(1, 1))
    assert [error.reason for error in caught] == [ErrorCode.DENIED]
    assert "revoked" in str(caught[0])


async def test_a_peer_that_closes_in_mid_frame_is_lost(nodes: tuple[Node, Node]) -> None:
    caught: list[PeerLost] = []
    async with connected(*nodes) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                expect_lost, lambda: client.request(GetSpan(1, MANIFEST, PIECE, 0, b"")), caught
            )
            request = await server.requests.receive()
            answer = SpanAnswer(request.request, PIECE, 0, bytes(MIB))
            whole = b"".join(bytes(part) for part in answer.encode())
            await server.stream.send_all([whole[:5000]])
            await server.stream.send_eof()
        assert "in the middle of a message" in str(caught[0])


async def test_a_peer_that_vanishes_is_lost(nodes: tuple[Node, Node]) -> None:
    caught: list[PeerLost] = []
    async with connected(*nodes) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(expect_lost, lambda: client.request(GetRoot(1, 1)), caught)
        await server.requests.receive()
        server.stream.close()
    assert caught[0].reason is ErrorCode.CONNECTION_LOST


async def test_a_peer_that_broke_off_is_not_asked_any_more(nodes: tuple[Node, Node]) -> None:
    async with connected(*nodes) as (client, server), trio.open_nursery() as nursery:
        for _ in range(MAX_OUTSTANDING_REQUESTS):
            nursery.start_soon(expect_lost, lambda: client.request(GetRoot(1, 1)), [])
        for _ in range(MAX_OUTSTANDING_REQUESTS):
            await server.requests.receive()
        server.stream.close()
        await client.closed.wait()
        # At once: not after the time that an answer may take.
        with pytest.raises(PeerLost):
            await client.request(GetRoot(1, 1))
        with pytest.raises(PeerLost):
            await client.announce(HeadAnnounce(b"", b""))


async def test_an_answer_that_was_not_asked_for_ends_the_connection(
    nodes: tuple[Node, Node],
) -> None:
    async with connected(*nodes) as (client, server):
        parts = Entitled(7).encode()
        await server.stream.send_all(parts)
        await client.closed.wait()
        await server.closed.wait()
        assert isinstance(client.error, PeerLost)
        assert client.error.reason is ErrorCode.PROTOCOL_ERROR
        assert isinstance(server.error, PeerLost)
        assert server.error.reason is ErrorCode.PROTOCOL_ERROR


async def test_a_silent_peer_is_asked_again_and_again_and_kept_if_it_answers(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    brisk = replace(SETTINGS, keepalive_s=0.02, dead_after_s=5.0)
    async with connected(*nodes, settings=brisk) as (client, server):
        pongs_in, pongs = trio.open_memory_channel[int](100)
        handle = client.handle

        async def noticing(event: Event) -> None:
            if isinstance(event, MessageReceived) and isinstance(event.message, Pong):
                await pongs_in.send(event.message.n)
            await handle(event)

        monkeypatch.setattr(client, "handle", noticing)
        first = await pongs.receive()
        assert [await pongs.receive() for _ in range(3)] == [first + 1, first + 2, first + 3]
        assert not client.closed.is_set()
        assert not server.closed.is_set()


async def test_a_peer_that_answers_nothing_at_all_is_given_up(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    brisk = replace(SETTINGS, keepalive_s=0.02, dead_after_s=0.1, goodbye_timeout_s=0.05)
    async with connected(*nodes, settings=brisk) as (client, server):
        # Its machine no longer reacts to what arrives, but its socket stays open.
        monkeypatch.setattr(server.connection, "receive_bytes", lambda _data: [])
        monkeypatch.setattr(server, "push", lambda _message: None)
        await client.closed.wait()
        assert "did not answer" in str(client.error)


async def test_an_error_in_the_body_comes_out_as_it_is(nodes: tuple[Node, Node]) -> None:
    class OwnError(Exception):
        pass

    with pytest.RaisesGroup(OwnError, flatten_subgroups=True):
        async with connected(*nodes):
            raise OwnError
