"""How a node that has joined gets a certificate by a CA that it may not have known yet.

It dials central as a newcomer does, without a certificate: then both ends allow the exchange of
Roots and JOIN only. The Roots prove themselves, each signed by the one before; with the newest the
node judges central's certificate. Then it shows by a signature that it still has its key, and gets
a certificate for that. A node that was away while the CA changed comes back in this way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import trio

from archid import __version__
from archid.addresses import Address
from archid.errors import TrustFailure
from archid.identity import Identity
from archid.net.certificates import check_own, signed_by
from archid.net.errors import PeerLost
from archid.net.join_exchange import JoinPump, newcomer_hello
from archid.net.pump import pumping
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream, joining_context
from protocol.connection_states import Side
from protocol.errors import ProtocolError, TrustError
from protocol.messages import (
    JOIN_PROOF_TYPE,
    RENEWAL_TOKEN_ID,
    ErrorCode,
    Hello,
    JoinAccepted,
    JoinBegin,
    JoinOffer,
    JoinRequest,
    join_proof_payload,
)
from protocol.messages.joining import SECRET_BYTES
from protocol.root import Root

TakeRoots = Callable[[Sequence[bytes]], Awaitable[Root]]
"""Believes the Roots that are new and hold, and returns the newest."""


async def renew_certificate(
    address: Address,
    *,
    identity: Identity,
    held: Collection[bytes],
    take_roots: TakeRoots,
    settings: PeerSettings | None = None,
) -> bytes | None:
    """Ask central at `address` for Roots, then for a certificate by the CA that issues now.

    Returns it (DER), checked; None when one that is `held` is by that CA already. Raises PeerLost,
    PeerRefused, TrustFailure when what answers is not of this fleet, OSError.
    """
    limits = settings or PeerSettings()
    with trio.move_on_after(limits.admission_timeout_s) as scope:
        tcp = await trio.open_tcp_stream(address.host, address.port)
        stream = TLSStream(tcp, joining_context(), server_side=False)
        await stream.do_handshake()
    if scope.cancelled_caught:
        raise PeerLost(f"{address} did not answer within {limits.admission_timeout_s:g} seconds")
    hello = newcomer_hello(f"archid {__version__}")
    pump = JoinPump(stream, limits, side=Side.CLIENT, hello=hello)
    async with pumping(pump):
        with trio.move_on_after(limits.request_timeout_s):
            certificate = await _converse(pump, hello, identity, held, take_roots)
            pump.disconnect(ErrorCode.CLOSING, "that is all")
            return certificate
    raise PeerLost(f"{address} did not finish within {limits.request_timeout_s:g} seconds")


async def _converse(
    pump: JoinPump,
    ours: Hello,
    identity: Identity,
    held: Collection[bytes],
    take_roots: TakeRoots,
) -> bytes | None:
    theirs = await pump.peer_hello()
    pump.push(JoinBegin(RENEWAL_TOKEN_ID))
    offer = await pump.expect(JoinOffer)
    try:
        root = await take_roots(offer.roots)
        if not signed_by(pump.stream.peer_certificate or b"", root.ca_certificates):
            raise TrustError("its certificate is not by a CA of the fleet")
        if any(signed_by(each, root.ca_certificates[:1]) for each in held):
            return None
        payload = join_proof_payload(
            token_id=RENEWAL_TOKEN_ID,
            public_key=identity.public_key,
            name="",
            client_nonce=ours.nonce,
            server_nonce=theirs.nonce,
        )
        signature = identity.sign(JOIN_PROOF_TYPE, payload).value
        pump.push(
            JoinRequest(RENEWAL_TOKEN_ID, bytes(SECRET_BYTES), identity.public_key, signature, "")
        )
        accepted = await pump.expect(JoinAccepted)
        root = await take_roots(accepted.roots)
        check_own(
            accepted.certificate,
            node=identity.node_id,
            public_key=identity.public_key,
            cas=root.ca_certificates[:1],
        )
    except ProtocolError as error:
        raise TrustFailure(
            f"What answers at {pump.remote} is not this fleet's central: {error}",
            remedy="Check the network between here and central",
            code="not_central",
        ) from error
    return accepted.certificate
