"""Takes connections of newcomers: hands out Roots, and on central redeems tokens.

Whether a token is good is the desk's to say. Every node answers GetRoot here, so that one that
was away while the CA changed can catch up; only one with a desk lets anybody join.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from archid.errors import ArchidError, Conflict, Denied, Unavailable, UsageError
from archid.log import SparingLog, get_logger
from archid.net.doorkeeper import Doorkeeper
from archid.net.errors import PeerLost, Refusal
from archid.net.join_exchange import JoinPump
from archid.net.pump import pumping
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from protocol.connection_states import Side
from protocol.envelope import PublicKey
from protocol.ids import NodeId
from protocol.limits import MAX_JOIN_ROOTS
from protocol.messages import (
    JOIN_PROOF_TYPE,
    ErrorCode,
    Hello,
    JoinAccepted,
    JoinBegin,
    JoinOffer,
    JoinReady,
    JoinRequest,
    Message,
    Refused,
    Request,
    join_proof_payload,
)

_log = get_logger(__name__)
_strangers = SparingLog(_log)


class Admission(Protocol):
    """What a newcomer is given; see `protocol.messages.JoinAccepted`."""

    @property
    def certificate(self) -> bytes: ...
    @property
    def roots(self) -> Sequence[bytes]: ...
    @property
    def head(self) -> bytes: ...
    @property
    def grants(self) -> bytes: ...
    @property
    def leaf(self) -> bytes: ...


class TokenDesk(Protocol):
    """Redeems tokens; central has one."""

    async def redeem(
        self, *, token: bytes, secret: bytes, public_key: PublicKey, name: str
    ) -> Admission:
        """Let the holder of the key in, who has proven that it holds it.

        The same token and key again must give the same answer: the first may have been lost.
        Raises ArchidError; a `code` that is the name of a protocol code is what is sent.
        """
        ...

    def confirm(self, node: NodeId) -> Awaitable[object]:
        """The newcomer has stored everything and is ready."""
        ...


class JoinServer:
    """`serve` is what a switchboard does with newcomers."""

    def __init__(
        self,
        *,
        doorkeeper: Doorkeeper,
        roots: Callable[[], Sequence[bytes]],
        desk: TokenDesk | None,
        settings: PeerSettings,
    ) -> None:
        """`roots` gives every Root in its envelope, oldest first."""
        self._doorkeeper = doorkeeper
        self._roots = roots
        self._desk = desk
        self._settings = settings

    async def serve(self, stream: TLSStream) -> None:
        """Serve one newcomer to its end. Raises PeerLost, PeerRefused, Unavailable."""
        hello = self._doorkeeper.hello()
        pump = JoinPump(stream, self._settings, side=Side.SERVER, hello=hello)
        async with pumping(pump):
            with trio.move_on_after(self._settings.request_timeout_s) as scope:
                client = await pump.peer_hello()
                await self._converse(pump, client)
            if scope.cancelled_caught:
                raise PeerLost(f"{pump.remote} took too long to join")

    async def _converse(self, pump: JoinPump, client: Hello) -> None:
        token_id = b""
        node: NodeId | None = None
        async for message in pump.messages:
            if isinstance(message, Request):
                answer = await self._answer(message)
                await pump.outbox.wait_for_room()
                pump.push(answer)
            elif self._desk is None:
                pump.disconnect(ErrorCode.NOT_READY, "only central lets new nodes join")
            elif isinstance(message, JoinBegin):
                token_id = message.token_id
                pump.push(JoinOffer(tuple(self._roots())[-MAX_JOIN_ROOTS:]))
            elif isinstance(message, JoinRequest):
                if not _is_proven(message, token_id, client, pump.connection.hello):
                    pump.disconnect(ErrorCode.BAD_PROOF, "the signature by the new key is wrong")
                    return
                node = await self._redeem(pump, self._desk, message)
            elif isinstance(message, JoinReady) and node is not None:
                await self._desk.confirm(node)
                _log.info("join_confirmed", node=node.short, remote=pump.remote)
                pump.disconnect(ErrorCode.CLOSING, "welcome")

    async def _answer(self, request: Request) -> Message:
        try:
            return await self._doorkeeper.answer(request, None)
        except Refusal as refusal:
            return Refused(request.request, refusal.reason, refusal.text)

    async def _redeem(self, pump: JoinPump, desk: TokenDesk, message: JoinRequest) -> NodeId | None:
        public_key = PublicKey(message.public_key)
        try:
            admission = await desk.redeem(
                token=message.token_id,
                secret=message.secret,
                public_key=public_key,
                name=message.name,
            )
        except ArchidError as error:
            code, text = _told(error)
            name, reason = code.name_text, str(error)
            _strangers.warning("join_refused", remote=pump.remote, code=name, reason=reason)
            pump.disconnect(code, text)
            return None
        pump.push(
            JoinAccepted(
                certificate=admission.certificate,
                roots=tuple(admission.roots)[-MAX_JOIN_ROOTS:],
                head=admission.head,
                grants=admission.grants,
                leaf=admission.leaf,
            )
        )
        return NodeId.of(public_key)


def _is_proven(message: JoinRequest, token_id: bytes, client: Hello, server: Hello) -> bool:
    """Whether the newcomer holds its key, by a signature for this very conversation."""
    payload = join_proof_payload(
        token_id=token_id,
        public_key=message.public_key,
        name=message.name,
        client_nonce=client.nonce,
        server_nonce=server.nonce,
    )
    key = PublicKey(message.public_key)
    return message.token_id == token_id and key.verify(JOIN_PROOF_TYPE, payload, message.signature)


def _told(error: ArchidError) -> tuple[ErrorCode, str]:
    """What a stranger hears of why a token was not redeemed: nothing of this machine's insides."""
    by_name = {code.name_text: code for code in ErrorCode}
    if error.code in by_name:
        return by_name[error.code], str(error)
    if isinstance(error, Denied | Conflict | UsageError):
        return ErrorCode.DENIED if isinstance(error, Denied) else ErrorCode.OTHER, str(error)
    if isinstance(error, Unavailable):
        return ErrorCode.NOT_READY, "central cannot let anybody in now"
    return ErrorCode.INTERNAL, "central failed; its log says why"
