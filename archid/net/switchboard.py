"""Every peer that this node is connected to: at most one connection to each node.

The listener and the dialer bring TCP connections here. A connection becomes a peer or fails with
a named error; a peer gets a session, which is the rest of the daemon's business, for as long as
the connection lasts. Two nodes may dial one another at the same moment: both then keep the
connection that the node with the smaller id dialled.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

import trio

from archid.errors import ArchidError
from archid.log import get_logger
from archid.net.admission import open_peer
from archid.net.certificates import node_of
from archid.net.doorkeeper import Doorkeeper
from archid.net.errors import AlreadyConnected, PeerLost, TlsRefused
from archid.net.lane_desk import LaneDesk
from archid.net.pacing import Pacing
from archid.net.peer import Peer
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from archid.net.tls_contexts import TlsContexts
from archid.net.traffic import Traffic, TrafficBook
from protocol.connection_states import Side
from protocol.errors import FormatError
from protocol.ids import NodeId
from protocol.lane import PREAMBLE
from protocol.messages import ErrorCode

_log = get_logger(__name__)

Session = Callable[[Peer], Awaitable[None]]
"""What a node does with a peer while it is connected; it returns soon after `peer.closed`."""
Newcomer = Callable[[TLSStream], Awaitable[None]]
"""Takes a connection on which the client showed no certificate, to its end."""


UNSENT_BYTES: Final = 256 * 1024
"""The kernel queues no more than this beyond what is on its way: what was said last must not wait
behind megabytes, and a span counts as sent when it nearly is."""


class Switchboard:
    """Turns TCP connections into peers and holds them."""

    def __init__(
        self,
        *,
        own: NodeId,
        doorkeeper: Doorkeeper,
        contexts: TlsContexts,
        settings: PeerSettings,
        session: Session,
        newcomer: Newcomer,
        lanes: LaneDesk,
        now: Callable[[], float],
        pacing: Pacing | None = None,
    ) -> None:
        self._own = own
        self._doorkeeper = doorkeeper
        self._contexts = contexts
        self._settings = settings
        self._session = session
        self._newcomer = newcomer
        self._lanes = lanes
        self._now = now
        self._pacing = pacing or Pacing()
        self._peers: dict[NodeId, Peer] = {}
        self._dialling: set[NodeId] = set()
        self.book = TrafficBook()
        """What went to and came from whom, over connections that have ended."""

    @property
    def peers(self) -> Mapping[NodeId, Peer]:
        """The admitted peers, by node."""
        return MappingProxyType(self._peers)

    @property
    def traffic(self) -> Traffic:
        """Of all peers together, those that have gone included."""
        return sum((peer.traffic for peer in self._peers.values()), self.book.past)

    def disconnect(self, node: NodeId, code: ErrorCode, text: str) -> None:
        """End the connection to a node, if there is one: it was denied, for example."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.disconnect(code, text)

    async def accept(self, tcp: trio.SocketStream, on_proven: Callable[[], None]) -> None:
        """Serve a connection that came in, to its end; `on_proven` is called once it is a peer.

        Raises TlsRefused, PeerNotAdmitted, PeerRefused, PeerLost.
        """
        if await self._begins_as_lane(tcp):
            await self._lanes.accept(tcp, on_proven)
            return
        stream = await self._secure(tcp, Side.SERVER)
        if stream.peer_certificate is None:
            try:
                await self._newcomer(stream)
            except ArchidError:
                raise
            except Exception:  # noqa: BLE001 - one newcomer must not end the node
                _log.exception("newcomer_failed", remote=stream.remote)
        else:
            await self._hold(stream, Side.SERVER, on_proven)

    async def _begins_as_lane(self, tcp: trio.SocketStream) -> bool:
        """Look at the first byte, which stays where it is. Raises PeerLost."""
        with trio.move_on_after(self._settings.admission_timeout_s):
            try:
                return bool(await tcp.socket.recv(1, socket.MSG_PEEK) == PREAMBLE[:1])
            except OSError as error:
                tcp.socket.close()
                raise PeerLost(f"A connection broke at once: {error.strerror}") from error
        tcp.socket.close()
        waited_s = self._settings.admission_timeout_s
        raise PeerLost(f"A connection said nothing within {waited_s:g} seconds")

    async def dialled(self, tcp: trio.SocketStream, on_proven: Callable[[], None]) -> None:
        """The same for a connection that this node made.

        Raises AlreadyConnected, before the other end is bothered with a Hello, too.
        """
        stream = await self._secure(tcp, Side.CLIENT)
        try:
            node = node_of(stream.peer_certificate or b"")
        except FormatError as error:
            await stream.aclose()
            raise TlsRefused(f"{stream.remote} has a certificate that names no node") from error
        if self._stands(node) is not None or node in self._dialling:
            await stream.aclose()
            raise AlreadyConnected(stream.remote, node)
        self._dialling.add(node)
        try:
            await self._hold(stream, Side.CLIENT, on_proven)
        finally:
            self._dialling.discard(node)

    async def wait_until_gone(self, node: NodeId) -> None:
        """Return when this node is not connected to `node` (any more)."""
        await trio.lowlevel.checkpoint()
        while (peer := self._stands(node)) is not None:
            await peer.closed.wait()

    def _stands(self, node: NodeId) -> Peer | None:
        """The peer, unless its connection has ended and only its session is not over yet."""
        peer = self._peers.get(node)
        return None if peer is None or peer.closed.is_set() else peer

    async def _secure(self, tcp: trio.SocketStream, side: Side) -> TLSStream:
        context = self._contexts.client if side is Side.CLIENT else self._contexts.server
        try:
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            stream = TLSStream(tcp, context, server_side=side is Side.SERVER)
        except OSError as error:  # it was gone before anything was said
            tcp.socket.close()
            raise PeerLost(f"A connection broke at once: {error.strerror}") from error
        with trio.move_on_after(self._settings.admission_timeout_s):
            await stream.do_handshake()
            return stream
        waited_s = self._settings.admission_timeout_s
        raise PeerLost(f"{stream.remote} did not finish its TLS handshake in {waited_s:g} seconds")

    async def _hold(self, stream: TLSStream, side: Side, on_proven: Callable[[], None]) -> None:
        async with open_peer(
            stream, self._doorkeeper, self._settings, side=side, now=self._now
        ) as peer:
            on_proven()
            with self._pacing.peer(peer.facts) as pacers, self._registered(peer):
                peer.pace(*pacers)
                _log.debug("peer_connected", peer=peer.facts.name, remote=peer.remote)
                try:
                    await self._session(peer)
                except ArchidError as error:
                    _log.warning("session_ended", peer=peer.facts.name, reason=str(error))
                except Exception:  # noqa: BLE001 - one peer's session must not end the node
                    _log.exception("session_failed", peer=peer.facts.name)
                    peer.disconnect(ErrorCode.INTERNAL, "the session failed; see the log")
            why = peer.error
        reason = str(why) if why else "it was no longer needed here"
        _log.info("peer_disconnected", peer=peer.facts.name, remote=peer.remote, reason=reason)
        if why is not None:
            raise why

    @contextmanager
    def _registered(self, peer: Peer) -> Iterator[None]:
        """Hold the peer while its session runs. Raises AlreadyConnected for the lesser of two."""
        other = self._stands(peer.node)
        if other is not None:
            lesser = other if self._replaces(peer, other) else peer
            lesser.disconnect(ErrorCode.CLOSING, "another connection to this node stands")
            if lesser is peer:
                raise AlreadyConnected(peer.remote, peer.node)
        self._peers[peer.node] = peer
        self.book.connected(peer.facts, peer.remote)
        try:
            yield
        finally:
            why = None if peer.error is None else str(peer.error)
            self.book.ended(peer.node, peer.traffic, now_s=self._now(), reason=why)
            if self._peers.get(peer.node) is peer:
                del self._peers[peer.node]

    def _replaces(self, new: Peer, old: Peer) -> bool:
        """Which of two connections to one node stays; both ends decide alike.

        A node that has a connection does not dial another: one that dials although `old` has
        stood for a while has lost it, and so has one that dials a second time.
        """
        stood_s = new.since_s - old.since_s
        if new.dialled == old.dialled or stood_s > self._settings.admission_timeout_s:
            return True
        return new.dialled == (self._own < new.node)
