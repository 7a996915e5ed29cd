"""Cuts what is to be sent over TLS into batches that OpenSSL takes in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from protocol.frames import Buffer

RECORD_BYTES: Final = 16_384
"""The most plaintext that one TLS record holds (RFC 8446, 5.1)."""
BATCH_BYTES: Final = 256 * 1024
"""Read from, or written to, the socket at once. Larger batches leave the CPU's cache: slower."""


def batches(parts: Iterable[Buffer]) -> Iterator[Buffer]:
    """The same bytes in full records, which OpenSSL cuts out of batches of many.

    Headers ride along with the payload after them.
    """
    small = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        if small:
            head = RECORD_BYTES - len(small)
            small += view[:head]
            view = view[head:]
            if len(small) < RECORD_BYTES:
                continue
            yield small
            small = bytearray()
        whole = len(view) - len(view) % RECORD_BYTES
        for start in range(0, whole, BATCH_BYTES):
            yield view[start : min(start + BATCH_BYTES, whole)]
        small += view[whole:]
    if small:
        yield small
