"""A bulk lane as two pure machines: what is sent through it, and what is received.

A lane is a second TCP connection beside an admitted one, for the answers to requests for spans
alone. TLS cuts everything into records of 16 KiB; here one record holds a whole span, so that the
work per byte is the cipher's and the copy's. Both sides have sent 32 random bytes inside TLS; the
keys follow from these, so who was never admitted can neither make nor read a record, and a record
that was changed, dropped, repeated or sent back to its sender does not open. Nothing of a record
counts before its tag was verified. Opening a lane and moving its bytes is `archid.net`'s.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.connection_states import Side
from protocol.errors import FormatError, LimitExceeded, TrustError
from protocol.frames import HEADER, HEADER_BYTES, Buffer
from protocol.ids import NodeId, PieceId
from protocol.messages.content import MAX_SPAN_BYTES, SPAN_HEADER, SpanAnswer
from protocol.messages.lanes import LANE_ID_BYTES, LaneProof
from protocol.messages.session import SMALL, Refused
from protocol.messages.swarm import Picked
from protocol.messages.wire import MAX_NUMBER

PREAMBLE: Final = b"archidL1"
"""What a lane begins with, before the lane's id. TLS begins with the byte 22."""
PREAMBLE_BYTES: Final = len(PREAMBLE) + LANE_ID_BYTES

LENGTH: Final = struct.Struct(">I")
TAG_BYTES: Final = 16
REKEY_BYTES: Final = 1 << 34
"""Sealed under one key: far below where AES-GCM's bounds begin to matter (RFC 8446, 5.5)."""
REKEY_RECORDS: Final = 1 << 24

HEAD_BYTES: Final = HEADER_BYTES + SPAN_HEADER.size
MAX_HEAD_RECORD_BYTES: Final = HEADER_BYTES + SMALL + TAG_BYTES
MAX_RECORD_BYTES: Final = MAX_SPAN_BYTES + TAG_BYTES
_SPAN_RECORDS_BYTES: Final = LENGTH.size + HEAD_BYTES + TAG_BYTES + LENGTH.size + MAX_RECORD_BYTES
SPAN_ROOM_BYTES: Final = LENGTH.size + MAX_HEAD_RECORD_BYTES + _SPAN_RECORDS_BYTES
"""What the largest span takes on a lane, with the message before it that says what was picked."""

_INFO: Final = {Side.CLIENT: b"archid v1 lane client", Side.SERVER: b"archid v1 lane server"}
_NEXT_KEY: Final = b"archid v1 lane next key"
_SMALL_KINDS: Final[dict[int, type[LaneProof | Picked | Refused]]] = {
    kind.TYPE: kind for kind in (LaneProof, Picked, Refused)
}


class LaneBroken(TrustError):
    """A record does not open: the lane is of no use any more, nor is its connection."""


def preamble(lane: bytes) -> bytes:
    """The first bytes of a lane, which say whose it is."""
    return PREAMBLE + lane


def lane_of(data: bytes) -> bytes:
    """The id in a preamble. Raises FormatError."""
    if len(data) != PREAMBLE_BYTES or not data.startswith(PREAMBLE):
        raise FormatError("a connection begins neither as TLS nor as a lane")
    return data[len(PREAMBLE) :]


class LaneSecret(NamedTuple):
    """What both ends know of a lane that is about to be opened."""

    lane: bytes
    client: NodeId
    server: NodeId
    client_random: bytes
    server_random: bytes

    def key(self, sender: Side) -> bytes:
        """The key that `sender` seals with, by HKDF-SHA256 (RFC 5869)."""
        kdf = HKDF(SHA256(), 32, self.lane, _INFO[sender] + self.client + self.server)
        return kdf.derive(self.client_random + self.server_random)

    def __repr__(self) -> str:
        return f"<LaneSecret {self.lane.hex()}>"


class _Cipher:
    """AES-256-GCM with a counter as nonce, under keys that follow one another."""

    def __init__(self, key: bytes, *, rekey_bytes: int, rekey_records: int) -> None:
        self._key = key
        self._aead = AESGCM(key)
        self._records = 0
        self._bytes = 0
        self._rekey_bytes = rekey_bytes
        self._rekey_records = rekey_records

    def next_nonce(self, size_bytes: int) -> bytes:
        """For a record of so many bytes; a record that would go over a bound is the next key's."""
        if (
            self._records >= self._rekey_records or self._bytes + size_bytes > self._rekey_bytes
        ) and self._records:
            self._key = HKDF(SHA256(), 32, None, _NEXT_KEY).derive(self._key)
            self._aead = AESGCM(self._key)
            self._records = self._bytes = 0
        nonce = self._records.to_bytes(12, "big")
        self._records += 1
        self._bytes += size_bytes
        return nonce

    def seal_into(self, data: Buffer, room: memoryview) -> int:
        """Write one record; returns how long it is."""
        length = len(data) + TAG_BYTES
        LENGTH.pack_into(room, 0, length)
        end = LENGTH.size + length
        nonce = self.next_nonce(length)
        self._aead.encrypt_into(nonce, data, bytes(room[: LENGTH.size]), room[LENGTH.size : end])
        return end

    def open_into(self, sealed: Buffer, room: memoryview) -> memoryview:
        """The plaintext, in `room`. Raises LaneBroken; what `room` holds then is of no meaning."""
        plain = room[: len(sealed) - TAG_BYTES]
        nonce = self.next_nonce(len(sealed))
        try:
            self._aead.decrypt_into(nonce, sealed, LENGTH.pack(len(sealed)), plain)
        except InvalidTag:
            raise LaneBroken("a record of a lane was not sealed by its other end") from None
        return plain


