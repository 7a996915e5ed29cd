"""Messages by which a node that has no certificate yet becomes a member of a fleet.

They are not requests: each side sends its own in a fixed order, and central answers with what
comes next or with Goodbye. The token's secret travels only after the joiner has checked the
offered Roots against the fingerprint in its token, and the server's certificate against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from protocol.canonical import pack
from protocol.ids import OPAQUE_BYTES
from protocol.limits import (
    MAX_CERTIFICATE_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_GRANTS_ROOT_BYTES,
    MAX_HEAD_BYTES,
    MAX_JOIN_ROOTS,
    MAX_LABEL_BYTES,
    MAX_ROOT_BYTES,
    MIB,
)
from protocol.messages.session import SMALL
from protocol.messages.wire import Codec, Message, blob, sequence, text

TOKEN_ID_BYTES: Final = OPAQUE_BYTES
SECRET_BYTES: Final = 32
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
JOIN_PROOF_TYPE: Final = "join"
"""The document type under which a joiner signs `join_proof_payload`."""

RENEWAL_TOKEN_ID: Final = bytes(TOKEN_ID_BYTES)
"""In place of a token's: a node that has joined asks for a certificate by the CA of today."""

TOKEN_ID: Final = blob(TOKEN_ID_BYTES, min_bytes=TOKEN_ID_BYTES)
ROOTS: Final = sequence(blob(MAX_ROOT_BYTES), MAX_JOIN_ROOTS)


def join_proof_payload(
    *, token_id: bytes, public_key: bytes, name: str, client_nonce: bytes, server_nonce: bytes
) -> bytes:
    """What a joiner signs with its new key, to prove to this connection that it has it."""
    return pack([JOIN_PROOF_TYPE, 1, token_id, public_key, name, client_nonce, server_nonce])


@dataclass(frozen=True, slots=True)
class JoinBegin(Message):
    """Names the token; the secret stays back until the offer is checked."""

    TYPE: ClassVar[int] = 64
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"token_id": TOKEN_ID}

    token_id: bytes


@dataclass(frozen=True, slots=True)
class JoinOffer(Message):
    """Roots in their envelopes, the oldest first, that which the token names among them."""

    TYPE: ClassVar[int] = 65
    MAX_BYTES: ClassVar[int] = 1 * MIB
    WIRE: ClassVar[Mapping[str, Codec]] = {"roots": ROOTS}

    roots: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class JoinRequest(Message):
    """The token's secret, the node's key and a signature by it over `join_proof_payload`."""

    TYPE: ClassVar[int] = 66
    MAX_BYTES: ClassVar[int] = 2 * SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "token_id": TOKEN_ID,
        "secret": blob(SECRET_BYTES, min_bytes=SECRET_BYTES),
        "public_key": blob(KEY_BYTES, min_bytes=KEY_BYTES),
        "signature": blob(SIGNATURE_BYTES, min_bytes=SIGNATURE_BYTES),
        "name": text(MAX_LABEL_BYTES),
    }

    token_id: bytes
    secret: bytes = field(repr=False)  # never in a log
    public_key: bytes
    signature: bytes
    name: str


@dataclass(frozen=True, slots=True)
class JoinAccepted(Message):
    """The node is recorded: its certificate, and the documents that say who it is."""

    TYPE: ClassVar[int] = 67
    MAX_BYTES: ClassVar[int] = 2 * MIB
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "certificate": blob(MAX_CERTIFICATE_BYTES),
        "roots": ROOTS,
        "head": blob(MAX_HEAD_BYTES),
        "grants": blob(MAX_GRANTS_ROOT_BYTES),
        "leaf": blob(MAX_DOCUMENT_BYTES),
    }

    certificate: bytes
    roots: tuple[bytes, ...]
    head: bytes
    grants: bytes
    leaf: bytes


@dataclass(frozen=True, slots=True)
class JoinReady(Message):
    """Everything is verified and stored; central answers Goodbye with `closing`."""

    TYPE: ClassVar[int] = 68
    MAX_BYTES: ClassVar[int] = SMALL
