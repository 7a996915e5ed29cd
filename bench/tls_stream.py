"""How fast bytes move through TLS: `TLSStream` against `trio.SSLStream`, in one run.

    python -m bench.tls_stream [--mib 512] [--rounds 3]

One sender and one receiver process over loopback, the same certificates and the same blocks of
1 MiB for both, alternating. Plain TCP through trio is measured beside them, as what the machine
could do. Nothing is written or hashed.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archid.identity import Identity
from archid.net.certificates import issue, make_ca
from archid.net.tls import TLSStream, client_context, server_context
from bench.measuring import Spread, table
from protocol.ids import FleetId

OURS: Final = "archid's TLSStream"
BLOCK: Final = os.urandom(1 << 20)
Send = Callable[[trio.SocketStream, ssl.SSLContext, int], Awaitable[None]]
Receive = Callable[[trio.SocketStream, ssl.SSLContext, int], Awaitable[None]]


async def send_tcp(stream: trio.SocketStream, _context: ssl.SSLContext, blocks: int) -> None:
    for _ in range(blocks):
        await stream.send_all(BLOCK)
    await stream.send_eof()
    await stream.receive_some()


async def receive_tcp(stream: trio.SocketStream, _context: ssl.SSLContext, size: int) -> None:
    while size > 0:
        size -= len(await stream.receive_some(1 << 18))


async def send_ssl_stream(stream: trio.SocketStream, context: ssl.SSLContext, blocks: int) -> None:
    tls = trio.SSLStream(stream, context, server_side=True)
    for _ in range(blocks):
        await tls.send_all(BLOCK)
    await tls.receive_some()


async def receive_ssl_stream(stream: trio.SocketStream, context: ssl.SSLContext, size: int) -> None:
    tls = trio.SSLStream(stream, context)
    while size > 0:
        size -= len(await tls.receive_some(1 << 18))
    await tls.send_all(b".")


async def send_tls_stream(stream: trio.SocketStream, context: ssl.SSLContext, blocks: int) -> None:
    tls = TLSStream(stream, context, server_side=True)
    await tls.do_handshake()
    for _ in range(blocks):
        await tls.send_all([BLOCK])
    await tls.receive_some()


async def receive_tls_stream(stream: trio.SocketStream, context: ssl.SSLContext, size: int) -> None:
    tls = TLSStream(stream, context, server_side=False)
    await tls.do_handshake()
    while size > 0:
        size -= len(await tls.receive_some())
    await tls.send_all([b"."])


WAYS: Final[dict[str, tuple[Send, Receive]]] = {
    OURS: (send_tls_stream, receive_tls_stream),
    "trio.SSLStream": (send_ssl_stream, receive_ssl_stream),
    "plain TCP": (send_tcp, receive_tcp),
}


def in_child(run: Callable[[], None]) -> int:
    """Run in a process of its own; returns its id."""
    pid = os.fork()
    if pid == 0:
        run()
        os._exit(0)
    return pid


def measure(way: str, contexts: tuple[ssl.SSLContext, ssl.SSLContext], blocks: int) -> float:
    """Seconds to move the blocks from a child process to this one."""
    send, receive = WAYS[way]
    server, client = contexts
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    async def serve() -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        await send(await listener.accept(), server, blocks)

    async def fetch() -> float:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        begin = time.perf_counter()
        await receive(stream, client, blocks * len(BLOCK))
        return time.perf_counter() - begin

    pid = in_child(lambda: trio.run(serve))
    listening.close()
    try:
        return trio.run(fetch)
    finally:
        os.waitpid(pid, 0)


def make_contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts for the server and the client, with a fleet's certificates."""
    ca_key = Ed25519PrivateKey.generate()
    ca = make_ca(ca_key, FleetId.of(b"bench"))
    nodes = []
    for name in ("server", "client"):
        identity = Identity.create(folder / name)
        der = issue(ca_key, ca, identity.public_key, identity.node_id)
        nodes.append(identity.with_certificate(der))
    return server_context(nodes[0], [ca]), client_context(nodes[1], [ca])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        contexts = make_contexts(Path(folder))
        for _ in range(options.rounds):
            for way in WAYS:
                seconds = measure(way, contexts, options.mib)
                rates[way].append(options.mib * len(BLOCK) / 1e6 / seconds)
    spreads = {way: Spread.of(found) for way, found in rates.items()}
    return {
        "shape": {"mib": options.mib},
        "programs": {way: {"mb_per_s": vars(spread)} for way, spread in spreads.items()},
    }


def report(figures: Mapping[str, Any]) -> str:
    """A Markdown table."""
    rates = {way: Spread(**one["mb_per_s"]) for way, one in figures["programs"].items()}
    rows = [[way, rate.text(0)] for way, rate in rates.items()]
    ratio = rates[OURS].median / rates["trio.SSLStream"].median
    return (
        f"{table(['way', 'MB/s'], rows)}\n\n{OURS} is {ratio:.2f} times as fast as trio.SSLStream."
    )


if __name__ == "__main__":
    print(report(main()))
