"""Connections by whoever is not of the fleet: without a certificate, or with another fleet's.

They speak frames by hand, since the connection's own machine would not say what is not allowed.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from archid.addresses import parse_address
from archid.central.ceremony import Founded, Founding, initialise
from archid.identity import Identity
from archid.net.errors import PeerLost
from archid.net.tls import TLSStream
from archid.net.tls_contexts import client_context, joining_context
from archid.store.layout import StatePaths
from protocol.frames import FrameReader
from protocol.ids import FleetId, NodeId
from protocol.messages import MESSAGE_TYPES, NONCE_BYTES, Hello, Message
from tests.fleet.local import PASSPHRASE

SILENCE_S = 30.0


def found_elsewhere(folder: Path) -> tuple[Founded, StatePaths]:
    """Another fleet, with its own root keys, CA and central, on disk only."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = StatePaths(folder / "state", folder / "scripts")
    founding = Founding(
        fleet_name="another fleet",
        node_name="central",
        root_key_file=folder / "root-keys",
        advertise=[parse_address("127.0.0.1:4777")],
    )
    founded = initialise(founding, paths=paths, passphrase=PASSPHRASE, now=time.time())
    return founded, paths


class Stranger:
    """One TLS connection and its frames."""

    def __init__(self, stream: TLSStream) -> None:
        self._stream = stream
        self._reader = FrameReader()
        self._received: list[Message] = []

    async def say(self, message: Message) -> None:
        await self._stream.send_all(message.encode())

    async def hears(self) -> Message | None:
        """The next message; None when the other end has hung up."""
        with trio.fail_after(SILENCE_S):
            while not self._received:
                try:
                    data = await self._stream.receive_some()
                except PeerLost:
                    return None
                if not data:
                    return None
                self._received += [
                    MESSAGE_TYPES[frame.type].decode(frame)
                    for frame in self._reader.receive_bytes(data)
                ]
            return self._received.pop(0)

    async def hears_all(self) -> list[Message]:
        """Everything until the other end hangs up."""
        found = []
        while (message := await self.hears()) is not None:
            found.append(message)
        return found


@asynccontextmanager
async def without_certificate(address: str) -> AsyncIterator[Stranger]:
    """A connection as a newcomer makes it."""
    async with _connected(address, joining_context()) as stranger:
        yield stranger


@asynccontextmanager
async def with_certificate(
    address: str, identity: Identity, ca_certificates: Sequence[bytes]
) -> AsyncIterator[Stranger]:
    """A connection with any certificate, believing servers of these CAs. Raises TlsRefused."""
    async with _connected(address, client_context(identity, ca_certificates)) as stranger:
        yield stranger


@asynccontextmanager
async def _connected(address: str, context: ssl.SSLContext) -> AsyncIterator[Stranger]:
    where = parse_address(address)
    tcp = await trio.open_tcp_stream(where.host, where.port)
    stream = TLSStream(tcp, context, server_side=False)
    try:
        await stream.do_handshake()
        yield Stranger(stream)
    finally:
        stream.close()


def hello(fleet: FleetId | None = None, node: NodeId | None = None) -> Hello:
    """The first message: of nobody, or of whom one claims to be."""
    return Hello(
        min_version=1,
        max_version=1,
        features=(),
        fleet=fleet,
        node=node,
        root_version=0,
        head_order=(0, 0),
        nonce=os.urandom(NONCE_BYTES),
        software="a stranger",
        now_s=int(time.time()),
    )
