"""Spans that go through a lane in runs: judged, counted and refused as if each went alone."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from archid.net.errors import PeerLost, PeerRefused
from archid.net.lane import TakenSpan
from archid.net.peer import Peer
from archid.store.seeding import Seeding
from archid.sync.span_runs import SpanRuns
from archid.sync.trust_restoring import decode_envelope
from protocol.ids import PieceId
from protocol.layout import Span
from protocol.messages import Entitle, ErrorCode, GetAny, GetSpan, LaneProof, Request
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import Version
from tests.unit.sync.lane_links import carry, lane_between, served
from tests.unit.sync.sync_nodes import (
    SyncFleet,
    SyncNode,
)


@dataclass
class Pair:
    """A REPO that serves a film, and a server that may have it, with a lane between them."""

    fleet: SyncFleet
    film: Version
    repo: SyncNode
    salle: SyncNode
    client: Peer
    server: Peer

    def by_name(self, span: Span) -> GetSpan:
        return GetSpan(0, self.film.manifest, span.piece, span.n, b"")

    async def ask(self, request: GetSpan | GetAny) -> bytes:
        """What comes for a request; raises what the peer says instead."""
        came: list[bytes] = []

        def take(_piece: PieceId, _n: int, data: memoryview) -> None:
            came.append(bytes(data))

        *_, answer = await self.client.request_all(request, taker=take)
        assert isinstance(answer, TakenSpan)  # or it has not come through the lane
        return came[0]

    async def counts(self, sent_bytes: int) -> None:
        """Return once the server has counted what it sent, which is these many bytes.

        What goes in a run is counted when its thread is back, which may be after the answers came.
        """
        with trio.fail_after(60):
            while self.server.traffic.span_bytes_sent < sent_bytes:
                await trio.lowlevel.checkpoint()
        assert self.server.traffic.span_bytes_sent == sent_bytes

    async def outcomes(self, requests: list[GetSpan | GetAny]) -> list[bytes | ErrorCode]:
        """Ask for all of these at once."""
        found: dict[int, bytes | ErrorCode] = {}

        async def one(number: int, request: GetSpan | GetAny) -> None:
            try:
                found[number] = await self.ask(request)
            except PeerRefused as refused:
                found[number] = refused.reason

        async with trio.open_nursery() as nursery:
            for number, request in enumerate(requests):
                nursery.start_soon(one, number, request)
        return [found[number] for number in range(len(requests))]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with served(tmp_path, film_mib=6) as nodes, trio.open_nursery() as nursery:
        link, film = nodes.link, nodes.film
        lanes = lane_between(link.left, link.right)
        for lane in lanes:
            nursery.start_soon(carry, lane)
        proof = nodes.salle.leaf.proof_for(film.manifest)
        await link.left.request(Entitle(0, film.manifest, proof))
        yield Pair(nodes.fleet, film, nodes.repo, nodes.salle, link.left, link.right)
        for lane in lanes:
            lane.end()
        nursery.cancel_scope.cancel()
    for lane in lanes:
        lane.close()


@pytest.fixture
async def proven(pair: Pair) -> Pair:
    for peer in (pair.client, pair.server):
        assert peer.lane is not None
        await peer.lane.send(LaneProof)
    return pair


@pytest.fixture
def read_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads in which spans were read for runs, in order."""
    threads: list[int] = []
    _while_reading(monkeypatch, lambda: threads.append(threading.get_ident()))
    return threads


