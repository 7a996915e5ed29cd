"""An enrolled node that the test plays: the real daemon on its state, but for what it says.

The node's own process is stopped. Everything below the answers is what every node runs, so that
peers have no way to know the actor by anything but by what it says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from typing import cast

import trio

from archid.config import load_config
from archid.daemon.composing import Node
from archid.daemon.opening import open_state
from archid.net.peer import LaneSendable, Peer
from protocol.connection_events import Event, MessageReceived
from protocol.messages import Answer, Refused, Request
from tests.fleet.local import FleetNode

Falsify = Callable[[Peer, Request, Answer], Answer]
"""What is said to a peer instead of the true answer to its request."""


@asynccontextmanager
async def acting(node: FleetNode, falsify: Falsify) -> AsyncIterator[Node]:
    """Run `node` in this process; every answer goes through `falsify`."""
    with ExitStack() as stack:
        config = load_config(node.config)
        actor = Node(config, open_state(config, stack), stack)
        honest = actor.switchboard._session

        async def session(peer: Peer) -> None:
            _falsify_answers(peer, falsify)
            await honest(peer)

        actor.switchboard._session = session
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actor.run)
            yield actor
            nursery.cancel_scope.cancel()


def _falsify_answers(peer: Peer, falsify: Falsify) -> None:
    asked: dict[int, Request] = {}
    handle = peer.handle
    answer: Callable[[Answer | Refused], Awaitable[None]] = peer.answer
    in_a_run = peer.answers_for_lane

    async def hear(event: Event) -> None:
        if isinstance(event, MessageReceived) and isinstance(event.message, Request):
            asked[event.message.request] = event.message
        await handle(event)

    def lie(message: Answer) -> Answer:
        return falsify(peer, asked[message.request], message)

    def say_in_a_run(parts: Iterable[LaneSendable]) -> list[LaneSendable]:
        said = [lie(part) if isinstance(part, Answer) else part for part in parts]
        return in_a_run(cast("list[LaneSendable]", said))

    async def say(message: Answer | Refused) -> None:
        if isinstance(message, Answer):
            message = lie(message)
        await answer(message)

    peer.handle = hear  # type: ignore[method-assign]
    peer.answer = say  # type: ignore[method-assign]
    peer.answers_for_lane = say_in_a_run  # type: ignore[method-assign]
