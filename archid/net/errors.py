"""What can go wrong with a connection, as errors that a person can read.

An error that the peer itself reports is a `PeerRefused` with the protocol's code. Everything that
breaks a connection is a `PeerLost`, whoever noticed: the caller asks somebody else.
"""

from __future__ import annotations

from archid.errors import TrustFailure, Unavailable


class PeerLost(Unavailable):
    """The connection to a peer ended, or it stopped answering."""

    code = "peer_lost"


class TlsRefused(TrustFailure):
    """The TLS handshake failed: another fleet, no certificate, an old protocol, or no TLS."""

    code = "tls_refused"