def _while_reading(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen whenever a span is read into a buffer that was lent for it."""
    read = Seeding.read_span

    def reading(*arguments: Any) -> Any:
        if len(arguments) == 6:
            happens()
        return read(*arguments)

    monkeypatch.setattr(Seeding, "read_span", reading)


async def test_what_was_asked_for_together_is_read_by_one_thread_and_comes_whole(
    proven: Pair, read_in: list[int]
) -> None:
    spans = proven.film.layout.spans
    found = await proven.outcomes([proven.by_name(span) for span in spans])
    assert found == [proven.film.span_bytes(span) for span in spans]
    assert len(read_in) == len(spans) > 4
    assert len(set(read_in)) < len(spans)
    assert threading.get_ident() not in read_in
    await proven.counts(sum(span.size_bytes for span in spans))


async def test_a_run_picks_each_span_once(proven: Pair, read_in: list[int]) -> None:
    spans = proven.film.layout.spans
    pieces: dict[int, int] = {}
    for span in spans:
        pieces[span.piece_index] = pieces.get(span.piece_index, 0) | 1 << span.n
    wanted = tuple((index, mask.to_bytes(mask.bit_length() // 8 + 1, "little").rstrip(b"\0"))
                   for index, mask in sorted(pieces.items()))  # fmt: skip
    any_of = GetAny(0, proven.film.manifest, wanted)
    found = await proven.outcomes([any_of] * len(spans))
    assert sorted(one for one in found if isinstance(one, bytes)) == sorted(
        proven.film.span_bytes(span) for span in spans
    )
    assert read_in


async def test_what_is_rotten_is_refused_and_the_rest_of_the_run_comes(
    proven: Pair, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("chunk_rotten")
    path = proven.repo.library.tree(proven.film.manifest) / "reel.bin"
    first, second, third = proven.film.layout.spans[:3]
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(first.size_bytes + 100)
        file.write(b"rot")
    found = await proven.outcomes([proven.by_name(one) for one in (first, second, third)])
    assert found == [
        proven.film.span_bytes(first),
        ErrorCode.CHUNK_CORRUPT,
        proven.film.span_bytes(third),
    ]


async def test_nothing_of_a_run_is_sent_that_was_revoked_while_it_was_read(
    proven: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = proven.repo.keeper.trust
    proven.fleet.sign(denied=(proven.fleet.denial(proven.salle.identity),))
    envelope = decode_envelope(proven.fleet.head_bytes)
    _while_reading(monkeypatch, lambda: trust.accept_head(envelope, now=0))
    with pytest.raises(PeerLost) as lost:
        await proven.ask(proven.by_name(proven.film.layout.spans[0]))
    assert lost.value.reason is ErrorCode.DENIED
    assert proven.client.traffic.span_bytes_received == 0


async def test_what_is_cancelled_during_a_run_is_not_sent(
    proven: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = proven.film.layout.spans[:2]
    scope, token = trio.CancelScope(), trio.lowlevel.current_trio_token()
    cancelled = threading.Event()
    before = proven.client.connection.last_request

    async def ask_second() -> None:
        with scope:
            await proven.ask(proven.by_name(second))

    async def cancel() -> None:
        while proven.client.connection.last_request == before + 1:  # the second is on its way
            await trio.lowlevel.checkpoint()
        asked = replace(proven.by_name(second), request=proven.client.connection.last_request)
        scope.cancel()
        while proven.server.still_wants(asked):
            await trio.lowlevel.checkpoint()
        cancelled.set()

    def cancel_meanwhile() -> None:
        if not cancelled.is_set():
            trio.from_thread.run(cancel, trio_token=token)

    _while_reading(monkeypatch, cancel_meanwhile)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proven.ask, proven.by_name(first))
        await trio.lowlevel.checkpoint()
        nursery.start_soon(ask_second)
    assert await proven.ask(proven.by_name(first)) == proven.film.span_bytes(first)
    assert cancelled.is_set()
    await proven.counts(2 * first.size_bytes)


async def test_what_is_asked_for_during_a_run_is_sent_by_it(
    proven: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = proven.film.layout.spans
    token = trio.lowlevel.current_trio_token()
    threads: list[int] = []
    taken_on = threading.Event()
    go_on = SpanRuns.go_on

    def going_on(runs: SpanRuns, requests: Sequence[Request]) -> None:
        go_on(runs, requests)
        if len(requests) == 2:
            taken_on.set()

    monkeypatch.setattr(SpanRuns, "go_on", going_on)
    # On a machine that others use the second may be asked for after the usual end.
    monkeypatch.setattr("archid.net.lane.RUN_S", 60.0)
    found: dict[int, bytes] = {}

    async def ask(span: Span) -> None:
        found[span.n] = await proven.ask(proven.by_name(span))

    async with trio.open_nursery() as nursery:

        def ask_for_more() -> None:
            threads.append(threading.get_ident())
            if len(threads) == 1:
                trio.from_thread.run_sync(nursery.start_soon, ask, second, trio_token=token)
                assert taken_on.wait(60)

        _while_reading(monkeypatch, ask_for_more)
        nursery.start_soon(ask, first)
    assert found == {one.n: proven.film.span_bytes(one) for one in (first, second)}
    assert len(threads) == 2
    assert len(set(threads)) == 1
    await proven.counts(first.size_bytes + second.size_bytes)