class LaneOutput:
    """Seals what one side sends; its records must go out in the order they were sealed."""

    def __init__(
        self,
        secret: LaneSecret,
        side: Side,
        *,
        rekey_bytes: int = REKEY_BYTES,
        rekey_records: int = REKEY_RECORDS,
    ) -> None:
        self._cipher = _Cipher(
            secret.key(side), rekey_bytes=rekey_bytes, rekey_records=rekey_records
        )

    def message(self, message: LaneProof | Picked | Refused) -> bytes:
        """One record with a small message. Raises FormatError or LimitExceeded."""
        frame = b"".join(message.encode())
        room = bytearray(LENGTH.size + len(frame) + TAG_BYTES)
        self._cipher.seal_into(frame, memoryview(room))
        return bytes(room)

    def span(self, answer: SpanAnswer, room: memoryview) -> memoryview:
        """The records of a span, in `room`, which has SPAN_ROOM_BYTES. Raises as `message`."""
        header, head, data = answer.encode()
        end = self._cipher.seal_into(b"".join((header, head)), room)
        if len(data):
            end += self._cipher.seal_into(data, room[end:])
        return room[:end]


@dataclass(frozen=True, slots=True)
class SpanHead:
    """A span is coming: what it answers, and how many bytes it has."""

    request: int
    piece: PieceId
    n: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SpanData:
    """The bytes of a span, sealed by the other end; `data` is a view of the caller's room."""

    head: SpanHead
    data: memoryview


LaneEvent: TypeAlias = "LaneProof | Picked | Refused | SpanHead | SpanData"


class LaneInput:
    """Opens what the other side sends, record by record.

    For each record `begin` is given its first LENGTH.size bytes and says how many follow, and
    `take` is given these. Bounds are checked before anything is read for them. After an error
    the machine is of no use.
    """

    def __init__(
        self,
        secret: LaneSecret,
        side: Side,
        *,
        rekey_bytes: int = REKEY_BYTES,
        rekey_records: int = REKEY_RECORDS,
    ) -> None:
        """`side` is this side's: what comes was sealed by the other."""
        self._cipher = _Cipher(
            secret.key(side.other), rekey_bytes=rekey_bytes, rekey_records=rekey_records
        )
        self._proven = False
        self._head: SpanHead | None = None

    @property
    def proven(self) -> bool:
        """Whether the other end has shown that it has the keys."""
        return self._proven

    def begin(self, prefix: Buffer) -> int:
        """How many bytes follow. Raises LimitExceeded."""
        [length] = LENGTH.unpack(prefix)
        head = self._head
        if head is not None and length != head.size_bytes + TAG_BYTES:
            raise LimitExceeded(
                f"{length} bytes on a lane where a span of {head.size_bytes} was to come"
            )
        if head is None and not HEADER_BYTES + TAG_BYTES <= length <= MAX_HEAD_RECORD_BYTES:
            raise LimitExceeded(f"a record of {length} bytes on a lane begins no message")
        return int(length)

    def take(self, sealed: Buffer, room: memoryview) -> LaneEvent:
        """What the record says. Raises LaneBroken, FormatError, LimitExceeded."""
        plain = self._cipher.open_into(sealed, room)
        if self._head is not None:
            event: LaneEvent = SpanData(self._head, plain)
            self._head = None
            return event
        length, kind, _flags, _reserved = HEADER.unpack_from(plain)
        payload = plain[HEADER_BYTES:]
        if not self._proven and kind != LaneProof.TYPE:
            raise FormatError("a lane has to begin with LaneProof")
        if kind == SpanAnswer.TYPE:
            return self._span(length, payload)
        message = _SMALL_KINDS.get(kind)
        if message is None or length != len(payload):
            raise FormatError(f"a message of type {kind} does not belong on a lane")
        if message is LaneProof and self._proven:
            raise FormatError("LaneProof was sent twice")
        self._proven = True
        return message.decode_payload(bytes(payload))

    def _span(self, length: int, payload: memoryview) -> LaneEvent:
        if len(payload) != SPAN_HEADER.size or length > SpanAnswer.MAX_BYTES:
            raise LimitExceeded("a SpanAnswer on a lane has a wrong head or is too long")
        request, piece, n = SPAN_HEADER.unpack(payload)
        size_bytes = length - SPAN_HEADER.size
        if not 1 <= request <= MAX_NUMBER or n > 65535 or size_bytes < 0:
            raise LimitExceeded("SpanAnswer: request, span number or length is out of range")
        head = SpanHead(request, PieceId(piece), n, size_bytes)
        if not size_bytes:
            return SpanData(head, memoryview(b""))
        self._head = head
        return head
