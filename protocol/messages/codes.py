"""Error codes: why something was refused or a connection ended, in one word.

The number is on the wire, the name in logs and in SPEC.md. What a code means, and what a node
does that gets it, is said here once; SPEC.md's table is made from it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ErrorCode(IntEnum):
    """Why; `name_text` is what people and programs read."""

    CLOSING = 0
    PROTOCOL_ERROR = 1
    LIMIT_EXCEEDED = 2
    VERSION_MISMATCH = 3
    WRONG_FLEET = 4
    BAD_PROOF = 5
    DENIED = 6
    NOT_ENTITLED = 7
    NOT_READY = 8
    BUSY = 9
    CANCELLED = 10
    UNKNOWN_DOCUMENT = 16
    UNKNOWN_MANIFEST = 17
    UNKNOWN_SPAN = 18
    CHUNK_CORRUPT = 19
    TOKEN_INVALID = 32
    TOKEN_EXPIRED = 33
    TOKEN_USED = 34
    TOKEN_WRONG_ROLE = 35
    INTERNAL = 48
    CONNECTION_LOST = 254
    OTHER = 255

    @property
    def name_text(self) -> str:
        """The snake_case name."""
        return self.name.lower()

    @classmethod
    def of(cls, number: int) -> ErrorCode:
        """The code with this number; one of a newer version reads as OTHER."""
        try:
            return cls(number)
        except ValueError:
            return cls.OTHER


MEANINGS: Final[dict[ErrorCode, str]] = {
    ErrorCode.CLOSING: "The sender is done or shutting down; connecting again is fine.",
    ErrorCode.PROTOCOL_ERROR: "The other side broke this specification.",
    ErrorCode.LIMIT_EXCEEDED: "A size or a count was over its limit.",
    ErrorCode.VERSION_MISMATCH: "There is no version that both sides speak: upgrade one of them.",
    ErrorCode.WRONG_FLEET: "The two sides belong to different fleets.",
    ErrorCode.BAD_PROOF: "The facts shown do not hold, or do not fit the key of the connection.",
    ErrorCode.DENIED: "The node, or the manifest asked for, is on the denied list.",
    ErrorCode.NOT_ENTITLED: "Nothing that was shown entitles this node to what it asks for.",
    ErrorCode.NOT_READY: "The other side cannot answer yet; asking again later may work.",
    ErrorCode.BUSY: "No slot is free; ask again after a while, or ask another peer.",
    ErrorCode.CANCELLED: "The request was cancelled before it was answered.",
    ErrorCode.UNKNOWN_DOCUMENT: "The document, list, page or leaf is not held here.",
    ErrorCode.UNKNOWN_MANIFEST: "The manifest or piece is not held here.",
    ErrorCode.UNKNOWN_SPAN: "The span, or a chunk of it, is not held here.",
    ErrorCode.CHUNK_CORRUPT: "The bytes are held but rotten; they are being repaired.",
    ErrorCode.TOKEN_INVALID: "The join token is unknown or its secret is wrong.",
    ErrorCode.TOKEN_EXPIRED: "The join token is past its date: make a new one.",
    ErrorCode.TOKEN_USED: "The join token was used by another node: make a new one.",
    ErrorCode.TOKEN_WRONG_ROLE: "The join token is for another role.",
    ErrorCode.INTERNAL: "The other side failed; its log says why.",
    ErrorCode.CONNECTION_LOST: "Never sent: the connection ended without a word.",
    ErrorCode.OTHER: "Never sent: a code that this version does not know.",
}

_AGAIN: Final = "Connects again after its usual wait."
_PERSON: Final = "Tells a person; trying again changes nothing."

REACTIONS: Final[dict[ErrorCode, str]] = {
    ErrorCode.CLOSING: _AGAIN,
    ErrorCode.PROTOCOL_ERROR: "Connects again after a wait that grows; one side has a defect.",
    ErrorCode.LIMIT_EXCEEDED: "As `protocol_error`; for a request, asks for less or elsewhere.",
    ErrorCode.VERSION_MISMATCH: "Tells a person, and connects again after a wait that grows.",
    ErrorCode.WRONG_FLEET: "Tells a person, and connects again after a wait that grows.",
    ErrorCode.BAD_PROOF: "Connects again and proves itself under the newest Grants that it can get;"
    " for `Entitle`, shows the newest entry.",
    ErrorCode.DENIED: "Ends the use of this peer; connects again after a wait that grows, since a"
    " later head may think otherwise.",
    ErrorCode.NOT_ENTITLED: "Shows its newest entry, at once if its leaf has changed and else after"
    " a wait that grows; meanwhile it asks others.",
    ErrorCode.NOT_READY: "Asks again after a wait that grows; meanwhile it asks others.",
    ErrorCode.BUSY: "Asks again after a wait that grows; meanwhile it asks others.",
    ErrorCode.CANCELLED: "Nothing: it has asked for this.",
    ErrorCode.UNKNOWN_DOCUMENT: "Asks others; asks again when the peer may have caught up.",
    ErrorCode.UNKNOWN_MANIFEST: "Asks others; asks again after a wait that grows.",
    ErrorCode.UNKNOWN_SPAN: "Asks others until the peer says that it holds the span.",
    ErrorCode.CHUNK_CORRUPT: "Asks others until the peer says that it holds the span.",
    ErrorCode.TOKEN_INVALID: _PERSON,
    ErrorCode.TOKEN_EXPIRED: _PERSON,
    ErrorCode.TOKEN_USED: _PERSON,
    ErrorCode.TOKEN_WRONG_ROLE: _PERSON,
    ErrorCode.INTERNAL: "Asks others; asks again after a wait that grows.",
    ErrorCode.CONNECTION_LOST: _AGAIN,
    ErrorCode.OTHER: "As `internal`.",
}
