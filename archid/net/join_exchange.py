"""The conversation by which a newcomer joins: both sides of it, without tokens' or disks' ways.

The newcomer has no certificate, so the connection allows JOIN and the exchange of Roots only. It
is a dialogue, so messages are simply handed to whoever reads `messages`.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TypeVar

import trio

from archid.net.errors import PeerLost
from archid.net.pump import Pump
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from archid.net.trusted_doorkeeper import PROTOCOL_VERSION
from protocol.connection import Connection
from protocol.connection_events import Event, HelloReceived, MessageReceived
from protocol.connection_states import Side
from protocol.messages import NONCE_BYTES, Hello, Message, Pong

M = TypeVar("M", bound=Message)

_MESSAGES = 64


class JoinPump(Pump):
    """One end of a joining connection."""

    def __init__(self, stream: TLSStream, settings: PeerSettings, *, side: Side, hello: Hello):
        connection = Connection(side=side, hello=hello, joining=True)
        super().__init__(stream, connection, settings)
        self._greeted = trio.Event()
        self._messages_in, self.messages = trio.open_memory_channel[Message](_MESSAGES)

    async def peer_hello(self) -> Hello:
        """What the other end said first. Raises PeerRefused, TlsRefused, PeerLost."""
        await self._greeted.wait()
        if self.connection.peer_hello is None:
            raise self.error or self.gone()
        return self.connection.peer_hello

    async def expect(self, kind: type[M]) -> M:
        """The next message, which the machine has made sure is of this kind.

        Raises PeerRefused with the code of a Goodbye, TlsRefused, PeerLost.
        """
        try:
            message = await self.messages.receive()
        except trio.EndOfChannel:
            raise self.error or self.gone() from None
        if not isinstance(message, kind):
            raise PeerLost(f"{self.remote} sent {type(message).__name__}, not {kind.__name__}")
        return message

    async def handle(self, event: Event) -> None:
        if isinstance(event, HelloReceived):
            self._greeted.set()
        elif isinstance(event, MessageReceived) and not isinstance(event.message, Pong):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._messages_in.send(event.message)

    def on_end(self) -> None:
        self._greeted.set()
        self._messages_in.close()


def newcomer_hello(software: str) -> Hello:
    """The Hello of a node that belongs to no fleet."""
    return Hello(
        min_version=PROTOCOL_VERSION,
        max_version=PROTOCOL_VERSION,
        features=(),
        fleet=None,
        node=None,
        root_version=0,
        head_order=(0, 0),
        nonce=os.urandom(NONCE_BYTES),
        software=software,
        now_s=max(0, int(time.time())),
    )
