"""The control socket's messages: a length, a JSON object, and descriptors beside it.

A message is a big-endian u32 length, then that many bytes of UTF-8 JSON holding one object. Up to
250 file descriptors may come with it (SCM_RIGHTS); they belong to the message whose bytes they
arrived with, which holds because a reader never asks the kernel for more than the rest of the
message it is in. `MessageReader` is that reader without the socket, so that the daemon (trio) and
the client (blocking) read alike. Who may ask what is the server's business.

Every descriptor that arrives is owned here until `Message.descriptors` is taken over: whatever
goes wrong, it is closed.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import re
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

HEADER: Final = struct.Struct(">I")
MAX_REQUEST_BYTES: Final = 1 << 20
# The daemon's word is bounded more widely: a fleet of 10,000 nodes has to fit into one answer.
MAX_ANSWER_BYTES: Final = 32 << 20
MAX_DESCRIPTORS: Final = 250  # Linux passes at most 253 (SCM_MAX_FD) in one call
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
RECEIVE_BYTES: Final = 256 * 1024
RECEIVE_FLAGS: Final = socket.MSG_CMSG_CLOEXEC

_SURROGATE: Final = re.compile(r"\\u[dD]")

Ancillary = Sequence[tuple[int, int, bytes]]


class WireError(Exception):
    """The other end broke the format; the connection cannot go on. The text is a sentence."""


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close every one of them, whatever has happened to some."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


@dataclass
class Message:
    """One message as it came, with the descriptors that came with it."""

    body: dict[str, Any]
    descriptors: list[int] = field(default_factory=list)

    def take_descriptors(self) -> tuple[int, ...]:
        """Hand the descriptors over: from now on the caller closes them."""
        taken = tuple(self.descriptors)
        self.descriptors.clear()
        return taken

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        close_descriptors(self.descriptors)
        self.descriptors.clear()


def encode_message(body: dict[str, Any], *, max_bytes: int = MAX_REQUEST_BYTES) -> bytes:
    """The bytes of one message. Raises WireError if it is over `max_bytes`."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # File names may hold what UTF-8 cannot say; an answer must go out all the same.
    payload = text.encode("utf-8", "replace")
    if len(payload) > max_bytes:
        raise WireError(f"a message of {len(payload)} bytes is over the limit of {max_bytes} bytes")
    return HEADER.pack(len(payload)) + payload


def descriptors_to_send(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """The ancillary data that passes `descriptors`. Raises WireError for too many."""
    if len(descriptors) > MAX_DESCRIPTORS:
        raise WireError(
            f"{len(descriptors)} descriptors in one message; the limit is {MAX_DESCRIPTORS}"
        )
    if not descriptors:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def received_descriptors(ancillary: Ancillary, flags: int) -> list[int]:
    """The descriptors in what recvmsg returned.

    Raises WireError, with everything closed, if the kernel had to cut the ancillary data: some
    descriptors are then lost, and which ones nobody can tell.
    """
    descriptors: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            descriptors.extend(numbers)
    if flags & socket.MSG_CTRUNC:
        close_descriptors(descriptors)
        raise WireError("descriptors were lost: more came at once than a message may have")
    return descriptors


def _decode(payload: bytes | bytearray) -> dict[str, Any]:
    try:
        text = payload.decode("utf-8")
        body = json.loads(text, parse_constant=_refuse_constant)
        if _SURROGATE.search(text):
            # Half a surrogate pair is valid JSON and no text: it cannot be written anywhere.
            json.dumps(body, ensure_ascii=False).encode("utf-8")
    except (UnicodeError, ValueError, RecursionError) as error:
        raise WireError("the message is not JSON in UTF-8") from error
    if not isinstance(body, dict):
        raise WireError("the message is not a JSON object")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class MessageReader:
    """Puts messages together from what a stream socket yields; does no I/O itself.

    Ask the socket for at most `wanted_bytes` and give `receive` what came. One of the two limits
    of a message, its bytes, is checked before anything is kept; the other, its descriptors, as
    they arrive.
    """

    def __init__(self, *, max_bytes: int = MAX_REQUEST_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._length: int | None = None
        self._descriptors: list[int] = []

    @property
    def wanted_bytes(self) -> int:
        """How many bytes may be read next without reading into another message."""
        if self._length is None:
            return HEADER.size - len(self._buffer)
        return min(self._length - len(self._buffer), RECEIVE_BYTES)

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._length is not None or bool(self._buffer)

    def receive(self, data: bytes, descriptors: Iterable[int] = ()) -> Message | None:
        """Take what came (never empty); a message once it is whole. Raises WireError."""
        self._descriptors.extend(descriptors)
        if len(self._descriptors) > MAX_DESCRIPTORS:
            raise WireError(f"more than {MAX_DESCRIPTORS} descriptors came with one message")
        self._buffer += data
        if self._length is None:
            if len(self._buffer) < HEADER.size:
                return None
            (length,) = HEADER.unpack(self._buffer)
            if length > self._max_bytes:
                raise WireError(
                    f"a message claims {length} bytes; the limit is {self._max_bytes} bytes"
                )
            self._length = length
            self._buffer.clear()
        if len(self._buffer) < self._length:
            return None
        message = Message(_decode(self._buffer), self._descriptors)
        self._buffer = bytearray()
        self._length = None
        self._descriptors = []
        return message

    def close(self) -> None:
        """Close the descriptors of a message that never became whole."""
        close_descriptors(self._descriptors)
        self._descriptors = []
