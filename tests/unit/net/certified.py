"""Fleets and nodes with real keys and certificates, and pairs of connected streams, for tests."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archid.identity import Identity
from archid.net.certificates import issue, make_ca
from archid.net.tls import TLSStream, client_context, server_context
from protocol.ids import FleetId


@dataclass(frozen=True)
class Fleet:
    """A fleet as far as TLS knows one: its CA."""

    folder: Path
    fleet_id: FleetId
    ca_key: Ed25519PrivateKey
    ca: bytes

    @classmethod
    def make(cls, folder: Path, name: str = "fleet") -> Fleet:
        fleet_id = FleetId.of(name.encode())
        ca_key = Ed25519PrivateKey.generate()
        return cls(folder / name, fleet_id, ca_key, make_ca(ca_key, fleet_id))

    def node(self, name: str) -> Identity:
        identity = Identity.create(self.folder / name)
        der = issue(self.ca_key, self.ca, identity.public_key, identity.node_id)
        return identity.with_certificate(der)

    def server_context(self, identity: Identity) -> ssl.SSLContext:
        return server_context(identity, [self.ca])

    def client_context(self, identity: Identity) -> ssl.SSLContext:
        return client_context(identity, [self.ca])


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a TCP connection over loopback."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        client = await trio.open_tcp_stream("127.0.0.1", port)
        return client, await listener.accept()


@asynccontextmanager
async def tls_pair(
    client_side: ssl.SSLContext, server_side: ssl.SSLContext
) -> AsyncIterator[tuple[TLSStream, TLSStream]]:
    """Two ends of a TLS connection, before the handshake."""
    left, right = await tcp_pair()
    client = TLSStream(left, client_side, server_side=False)
    server = TLSStream(right, server_side, server_side=True)
    try:
        yield client, server
    finally:
        client.close()
        server.close()


async def shake_hands(client: TLSStream, server: TLSStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
