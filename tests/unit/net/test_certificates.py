"""Certificates: their profile, and who issued them; the second opinion is the openssl program."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from archid.net.certificates import (
    check_own,
    issue,
    make_ca,
    node_of,
    public_key_of,
    signed_by,
)
from protocol.envelope import PublicKey
from protocol.errors import FormatError, TrustError
from protocol.ids import FleetId, NodeId

FLEET = FleetId.of(b"fleet")
CA_KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
NODE_KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
PUBLIC = PublicKey(NODE_KEY.public_key().public_bytes_raw())
NODE = NodeId.of(PUBLIC)
CA = make_ca(CA_KEY, FLEET)
CERTIFICATE = issue(CA_KEY, CA, PUBLIC, NODE)


def test_a_certificate_names_its_node_and_key() -> None:
    assert public_key_of(CERTIFICATE) == PUBLIC
    assert node_of(CERTIFICATE) == NODE


def test_issuing_twice_gives_the_same_bytes() -> None:
    assert make_ca(CA_KEY, FLEET) == CA
    assert issue(CA_KEY, CA, PUBLIC, NODE) == CERTIFICATE


def test_dates_never_get_in_the_way() -> None:
    for der in (CA, CERTIFICATE):
        certificate = x509.load_der_x509_certificate(der)
        assert certificate.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
        assert certificate.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_only_the_cas_that_are_given_count_as_issuers() -> None:
    other_key = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)
    same_name = make_ca(other_key, FLEET)
    assert signed_by(CERTIFICATE, [CA])
    assert signed_by(CERTIFICATE, [same_name, CA])
    assert not signed_by(CERTIFICATE, [same_name])
    assert not signed_by(CERTIFICATE, [])
    assert not signed_by(issue(other_key, same_name, PUBLIC, NODE), [CA])


def test_a_node_cannot_issue_certificates() -> None:
    victim = PublicKey(CA_KEY.public_key().public_bytes_raw())
    forged = issue(NODE_KEY, CERTIFICATE, victim, NodeId.of(victim))
    assert not signed_by(forged, [CA])


def test_a_changed_bit_in_the_signature_shows() -> None:
    forged = CERTIFICATE[:-1] + bytes([CERTIFICATE[-1] ^ 1])
    assert not signed_by(forged, [CA])


@pytest.mark.parametrize("data", [b"", b"x", CERTIFICATE[:-1], b"\x30" * 5000])
def test_what_is_no_certificate_is_a_format_error(data: bytes) -> None:
    for check in (public_key_of, node_of, lambda der: signed_by(der, [CA])):
        with pytest.raises(FormatError):
            check(data)


def test_another_kind_of_key_or_name_is_a_format_error() -> None:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web server")])
    der = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(FormatError, match="not an Ed25519 key"):
        public_key_of(der)
    with pytest.raises(FormatError, match="names no node"):
        node_of(der)
    with pytest.raises(FormatError, match="names no node"):
        node_of(CA)


def test_a_ca_key_that_does_not_fit_the_ca_certificate_is_refused() -> None:
    with pytest.raises(FormatError, match="does not belong"):
        issue(NODE_KEY, CA, PUBLIC, NODE)


def test_ones_own_certificate_is_checked_for_issuer_node_and_key() -> None:
    check_own(CERTIFICATE, node=NODE, public_key=PUBLIC, cas=[CA])
    other = PublicKey(CA_KEY.public_key().public_bytes_raw())
    with pytest.raises(TrustError, match="CA"):
        check_own(CERTIFICATE, node=NODE, public_key=PUBLIC, cas=[])
    with pytest.raises(TrustError, match="another"):
        check_own(CERTIFICATE, node=NODE, public_key=other, cas=[CA])
    with pytest.raises(TrustError, match="another"):
        check_own(CERTIFICATE, node=NodeId.of(other), public_key=PUBLIC, cas=[CA])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_verifies_them_strictly_for_both_directions(tmp_path: Path, purpose: str) -> None:
    ca_file, file = tmp_path / "ca.pem", tmp_path / "node.pem"
    ca_file.write_bytes(x509.load_der_x509_certificate(CA).public_bytes(Encoding.PEM))
    file.write_bytes(x509.load_der_x509_certificate(CERTIFICATE).public_bytes(Encoding.PEM))
    trusted = ["-CAfile", str(ca_file)]
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, *trusted, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
