"""Tells peers of newer heads, and finds what was missed: carries `protocol.head_gossip`.

Each connection has a task that sends what the machine says is owed to that peer, so that a peer
which takes nothing holds up nobody. What is owed is always the newest head: it is looked up when
it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf
from random import SystemRandom

import trio

from archid.net.errors import PeerLost
from archid.net.peer import Peer
from archid.sync.signal import Signal, either
from archid.sync.trust_keeper import TrustKeeper
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.facts import NodeFacts
from protocol.features import HEADS
from protocol.head import Head
from protocol.head_gossip import HeadGossip, SendHead, Uniform
from protocol.ids import NodeId
from protocol.messages import HeadAnnounce, HeadDigest


class Heads:
    """What this node and its peers owe one another of heads."""

    def __init__(
        self,
        keeper: TrustKeeper,
        own: Callable[[], NodeFacts | None],
        *,
        random: Uniform | None = None,
    ) -> None:
        self._keeper = keeper
        self._own = own
        self._random = random or SystemRandom()
        self._gossip: HeadGossip | None = None
        self._told: dict[NodeId, tuple[Peer, Signal]] = {}

    def _machine(self) -> HeadGossip:
        if self._gossip is None:
            own = self._own()
            holder = own is not None and own.reads_everything
            self._gossip = HeadGossip(holder=holder, random=self._random)
        self._gossip.head_changed(self._keeper.order, now=trio.current_time())
        return self._gossip

    async def attend(self, peer: Peer) -> None:
        """Keep an admitted peer up to date until the connection has ended."""
        told = Signal()
        self._told[peer.node] = (peer, told)
        digests = HEADS in peer.features
        order = peer.hello.head_order
        self._machine().peer_joined(peer.node, order, digests=digests, now=trio.current_time())
        try:
            await self._tell(peer, told)
        finally:
            if self._told.get(peer.node) == (peer, told):
                del self._told[peer.node]
                self._machine().peer_lost(peer.node)

    async def _tell(self, peer: Peer, told: Signal) -> None:
        changed = self._keeper.changed
        while self._told.get(peer.node) == (peer, told):
            seen = (changed, changed.version), (told, told.version)
            machine = self._machine()
            for effect in machine.tick(peer.node, now=trio.current_time()):
                message: HeadAnnounce | HeadDigest
                if isinstance(effect, SendHead):
                    message = HeadAnnounce(*self._keeper.head_bytes())
                else:
                    message = HeadDigest(effect.order)
                try:
                    await peer.announce(message)
                except PeerLost:
                    return
            wake_at = machine.wake_at(peer.node)
            with trio.move_on_at(inf if wake_at is None else wake_at):
                await either(*seen)

    def take_digest(self, peer: Peer, message: HeadDigest) -> None:
        """A peer says which head it has."""
        now = trio.current_time()
        self._machine().digest_received(peer.node, message.head_order, now=now)
        self._wake(peer)

    def shown(self, peer: Peer, envelope: Envelope) -> None:
        """A peer has sent this head; whether it is to be believed is another matter."""
        with suppress(ProtocolError):
            self._machine().head_shown(peer.node, Head.decode(envelope.payload).order)

    def _wake(self, peer: Peer) -> None:
        standing = self._told.get(peer.node)
        if standing is not None:
            standing[1].fire()
