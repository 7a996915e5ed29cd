"""Lanes between the peers of `sync_nodes`, without the desk that opens and ends them, for tests."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from archid.net.errors import PeerLost
from archid.net.lane import Lane
from archid.net.peer import Peer
from protocol.features import FEATURES
from protocol.lane import LaneSecret
from protocol.limits import MIB
from tests.unit.store.trees import Version
from tests.unit.sync.sync_nodes import (
    Link,
    SyncFleet,
    SyncNode,
    entries,
    linked,
    reel,
    release,
)


@dataclass
class Served:
    """A REPO that serves a film, a server that is granted it, and what connects them."""

    fleet: SyncFleet
    film: Version
    repo: SyncNode
    salle: SyncNode
    link: Link


@asynccontextmanager
async def served(base: Path, *, film_mib: int) -> AsyncIterator[Served]:
    """Both nodes with all features, connected: the server is on the left."""
    fleet = SyncFleet(base)
    film = fleet.publish("film", reel(1, film_mib * MIB))
    repo, salle = fleet.enrol("repo", "repo", ""), fleet.enrol("salle", "ice", "lyon")
    fleet.give(salle, entries(release("Dune"), feature=film))
    fleet.sign()
    with fleet.node(repo) as one, fleet.node(salle) as two:
        one.hold_lists()
        one.hold(film)
        for node in (one, two):
            node.doorkeeper._features = FEATURES
        async with linked(two, one) as link:
            yield Served(fleet, film, one, two, link)


async def carry(lane: Lane) -> None:
    with suppress(PeerLost):  # the other end may close it first
        await lane.run()


def lane_between(client: Peer, server: Peer, *, dead_after_s: float = 20) -> list[Lane]:
    """Both ends of a lane as `archid.net.lane_desk` opens them, over a connection of its own."""
    secret = LaneSecret(b"l" * 16, client.node, server.node, b"c" * 32, b"s" * 32)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    lanes = []
    for peer, connected in ((client, dialled), (server, accepted)):
        lane = Lane(
            connected,
            secret,
            peer.connection.side,
            taker_of=peer.taker_of,
            on_answer=peer.take_from_lane,
            pacer_out=peer.pacer_out,
            pacer_in=peer.pacer_in,
            dead_after_s=dead_after_s,
        )
        assert peer.use_lane(lane)
        lanes.append(lane)
    return lanes
