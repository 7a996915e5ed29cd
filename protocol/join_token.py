"""The text that lets a new node join: what an operator copies from central to the new machine.

``archid-join-`` and base32 in lower case (RFC 4648, no padding) of a canonical array and four
bytes of checksum, so that a typo is told apart from a refusal. It holds where central listens,
which node it is, the Root's fingerprint and a secret: whoever has the text can join once, and
whoever altered it could send the joiner to a fleet of his own, so it travels by a private way.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final, Self

from blake3 import blake3

from protocol.canonical import Value, open_document, pack
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import DocumentId, NodeId
from protocol.limits import (
    MAX_ADDRESS_BYTES,
    MAX_ADDRESSES,
    MAX_LABEL_BYTES,
    MAX_ROLE_NAME_BYTES,
    MAX_TIME_S,
)

PREFIX: Final = "archid-join-"
TOKEN_TYPE: Final = "join token"  # noqa: S105 - a document type, no password
TOKEN_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
MAX_TOKEN_CHARACTERS: Final = 8192

_CHECKSUM_BYTES: Final = 4
_CHECKSUM_CONTEXT: Final = "archid v1 join token checksum"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a joining token says.

    `central` is the node that may ask for the secret. `role` and `expires_s` are there to warn
    early: what counts is what central keeps.
    """

    addresses: tuple[str, ...]
    central: NodeId
    fingerprint: DocumentId
    token_id: bytes
    secret: bytes = field(repr=False)
    fleet_name: str
    role: str
    expires_s: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.addresses) <= MAX_ADDRESSES:
            raise LimitExceeded(f"a token names 1 to {MAX_ADDRESSES} addresses")
        if len(self.token_id) != TOKEN_ID_BYTES or len(self.secret) != SECRET_BYTES:
            raise FormatError("a token's id or secret has the wrong length")

    def encode(self) -> str:
        """The text to hand over; it contains the secret."""
        addresses: list[Value] = list(self.addresses)
        payload = pack(
            [
                TOKEN_TYPE,
                1,
                addresses,
                self.central,
                self.fingerprint,
                self.token_id,
                self.secret,
                self.fleet_name,
                self.role,
                self.expires_s,
            ]
        )
        encoded = base64.b32encode(payload + _checksum(payload)).decode("ascii")
        return PREFIX + encoded.rstrip("=").lower()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read a token's text; white space and capitals do not matter.

        Raises FormatError, which never repeats the text, since it holds a secret.
        """
        if len(text) > MAX_TOKEN_CHARACTERS:
            raise FormatError("the text is far longer than a joining token")
        compact = "".join(text.split()).lower()
        if not compact.startswith(PREFIX):
            raise FormatError(f"a joining token begins with {PREFIX!r}")
        body = compact.removeprefix(PREFIX).upper()
        try:
            data = base64.b32decode(body + "=" * (-len(body) % 8))
        except (binascii.Error, ValueError) as error:
            raise FormatError("the joining token was cut or mistyped") from error
        payload, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        canonical = base64.b32encode(data).decode("ascii").rstrip("=")
        if checksum != _checksum(payload) or canonical != body:
            raise FormatError("the joining token was cut or mistyped")
        fields = open_document(payload, TOKEN_TYPE, max_bytes=MAX_TOKEN_CHARACTERS)
        addresses = fields.array("addresses", max_items=MAX_ADDRESSES)
        if not all(isinstance(address, str) for address in addresses):
            raise FormatError("a joining token holds an address that is not text")
        if any(len(str(address).encode()) > MAX_ADDRESS_BYTES for address in addresses):
            raise LimitExceeded("a joining token holds an address that is too long")
        return cls(
            addresses=tuple(str(address) for address in addresses),
            central=fields.identity("central", NodeId),
            fingerprint=fields.identity("root fingerprint", DocumentId),
            token_id=fields.binary("token id", max_bytes=TOKEN_ID_BYTES),
            secret=fields.binary("secret", max_bytes=SECRET_BYTES),
            fleet_name=fields.text("fleet name", max_bytes=MAX_LABEL_BYTES),
            role=fields.text("role", max_bytes=MAX_ROLE_NAME_BYTES),
            expires_s=fields.integer("expires", high=MAX_TIME_S),
        )


def _checksum(payload: bytes) -> bytes:
    return blake3(payload, derive_key_context=_CHECKSUM_CONTEXT).digest(length=_CHECKSUM_BYTES)
