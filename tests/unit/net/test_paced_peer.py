"""Between two real peers limits hold on the wire, and nobody is taken for dead because of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from archid.net.errors import PeerTooSlow
from archid.net.pacing import Pacing
from archid.net.peer import Peer
from archid.net.settings import PeerSettings
from archid.net.token_bucket import BURST_S
from archid.rates import NO_LIMITS, Rates
from protocol.ids import ManifestId, PieceId
from protocol.messages import GetSpan, HaveUpdate, SpanAnswer
from tests.unit.net.fleet_nodes import SETTINGS, FleetNodes, Node, connected

MANIFEST = ManifestId.of(b"manifest")
PIECE = PieceId.of(b"piece")
MIB = 1 << 20
RATE = 4_000_000
SPAN = os.urandom(MIB)


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    fleet = FleetNodes(tmp_path)
    one, two = fleet.enrol("one"), fleet.enrol("two")
    fleet.sign_state()
    return fleet.node(one), fleet.node(two)


@asynccontextmanager
async def paced(
    nodes: tuple[Node, Node],
    *,
    receiver: Rates = NO_LIMITS,
    sender: Rates = NO_LIMITS,
    settings: PeerSettings = SETTINGS,
    span: bytes = SPAN,
) -> AsyncIterator[tuple[Peer, Peer, Pacing]]:
    """A receiver, a sender that answers every request with `span`, and the sender's limits.

    `settings` are the sender's.
    """

    async def answer_all(peer: Peer) -> None:
        async for request in peer.requests:
            assert isinstance(request, GetSpan)
            await peer.answer(SpanAnswer(request.request, request.piece, request.n, span))

    into, out = Pacing(lambda: "here"), Pacing(lambda: "there")
    into.set_rates(receiver)
    out.set_rates(sender)
    async with (
        connected(*nodes, server_settings=settings) as (client, server),
        trio.open_nursery() as nursery,
    ):
        with into.peer(client.facts) as near, out.peer(server.facts) as far:
            client.pace(*near)
            server.pace(*far)
            nursery.start_soon(answer_all, server)
            yield client, server, out
            nursery.cancel_scope.cancel()


async def fetch(client: Peer, n: int, span: bytes = SPAN) -> None:
    answer = await client.request(GetSpan(1, MANIFEST, PIECE, n, b""), SpanAnswer)
    assert answer.data == span


async def test_what_is_sent_stays_within_the_limit_of_who_sends(nodes: tuple[Node, Node]) -> None:
    async with paced(nodes, sender=Rates(up=RATE)) as (client, server, _):
        began, before = trio.current_time(), server.stream.wire_bytes_sent
        for n in range(4):
            await fetch(client, n)
            sent = server.stream.wire_bytes_sent - before
            passed_s = trio.current_time() - began
            assert sent <= RATE * (passed_s * 1.05 + BURST_S) + server.pacer_out.slice_bytes
        assert sent >= 4 * MIB


async def test_what_is_received_stays_within_the_limit_of_who_receives(
    nodes: tuple[Node, Node],
) -> None:
    async with paced(nodes, receiver=Rates(per_peer_down=RATE)) as (client, _, _):
        began, before = trio.current_time(), client.stream.wire_bytes_received
        for n in range(4):
            await fetch(client, n)
            received = client.stream.wire_bytes_received - before
            passed_s = trio.current_time() - began
            # A TLS record more than a slice may be read before it counts.
            most = RATE * (passed_s * 1.05 + BURST_S) + 2 * client.pacer_in.slice_bytes
            assert received <= most + 16_384
        assert received >= 4 * MIB


async def test_a_limit_set_in_mid_transfer_holds_for_the_rest_of_the_same_span(
    nodes: tuple[Node, Node],
) -> None:
    async with (
        paced(nodes, sender=Rates(up=12_500)) as (client, server, limits),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(fetch, client, 0)  # it would take 84 seconds
        while not server.pacer_out.waiting:
            await trio.lowlevel.checkpoint()
        limits.set_rates(Rates(up=RATE))
        await fetch(client, 1)


async def test_news_overtakes_content_that_waits_for_its_turn(nodes: tuple[Node, Node]) -> None:
    came: list[str] = []

    async def note(client: Peer, n: int) -> None:
        await fetch(client, n)
        came.append(f"span {n}")

    async def listen(client: Peer) -> None:
        async for notice in client.notices:
            assert isinstance(notice, HaveUpdate)
            came.append("news")

    async with (
        paced(nodes, sender=Rates(up=RATE)) as (client, server, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(listen, client)
        async with trio.open_nursery() as fetching:
            for n in range(4):
                fetching.start_soon(note, client, n)
            while not server.pacer_out.waiting:
                await trio.lowlevel.checkpoint()
            await server.announce(HaveUpdate(MANIFEST, PIECE, 0))
        nursery.cancel_scope.cancel()
    assert "news" in came[:2]


async def test_a_span_may_take_longer_than_a_request_while_its_bytes_come(
    nodes: tuple[Node, Node],
) -> None:
    span = SPAN[: 512 * 1024]
    async with paced(nodes, sender=Rates(up=RATE // 8), span=span) as (client, _, _):
        # A second, on a line that brings 150 kB in the time that a request may take.
        answer = await client.request(
            GetSpan(1, MANIFEST, PIECE, 0, b""), SpanAnswer, timeout_s=0.3
        )
        assert answer.data == span


async def test_a_span_that_does_not_come_is_given_up(nodes: tuple[Node, Node]) -> None:
    async with connected(*nodes) as (client, _):
        with pytest.raises(PeerTooSlow):
            await client.request(GetSpan(1, MANIFEST, PIECE, 0, b""), timeout_s=0.05)


async def test_who_waits_for_its_turn_is_not_taken_for_dead(nodes: tuple[Node, Node]) -> None:
    brisk = replace(SETTINGS, keepalive_s=0.05, dead_after_s=0.25, goodbye_timeout_s=0.05)
    # A slice takes a third of a second: longer than the sender bears to be stuck.
    limits, span = Rates(up=12_500), SPAN[:16_384]
    async with paced(nodes, sender=limits, settings=brisk, span=span) as (client, server, _):
        await fetch(client, 0, span)
        assert server.error is None
