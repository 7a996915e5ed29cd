"""X.509 as archid uses it: a fleet's CA and one certificate for each node.

Certificates only let two ends find out, inside TLS, that they belong to one fleet and which key
the other one has. Their dates mean nothing (1970 to 9999) and nothing is revoked here: facts in
Grants and the denied list decide, in `protocol.trust`. The profile follows RFC 5280: basic
constraints and key usage are critical, both extended key usages are there because every node is
server and client, and the key identifiers let OpenSSL tell apart the CAs of one fleet, which
share their name. Everything is derived from the input, so issuing twice gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from blake3 import blake3
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.envelope import PublicKey
from protocol.errors import FormatError, TrustError
from protocol.ids import FleetId, NodeId
from protocol.limits import MAX_CERTIFICATE_BYTES

NODE_URI_PREFIX: Final = "archid:node:"

_NOT_BEFORE: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_AFTER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_SERIAL_CONTEXT: Final = "archid v1 certificate serial number"


def make_ca(private_key: Ed25519PrivateKey, fleet: FleetId) -> bytes:
    """The self-signed certificate (DER) of a fleet's CA."""
    public_key = private_key.public_key()
    name = _name(f"archid fleet {fleet.short}")
    builder = (
        _dated(name, name, public_key, b"ca" + fleet)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(for_ca=True), critical=True)
        .add_extension(_key_identifier(public_key), critical=False)
    )
    return builder.sign(private_key, None).public_bytes(Encoding.DER)


def issue(
    ca_key: Ed25519PrivateKey, ca_certificate: bytes, public_key: PublicKey, node: NodeId
) -> bytes:
    """A node's certificate (DER), signed by the CA.

    Raises FormatError when `ca_certificate` is no certificate or not that of `ca_key`.
    """
    ca = _load(ca_certificate)
    if ca.public_key() != ca_key.public_key():
        raise FormatError("the CA certificate does not belong to the CA key")
    ca_identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    key = Ed25519PublicKey.from_public_bytes(public_key)
    uri = x509.UniformResourceIdentifier(f"{NODE_URI_PREFIX}{node}")
    both_ways = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _dated(_name(f"archid node {node.short}"), ca.subject, key, b"node" + node)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(for_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_ways), critical=False)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(_key_identifier(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier),
            critical=False,
        )
    )
    return builder.sign(ca_key, None).public_bytes(Encoding.DER)


def public_key_of(der: bytes) -> PublicKey:
    """The Ed25519 key that the certificate is for; raises FormatError for anything else."""
    certificate = _load(der)
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError("the certificate's key cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise FormatError("the certificate's key is not an Ed25519 key")
    return PublicKey(key.public_bytes_raw())


def node_of(der: bytes) -> NodeId:
    """The node named in the certificate; raises FormatError when it names none, or several."""
    try:
        names = _load(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise FormatError("the certificate names no node") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith(NODE_URI_PREFIX):
        raise FormatError("the certificate names no node")
    return NodeId.from_hex(uris[0].removeprefix(NODE_URI_PREFIX))


def signed_by(der: bytes, ca_certificates: Iterable[bytes]) -> bool:
    """Whether one of the CAs (DER, already believed) issued this certificate.

    Raises FormatError when `der` is not a certificate. Needed where OpenSSL could not decide,
    because the CA was not known yet while the TLS handshake ran (joining).
    """
    certificate = _load(der)
    for ca_der in ca_certificates:
        try:
            certificate.verify_directly_issued_by(_load(ca_der))
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return True
    return False


def check_own(der: bytes, *, node: NodeId, public_key: PublicKey, cas: Iterable[bytes]) -> None:
    """Raise TrustError unless a CA of the fleet issued `der` for this node and this key."""
    if not signed_by(der, cas):
        raise TrustError("the certificate was not signed by the fleet's CA")
    if public_key_of(der) != public_key or node_of(der) != node:
        raise TrustError("the certificate is for another node or another key")


def _load(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise FormatError(
            f"a certificate of {len(der)} bytes is longer than {MAX_CERTIFICATE_BYTES}"
        )
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError("not an X.509 certificate") from error


def _dated(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, purpose: bytes
) -> x509.CertificateBuilder:
    raw_key = key.public_bytes_raw()
    digest = blake3(purpose + raw_key, derive_key_context=_SERIAL_CONTEXT).digest(length=16)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(int.from_bytes(digest) >> 1 | 1)  # positive and never zero
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_identifier(key: Ed25519PublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier(blake3(key.public_bytes_raw()).digest(length=20))


def _usage(*, for_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not for_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=for_ca,
        crl_sign=for_ca,
        encipher_only=False,
        decipher_only=False,
    )
