"""Frames: how messages are cut out of a stream of bytes.

A frame is a header of eight bytes (payload length, type, flags, reserved) and the payload. This
module knows lengths and bounds, nothing about what a payload means. A payload that lies within
one piece of received data is handed on as a view of it; one that arrives in pieces is copied
once, into a buffer of its exact length, so that a span of 1 MiB costs at most one copy and a
slow sender never costs quadratic time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from protocol.errors import LimitExceeded
from protocol.limits import MAX_FRAME_BYTES

Buffer: TypeAlias = "bytes | bytearray | memoryview"

HEADER: Final = struct.Struct(">IBBH")
HEADER_BYTES: Final = HEADER.size

FLAG_OPTIONAL: Final = 0x01
"""Whoever does not know the type skips the frame instead of ending the connection."""


@dataclass(frozen=True, slots=True)
class FrameRule:
    """What the reader does with a frame whose header says this type, decided before its payload."""

    max_bytes: int
    skip: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame; `payload` is read-only and may be a view of the received data."""

    type: int
    flags: int
    payload: memoryview


FrameJudge: TypeAlias = Callable[[int, int], FrameRule]
"""Called with (type, flags) of each header; raises ProtocolError for what is not acceptable now."""


def accept_all(frame_type: int, flags: int) -> FrameRule:  # noqa: ARG001 - the shape of a judge
    """Any type, up to the overall limit."""
    return FrameRule(MAX_FRAME_BYTES)


def encode_frame(frame_type: int, *parts: Buffer, flags: int = 0) -> list[Buffer]:
    """The header and the parts of one frame, not joined; raises LimitExceeded when too long."""
    length = sum(len(part) for part in parts)
    if length > MAX_FRAME_BYTES:
        raise LimitExceeded(f"a frame of {length} bytes where at most {MAX_FRAME_BYTES} may be")
    return [HEADER.pack(length, frame_type, flags, 0), *parts]


class FrameReader:
    """Cuts received bytes into frames, one at a time.

    `judge` is asked at every header, after the frames before it were taken, so that a limit may
    depend on what an earlier frame of the same data has changed. Memory: one frame, within the
    limit that its type has, and the data last given.
    """

    def __init__(self, judge: FrameJudge = accept_all) -> None:
        self._judge = judge
        self._data = memoryview(b"")
        self._lasting = True
        self._header = bytearray()
        self._type = 0
        self._flags = 0
        self._length = -1  # -1: the header is not complete
        self._skip = False
        self._payload = bytearray()
        self._filled = 0

    @property
    def in_frame(self) -> bool:
        """True when a frame has begun and not ended."""
        return self._length >= 0 or bool(self._header) or len(self._data) > 0

    def feed(self, data: Buffer) -> None:
        """Give received bytes; other buffers than `bytes` may change once `next_frame` gave None.

        Payloads within `bytes` become views of them, from other buffers they are copied.
        """
        if len(self._data):
            # Not used up: that happens only to callers that stop asking for frames.
            data = b"".join((self._data, data))
        self._data = memoryview(data)
        self._lasting = isinstance(data, bytes)

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None when more bytes are needed.

        Raises what the judge raises, and LimitExceeded for a length over its limit, as soon as
        the header is there. The reader is of no use after that.
        """
        while len(self._data) or self._length == 0:
            if self._length < 0 and not self._read_header():
                return None
            if self._skip:
                step = min(self._length, len(self._data))
                self._data = self._data[step:]
                self._length -= step
                if self._length == 0:
                    self._length = -1
                continue
            payload = self._read_payload()
            if payload is None:
                return None
            self._length = -1
            return Frame(self._type, self._flags, payload)
        return None

    def receive_bytes(self, data: Buffer) -> list[Frame]:
        """Feed `data` and take every whole frame."""
        self.feed(data)
        frames = []
        while (frame := self.next_frame()) is not None:
            frames.append(frame)
        return frames

    def _read_header(self) -> bool:
        step = min(HEADER_BYTES - len(self._header), len(self._data))
        self._header += self._data[:step]
        self._data = self._data[step:]
        if len(self._header) < HEADER_BYTES:
            return False
        length, self._type, self._flags, _reserved = HEADER.unpack(self._header)
        self._header.clear()
        rule = self._judge(self._type, self._flags)
        if length > rule.max_bytes:
            raise LimitExceeded(
                f"a frame of type {self._type} with {length} bytes where at most"
                f" {rule.max_bytes} are allowed"
            )
        self._length = length
        self._skip = rule.skip
        return True

    def _read_payload(self) -> memoryview | None:
        if not self._filled and len(self._data) >= self._length:
            payload = self._data[: self._length]
            self._data = self._data[self._length :]
            return payload if self._lasting else memoryview(bytes(payload))
        if not len(self._data):
            return None
        if not self._filled:
            # Zeroed pages are not touched before they are filled, so a header alone costs nothing.
            self._payload = bytearray(self._length)
        step = min(self._length - self._filled, len(self._data))
        self._payload[self._filled : self._filled + step] = self._data[:step]
        self._filled += step
        self._data = self._data[step:]
        if self._filled < self._length:
            return None
        whole, self._payload, self._filled = self._payload, bytearray(), 0
        return memoryview(whole).toreadonly()
