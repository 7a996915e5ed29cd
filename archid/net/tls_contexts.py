"""The three ways in which archid sets up OpenSSL: as server, as client, and while joining.

TLS 1.3 only, certificates of the fleet's CAs both ways, no resumption, and an application
protocol name (ALPN) by which a foreign TLS client is told apart. A context is made anew when
Root names other CAs; connections that stand are not touched by that.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

from archid.errors import TrustFailure
from archid.identity import Identity

ALPN: Final = "archid/1"

_IGNORE_UNEXPECTED_EOF: Final = 1 << 7  # SSL_OP_IGNORE_UNEXPECTED_EOF of OpenSSL 3


def server_context(identity: Identity, ca_certificates: Sequence[bytes]) -> ssl.SSLContext:
    """For accepted connections; a client without a certificate gets in, but only to join.

    `ca_certificates` are those that Root names, as DER. Raises TrustFailure when the node has no
    certificate or OpenSSL does not take it.
    """
    context = _own_context(ssl.PROTOCOL_TLS_SERVER, identity, ca_certificates)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # no resumption: each connection proves itself anew
    return context


def client_context(identity: Identity, ca_certificates: Sequence[bytes]) -> ssl.SSLContext:
    """For dialled connections of a node that has joined. Raises TrustFailure."""
    context = _own_context(ssl.PROTOCOL_TLS_CLIENT, identity, ca_certificates)
    context.check_hostname = False  # certificates name nodes, not hosts
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def joining_context() -> ssl.SSLContext:
    """For a node that has no certificate and knows no CA yet: encrypts, and believes nobody.

    The caller checks `TLSStream.peer_certificate` itself, before it says anything secret.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _only_tls13(context)


def _own_context(
    protocol: int, identity: Identity, ca_certificates: Sequence[bytes]
) -> ssl.SSLContext:
    if identity.certificate is None:
        raise TrustFailure(
            "This node has no certificate, since it has not joined a fleet",
            remedy="ask for a token and run 'archid join TOKEN'",
        )
    context = ssl.SSLContext(protocol)
    try:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
        context.load_verify_locations(cadata=b"".join(ca_certificates))
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TrustFailure(
            f"The certificate in {identity.folder} or the fleet's CA cannot be used: {error}",
            remedy="restore the identity folder, or join the fleet again",
        ) from error
    return _only_tls13(context)


def _only_tls13(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    # Some builds of Python ignore a missing goodbye, so that a cut looks like a clean end.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", _IGNORE_UNEXPECTED_EOF)
    return context


class TlsContexts:
    """The contexts of a node that has joined, replaced when Root names other CAs.

    Connections that stand keep the context they began with.
    """

    def __init__(self, identity: Identity, ca_certificates: Sequence[bytes]) -> None:
        self._identity = identity
        self._ca_certificates = tuple(ca_certificates)
        self.server = server_context(identity, ca_certificates)
        self.client = client_context(identity, ca_certificates)

    def update(self, ca_certificates: Sequence[bytes]) -> None:
        """Believe these CAs from now on. Raises TrustFailure and changes nothing."""
        if tuple(ca_certificates) == self._ca_certificates:
            return
        self.replace_identity(self._identity, ca_certificates)

    def replace_identity(self, identity: Identity, ca_certificates: Sequence[bytes]) -> None:
        """Show this identity's certificate from now on. Raises TrustFailure, changes nothing."""
        server = server_context(identity, ca_certificates)
        client = client_context(identity, ca_certificates)
        self.server, self.client = server, client
        self._identity = identity
        self._ca_certificates = tuple(ca_certificates)
