"""Two ends of one lane over real sockets, and what has come to each, for tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from archid.errors import ArchidError
from archid.net.lane import Lane, LaneAnswer, Taker
from archid.net.pacing import Pacer
from protocol.connection_states import Side
from protocol.ids import PieceId
from protocol.messages import LaneProof
from tests.vectors.make_lane import SECRET

PIECE = PieceId(b"p" * 32)


@dataclass
class End:
    """One end of a lane and what has come to it."""

    lane: Lane = field(init=False)
    answers: list[LaneAnswer] = field(default_factory=list)
    came: trio.Event = field(default_factory=trio.Event)
    taken: dict[int, bytes] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    fault: ArchidError | None = None
    wants: Callable[[int], bool] = lambda _: True

    def taker_of(self, request: int) -> Taker | None:
        def take(_piece: PieceId, _n: int, data: memoryview) -> None:
            self.threads.add(threading.get_ident())
            if self.fault is not None:
                raise self.fault
            self.taken[request] = bytes(data)

        return take if self.wants(request) else None

    def heard(self, answer: LaneAnswer) -> None:
        self.answers.append(answer)
        self.came.set()
        self.came = trio.Event()

    async def wait_for(self, count: int) -> None:
        with trio.fail_after(20):
            while len(self.answers) < count:
                await self.came.wait()


def end_of(
    connected: socket.socket, side: Side, pacers: tuple[Pacer, Pacer], dead_after_s: float
) -> End:
    end = End()
    end.lane = Lane(
        connected,
        SECRET,
        side,
        taker_of=end.taker_of,
        on_answer=end.heard,
        pacer_out=pacers[0],
        pacer_in=pacers[1],
        dead_after_s=dead_after_s,
    )
    return end


def lane_pair(
    out: Pacer | None = None, into: Pacer | None = None, *, dead_after_s: float = 20
) -> tuple[End, End]:
    """A client's end and a server's, over TCP; `out` paces the server, `into` the client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return (
        end_of(one, Side.CLIENT, (Pacer(), into or Pacer()), dead_after_s),
        end_of(other, Side.SERVER, (out or Pacer(), Pacer()), dead_after_s),
    )


async def prove(client: End, server: End) -> None:
    with trio.fail_after(20):
        await client.lane.send(LaneProof)
        await server.lane.receive_proof()
        await server.lane.send(LaneProof)
        await client.lane.receive_proof()
