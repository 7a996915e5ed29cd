"""Signed payloads: Ed25519 over the exact bytes, several signers, no private keys here.

An envelope carries a payload and its signatures, and says nothing about who may sign: that is
`protocol.trust`'s. What is signed names the document's type, so that bytes signed as one kind
of document are never taken for another. Payloads are checked as they came and never encoded
again (TUF's rule: verify, then parse, then freeze).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.canonical import Fields, Value, open_document, pack
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import KeyId
from protocol.limits import MAX_SIGNATURES

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
ENVELOPE_TYPE: Final = "envelope"

_SIGNING_CONTEXT: Final = b"archid signature v1\0"


class PublicKey(bytes):
    """A raw Ed25519 public key (RFC 8032): 32 bytes."""

    __slots__ = ()

    def __new__(cls, value: bytes) -> Self:
        if len(value) != PUBLIC_KEY_BYTES:
            raise FormatError(f"a public key must be {PUBLIC_KEY_BYTES} bytes, not {len(value)}")
        return super().__new__(cls, value)

    @property
    def key_id(self) -> KeyId:
        """What envelopes and roles call this key."""
        return KeyId.of(self)

    def verify(self, document_type: str, payload: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `payload` as a document of that type."""
        try:
            Ed25519PublicKey.from_public_bytes(self).verify(
                signature, signing_input(document_type, payload)
            )
        except (InvalidSignature, ValueError):
            return False
        return True

    def __repr__(self) -> str:
        return f"PublicKey({self.hex()[:12]})"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signer's signature."""

    key_id: KeyId
    value: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with its signatures, at most one of each key, kept in the order of key ids."""

    payload: bytes
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        in_order = tuple(sorted(self.signatures, key=lambda signature: signature.key_id))
        if len(in_order) > MAX_SIGNATURES:
            raise LimitExceeded(f"an envelope has more than {MAX_SIGNATURES} signatures")
        if len({signature.key_id for signature in in_order}) != len(in_order):
            raise FormatError("an envelope has two signatures of one key")
        object.__setattr__(self, "signatures", in_order)

    def encode(self) -> bytes:
        signatures: list[Value] = [[one.key_id, one.value] for one in self.signatures]
        return pack([ENVELOPE_TYPE, 1, self.payload, signatures])

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, *, max_bytes: int) -> Self:
        """Parse an envelope of at most `max_bytes`; raises FormatError or LimitExceeded."""
        fields = open_document(data, ENVELOPE_TYPE, max_bytes=max_bytes)
        payload = fields.binary("payload", max_bytes=max_bytes)
        signatures = []
        for item in fields.array("signatures", max_items=MAX_SIGNATURES):
            signature = Fields(item, "signature")
            key_id = signature.identity("key id", KeyId)
            value = signature.binary("value", max_bytes=SIGNATURE_BYTES)
            if len(value) != SIGNATURE_BYTES:
                raise FormatError(f"a signature must be {SIGNATURE_BYTES} bytes")
            signatures.append(Signature(key_id, value))
        envelope = cls(payload, tuple(signatures))
        if list(envelope.signatures) != signatures:
            raise FormatError("an envelope's signatures are not in the order of their key ids")
        return envelope


def signing_input(document_type: str, payload: bytes) -> bytes:
    """The bytes that a key signs for `payload` as a document of that type."""
    return _SIGNING_CONTEXT + document_type.encode() + b"\0" + payload


def count_valid(
    envelope: Envelope, document_type: str, keys: Mapping[KeyId, PublicKey]
) -> set[KeyId]:
    """The distinct keys among `keys` that validly signed the envelope.

    Signatures by other keys are passed over: an envelope may carry those of old or new keys.
    """
    return {
        signature.key_id
        for signature in envelope.signatures
        if (key := keys.get(signature.key_id)) is not None
        and key.verify(document_type, envelope.payload, signature.value)
    }
