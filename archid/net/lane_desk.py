"""How lanes are opened: agreed on inside TLS, dialled, proven, and then run beside their peer.

Who dialled the connection dials the lane, since the other end may stand behind a NAT. A lane is an
improvement: where it cannot be opened (a firewall, an older node) everything goes through TLS. Once
it stands it shares the connection's fate, either way.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio

from archid.errors import ArchidError
from archid.log import get_logger
from archid.net.errors import PeerLost, Refusal
from archid.net.lane import Lane, LaneAnswer
from archid.net.peer import Peer
from protocol.connection_states import Side
from protocol.errors import FormatError, ProtocolError
from protocol.features import LANES
from protocol.ids import NodeId
from protocol.lane import PREAMBLE_BYTES, LaneSecret, lane_of, preamble
from protocol.messages import ErrorCode, LaneOffered, LaneProof, OpenLane, WantLane
from protocol.messages.lanes import LANE_ID_BYTES, LANE_RANDOM_BYTES

_log = get_logger(__name__)


@dataclass(frozen=True)
class _Offered:
    """A lane that a peer may dial now."""

    peer: Peer
    secret: LaneSecret
    until: float


class LaneDesk:
    """The lanes of one node."""

    def __init__(self, own: NodeId, *, timeout_s: float) -> None:
        """`timeout_s` is for each step: dialling, and being dialled after an offer."""
        self._own = own
        self._timeout_s = timeout_s
        self._offered: dict[bytes, _Offered] = {}
        self._had: set[Peer] = set()
        """Peers that were offered a lane: one for each connection, no matter what came of it."""

    # The side that was dialled

    def offer(self, peer: Peer, request: OpenLane) -> LaneOffered:
        """Agree on a lane that the peer is about to dial. Raises Refusal."""
        self._forget_old()
        if peer in self._had:
            raise Refusal(ErrorCode.PROTOCOL_ERROR, "this connection had a lane already")
        if request.lane in self._offered:
            raise Refusal(ErrorCode.BUSY, "a lane of this id waits already")
        self._had.add(peer)
        secret = LaneSecret(
            lane=request.lane,
            client=peer.node,
            server=self._own,
            client_random=request.random,
            server_random=secrets.token_bytes(LANE_RANDOM_BYTES),
        )
        until = trio.current_time() + self._timeout_s
        self._offered[request.lane] = _Offered(peer, secret, until)
        return LaneOffered(request.request, secret.server_random)

    def _forget_old(self) -> None:
        now = trio.current_time()
        for lane, offered in list(self._offered.items()):
            if offered.until < now or offered.peer.closed.is_set():
                del self._offered[lane]
        self._had = {peer for peer in self._had if not peer.closed.is_set()}

    async def accept(self, tcp: trio.SocketStream, on_proven: Callable[[], None]) -> None:
        """Serve a connection that began as a lane, to its end. Raises PeerLost."""
        found: tuple[Peer, Lane] | None = None
        try:
            with trio.move_on_after(self._timeout_s):
                found = await self._proven(tcp)
        except (ProtocolError, PeerLost, OSError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise PeerLost(f"A lane was not taken: {why}") from error
        finally:
            if found is None:
                tcp.socket.close()
        if found is None:
            raise PeerLost(f"A lane was not proven within {self._timeout_s:g} seconds")
        on_proven()
        await _carry(*found)

    async def _proven(self, tcp: trio.SocketStream) -> tuple[Peer, Lane]:
        offered = await self._claimed(tcp)
        lane = self._lane(tcp, offered.peer, offered.secret, Side.SERVER)
        try:
            await lane.receive_proof()
            await lane.send(LaneProof)
        except BaseException:
            lane.close()
            raise
        return offered.peer, lane

    async def _claimed(self, tcp: trio.SocketStream) -> _Offered:
        """Whose lane it is, by its first bytes. Raises FormatError, for unknown ones too."""
        data = b""
        while len(data) < PREAMBLE_BYTES:
            more = await tcp.socket.recv(PREAMBLE_BYTES - len(data))
            if not more:
                raise FormatError("it ended before it had said whose it is")
            data += more
        self._forget_old()
        offered = self._offered.pop(lane_of(data), None)
        if offered is None:
            raise FormatError("nobody was offered it")
        return offered

    # The side that dialled

    async def attend(self, peer: Peer) -> None:
        """See to it that a peer gets a lane once somebody wants one; returns when it has ended."""
        if LANES not in peer.features:
            return
        await peer.lane_wanted.wait()
        with suppress(PeerLost):
            if not peer.dialled:
                peer.push(WantLane())
                return
            try:
                lane = await self._dialled(peer)
            except (ArchidError, ProtocolError, OSError) as error:
                _log.info("lane_not_opened", peer=peer.facts.name, why=str(error))
                return
            await _carry(peer, lane)

    async def _dialled(self, peer: Peer) -> Lane:
        name, random = secrets.token_bytes(LANE_ID_BYTES), secrets.token_bytes(LANE_RANDOM_BYTES)
        offered = await peer.request(OpenLane(0, name, random), LaneOffered)
        secret = LaneSecret(name, self._own, peer.node, random, offered.random)
        with trio.move_on_after(self._timeout_s):
            tcp = await trio.open_tcp_stream(peer.stream.remote_host, peer.stream.remote_port)
            try:
                await tcp.send_all(preamble(name))
            except BaseException as error:
                tcp.socket.close()
                if isinstance(error, trio.BrokenResourceError):
                    raise PeerLost("it was closed at once") from error
                raise
            lane = self._lane(tcp, peer, secret, Side.CLIENT)
            try:
                await lane.send(LaneProof)
                await lane.receive_proof()
            except BaseException:
                lane.close()
                raise
            return lane
        raise PeerLost(f"it did not stand within {self._timeout_s:g} seconds")

    def _lane(self, tcp: trio.SocketStream, peer: Peer, secret: LaneSecret, side: Side) -> Lane:
        return Lane(
            socket.socket(fileno=tcp.socket.detach()),
            secret,
            side,
            taker_of=peer.taker_of,
            on_answer=partial(_take_answer, peer),
            pacer_out=peer.pacer_out,
            pacer_in=peer.pacer_in,
            dead_after_s=peer.settings.dead_after_s,
        )


async def _carry(peer: Peer, lane: Lane) -> None:
    """Let the answers of a peer go through its lane, both ways, until either ends."""
    try:
        if not peer.use_lane(lane):
            return
        _log.debug("lane_opened", peer=peer.facts.name)
        try:
            await lane.run()
        except ProtocolError as error:
            peer.lane_broke(error)
        except PeerLost as error:
            # The connection's own end says why it ended, and may be a little behind.
            with trio.move_on_after(peer.settings.goodbye_timeout_s):
                await peer.closed.wait()
            peer.disconnect(ErrorCode.CLOSING, str(error))
        except Exception:  # noqa: BLE001 - one peer's lane must not end the node
            _failed(peer)
    finally:
        lane.close()


def _take_answer(peer: Peer, answer: LaneAnswer) -> None:
    """Called by the event loop itself, which an error would end."""
    try:
        peer.take_from_lane(answer)
    except Exception:  # noqa: BLE001 - one peer's lane must not end the node
        _failed(peer)


def _failed(peer: Peer) -> None:
    _log.exception("lane_failed", peer=peer.facts.name)
    peer.disconnect(ErrorCode.INTERNAL, "the lane failed; see the log")
