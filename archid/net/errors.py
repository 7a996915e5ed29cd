"""What can go wrong with a connection, as errors that a person can read.

What the peer itself says no to is a `PeerRefused` with the protocol's code. Everything that ends
a connection is a `PeerLost`, whoever noticed: the caller asks somebody else.
"""

from __future__ import annotations

from archid.errors import Denied, TrustFailure, Unavailable
from protocol.ids import NodeId
from protocol.messages import ErrorCode


class PeerLost(Unavailable):
    """The connection to a peer ended, or it stopped answering.

    `reason` is the code with which it was ended, CONNECTION_LOST when it just broke.
    """

    code = "peer_lost"

    def __init__(self, message: str, reason: ErrorCode = ErrorCode.CONNECTION_LOST) -> None:
        super().__init__(message)
        self.reason = reason


class PeerTooSlow(Unavailable):
    """A peer did not answer a request in time; the connection stands."""

    code = "peer_too_slow"


class PeerRefused(Denied):
    """The peer said no: to a request, or to being connected at all."""

    def __init__(self, who: str, reason: ErrorCode, text: str) -> None:
        what = f"{who} refused ({reason.name_text})"
        super().__init__(f"{what}: {text}" if text else what, code=reason.name_text)
        self.reason = reason
        self.text = text


class PeerNotAdmitted(TrustFailure):
    """This node does not believe the peer, or the peer is this node itself."""

    def __init__(self, who: str, reason: ErrorCode, text: str) -> None:
        super().__init__(f"{who} was not admitted: {text}", code=reason.name_text)
        self.reason = reason
        self.text = text


class ConnectedToSelf(PeerNotAdmitted):
    """The address that was dialled is one of this node's own."""


class AlreadyConnected(PeerLost):
    """There is a connection to this node already; a second one is of no use."""

    def __init__(self, who: str, node: NodeId) -> None:
        super().__init__(f"{who} is connected already", ErrorCode.CLOSING)
        self.node = node


class TlsRefused(TrustFailure):
    """The TLS handshake failed: another fleet, no certificate, an old protocol, or no TLS."""

    code = "tls_refused"


class Refusal(Exception):
    """Raised by whoever answers a peer's request: say no with this code and these words."""

    def __init__(self, reason: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
