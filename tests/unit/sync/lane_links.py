"""Lanes between the peers of `sync_nodes`, without the desk that opens and ends them, for tests."""

from __future__ import annotations

import socket
from contextlib import suppress

from archid.net.errors import PeerLost
from archid.net.lane import Lane
from archid.net.peer import Peer
from protocol.lane import LaneSecret


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
