"""What becomes of a session whose answers go through a lane that is slow, or lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from archid.net.errors import PeerLost
from archid.net.lane import Lane, TakenSpan
from protocol.messages import Entitle, GetSpan, LaneProof
from tests.unit.store.trees import Version
from tests.unit.sync.lane_links import carry, lane_between, served
from tests.unit.sync.sync_nodes import (
    Link,
    SyncNode,
)


@dataclass
class Pair:
    """A server that may have a film (left) and a REPO that serves it (right)."""

    film: Version
    repo: SyncNode
    link: Link
    client: Lane
    server: Lane
    """The lane's ends. Nobody receives from it yet, and nothing joins its fate to the peers'."""

    async def ask(self, number: int) -> TakenSpan:
        span = self.film.layout.spans[number]
        asked = GetSpan(0, self.film.manifest, span.piece, span.n, b"")
        return await self.link.left.request(asked, TakenSpan, taker=lambda *_: None)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with served(tmp_path, film_mib=3) as nodes:
        link, film = nodes.link, nodes.film
        client, server = lane_between(link.left, link.right, dead_after_s=0.2)
        for sender, receiver in ((client, server), (server, client)):
            await sender.send(LaneProof)
            await receiver.receive_proof()
        proof = nodes.salle.leaf.proof_for(film.manifest)
        await link.left.request(Entitle(0, film.manifest, proof))
        yield Pair(film, nodes.repo, link, client, server)
        for lane in (client, server):
            lane.end()
    for lane in (client, server):
        lane.close()


async def test_a_peer_that_takes_slowly_in_a_crowd_is_answered_afterwards(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = trio.Event()
    until_gone = pair.link.right.until_gone

    async def measuring() -> None:
        try:
            await until_gone()
        finally:
            measured.set()

    monkeypatch.setattr(pair.link.right, "until_gone", measuring)
    turns = pair.repo.directory.spans.turns
    async with turns.one("another", lambda: 1, site="there"), trio.open_nursery() as nursery:
        nursery.start_soon(pair.ask, 0)
        await measured.wait()
        nursery.start_soon(carry, pair.client)
        answer = await pair.ask(1)
        pair.client.end()
    assert answer.size_bytes == pair.film.layout.spans[1].size_bytes


async def test_a_peer_whose_lane_is_lost_is_not_left_waiting_for_spans(pair: Pair) -> None:
    pair.server.end()
    with trio.fail_after(15), pytest.raises(PeerLost):
        await pair.ask(0)
    assert pair.link.right.closed.is_set()
