"""Two connections in memory, joined back to back, for the tests of the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hypothesis import strategies as st

from protocol.connection import (
    Connection,
    ConnectionEnded,
    Event,
    Side,
    State,
)
from protocol.ids import FleetId, ManifestId, NodeId, PieceId
from protocol.messages import (
    Hello,
    Message,
    Prove,
)

FLEET, OTHER_FLEET = FleetId(bytes([1]) * 32), FleetId(bytes([9]) * 32)
MANIFEST, PIECE = ManifestId(bytes([3]) * 32), PieceId(bytes([4]) * 32)
PROVE = Prove(b"head", b"grants", b"proof")
SIDES = st.sampled_from(list(Side))


def hello(number: int = 1, **changes: object) -> Hello:
    plain = Hello(
        min_version=1,
        max_version=1,
        features=(),
        fleet=FLEET,
        node=NodeId(bytes([number]) * 32),
        root_version=1,
        head_order=(1, 1),
        nonce=bytes([number]) * 32,
        software="archid test",
        now_s=1_800_000_000,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


class Pair:
    """A client and a server connected in memory; `split` says how many bytes go at a time."""

    def __init__(self, client: Connection, server: Connection) -> None:
        self.client, self.server = client, server
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []
        self.split: Callable[[], int] = lambda: 1 << 30

    def run(self) -> None:
        to_server = to_client = b""
        while True:
            to_server += b"".join(self.client.bytes_to_send())
            to_client += b"".join(self.server.bytes_to_send())
            if not to_server and not to_client:
                return
            n = self.split()
            self.server_events += self.server.receive_bytes(to_server[:n])
            to_server = to_server[n:]
            n = self.split()
            self.client_events += self.client.receive_bytes(to_client[:n])
            to_client = to_client[n:]

    @property
    def states(self) -> set[State]:
        return {self.client.state, self.server.state}

    def clear(self) -> None:
        self.client_events.clear()
        self.server_events.clear()


def pair(
    client_hello: Hello | None = None, server_hello: Hello | None = None, *, joining: bool = False
) -> Pair:
    return Pair(
        Connection(side=Side.CLIENT, hello=client_hello or hello(1), joining=joining),
        Connection(side=Side.SERVER, hello=server_hello or hello(2), joining=joining),
    )


def admitted_pair(*features: str) -> Pair:
    both = pair(hello(1, features=features), hello(2, features=features))
    both.run()
    for side in (both.client, both.server):
        side.send(PROVE)
    both.run()
    both.client.admit()
    both.server.admit()
    both.run()
    assert both.states == {State.ADMITTED}
    both.clear()
    return both


def ended(events: list[Event]) -> ConnectionEnded:
    event = events[-1]
    assert isinstance(event, ConnectionEnded)
    return event


def frame(message: Message) -> bytes:
    return b"".join(message.encode())
