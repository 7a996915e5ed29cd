"""How two nodes come to believe one another: Hello, proof and judgement on a fresh connection.

Both prove at once, but for a node whose head is older: it first takes the newer head from the
other's proof, since its own leaf may have changed with it. What is believed is the doorkeeper's
to say; here is only the order of things, and that it ends in time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import trio

from archid.errors import ArchidError
from archid.net.certificates import public_key_of
from archid.net.doorkeeper import Doorkeeper
from archid.net.errors import (
    ConnectedToSelf,
    PeerLost,
    PeerNotAdmitted,
    PeerRefused,
    PeerTooSlow,
    Refusal,
)
from archid.net.peer import Peer
from archid.net.pump import pumping
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from protocol.connection import Connection
from protocol.connection_events import Admitted, Event, HelloReceived, ProofReceived
from protocol.connection_states import Side
from protocol.errors import LimitExceeded, ProtocolError, TrustError
from protocol.facts import NodeFacts
from protocol.messages import ErrorCode, Hello
from protocol.refusals import NodeDenied, WrongFleet


@asynccontextmanager
async def open_peer(
    stream: TLSStream,
    doorkeeper: Doorkeeper,
    settings: PeerSettings,
    *,
    side: Side,
    now: Callable[[], float],
) -> AsyncIterator[Peer]:
    """A connection whose TLS handshake is done, as an admitted peer for the body's duration.

    Raises PeerNotAdmitted when the peer is not believed, PeerRefused when it does not believe
    us, TlsRefused when it does not take our certificate, PeerLost. Leaving the body says goodbye
    and closes the stream. When the connection ends first, the body is not cancelled: `requests`
    and `notices` end, what waits gets PeerLost, and `closed` is set.
    """
    try:
        hello = doorkeeper.hello()
        peer = Peer(
            stream,
            Connection(side=side, hello=hello),
            settings,
            key=public_key_of(stream.peer_certificate or b""),
            since_s=now(),
        )
    except BaseException as error:
        stream.close()
        if isinstance(error, ProtocolError):
            text = f"its certificate cannot be used: {error}"
            raise PeerNotAdmitted(stream.remote, ErrorCode.BAD_PROOF, text) from error
        raise
    async with pumping(peer) as nursery:
        nursery.start_soon(_answer_early, peer, doorkeeper)
        with trio.move_on_after(settings.admission_timeout_s) as scope:
            try:
                await _admission(peer, doorkeeper, hello)
            except PeerLost:
                # Its refusal may overtake our own judgement or proof; it says more than "gone".
                if isinstance(peer.error, PeerRefused):
                    raise peer.error from None
                raise
        if scope.cancelled_caught:
            waited_s = settings.admission_timeout_s
            raise PeerLost(f"{peer.remote} did not prove itself within {waited_s:g} seconds")
        yield peer


async def _admission(peer: Peer, doorkeeper: Doorkeeper, ours: Hello) -> None:
    step = await _next_step(peer)
    if not isinstance(step, HelloReceived):
        raise RuntimeError(f"{type(step).__name__} before HelloReceived")
    theirs = step.hello
    if theirs.node == ours.node:
        text = "it is this node itself"
        peer.disconnect(ErrorCode.CLOSING, text)
        raise ConnectedToSelf(peer.remote, ErrorCode.CLOSING, text)
    proven = theirs.head_order <= ours.head_order
    if proven:
        await _prove(peer, doorkeeper, theirs)
    while not isinstance(step := await _next_step(peer), Admitted):
        if isinstance(step, ProofReceived):
            facts = await _judge(peer, doorkeeper, step, theirs)
            peer.admit(facts, step.prove.proof)
            if not proven:
                proven = True
                await _prove(peer, doorkeeper, theirs)


async def _next_step(peer: Peer) -> Event:
    try:
        return await peer.steps.receive()
    except trio.EndOfChannel:
        raise peer.error or peer.gone() from None


async def _judge(
    peer: Peer, doorkeeper: Doorkeeper, step: ProofReceived, theirs: Hello
) -> NodeFacts:
    """The peer's facts, or tell it why not and raise PeerNotAdmitted."""
    try:
        facts = await doorkeeper.judge(step.prove, peer=theirs, peer_key=peer.key, ask=peer.request)
        if facts.node != theirs.node:
            raise TrustError("the facts are of another node than the one in Hello")
    except (Refusal, ProtocolError, PeerRefused, PeerTooSlow) as error:
        raise _turn_away(peer, error) from error
    return facts


async def _prove(peer: Peer, doorkeeper: Doorkeeper, theirs: Hello) -> None:
    """Show this node's facts. What the peer sends when it is asked for them may be anything."""
    try:
        proof = await doorkeeper.prove(theirs, peer.request)
    except (Refusal, ProtocolError, PeerRefused, PeerTooSlow) as error:
        raise _turn_away(peer, error) from error
    peer.push(proof)


def _turn_away(
    peer: Peer, error: Refusal | ProtocolError | PeerRefused | PeerTooSlow
) -> ArchidError:
    """Tell the peer why it is not to be, and return what to raise."""
    if peer.closed.is_set():
        return peer.error or peer.gone()
    code, text = _code_for(error), str(error)
    peer.disconnect(code, text)
    return PeerNotAdmitted(peer.remote, code, text)


def _code_for(error: Refusal | ProtocolError | PeerRefused | PeerTooSlow) -> ErrorCode:
    """What to tell a peer whose proof was not accepted for this reason."""
    if isinstance(error, Refusal):
        return error.reason
    if isinstance(error, NodeDenied):
        return ErrorCode.DENIED
    if isinstance(error, WrongFleet):
        return ErrorCode.WRONG_FLEET
    if isinstance(error, TrustError):
        return ErrorCode.BAD_PROOF
    if isinstance(error, LimitExceeded):
        return ErrorCode.LIMIT_EXCEEDED
    if isinstance(error, ProtocolError):
        return ErrorCode.PROTOCOL_ERROR
    return ErrorCode.NOT_READY  # it did not give us what its own proof needs


async def _answer_early(peer: Peer, doorkeeper: Doorkeeper) -> None:
    """Answer what the peer needs to judge us, until it is admitted."""
    with suppress(PeerLost):
        async for request in peer.early_requests:
            try:
                answer = await doorkeeper.answer(request, peer.hello.node, peer.key)
            except Refusal as refusal:
                await peer.refuse(request, refusal.reason, refusal.text)
            else:
                await peer.answer(answer)
