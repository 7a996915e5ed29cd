"""The one encoding: a strict, canonical subset of msgpack.

Only nil, booleans, 64-bit integers, byte strings, UTF-8 text and arrays; no maps, floats or
extension types from outside. A value has exactly one encoding (the shortest), which `unpack`
enforces by encoding again, so that two different byte strings never mean the same document.
"""

from __future__ import annotations

from typing import Final, TypeAlias, cast

import msgpack

from protocol.errors import FormatError, LimitExceeded

Value: TypeAlias = "bool | int | bytes | str | list[Value] | tuple[Value, ...] | None"

MAX_DEPTH: Final = 16


def pack(value: Value) -> bytes:
    """Encode `value`; raises FormatError for anything outside the subset."""
    _check(value, MAX_DEPTH)
    try:
        return msgpack.packb(value, use_bin_type=True, strict_types=False)
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError) as error:
        raise FormatError(f"cannot be encoded: {error}") from error


def unpack(data: bytes | bytearray | memoryview, *, max_bytes: int) -> Value:
    """Decode exactly one value that fills `data`.

    Raises LimitExceeded when `data` is longer than `max_bytes`, FormatError when it is not the
    canonical encoding of one value. Memory stays within a small multiple of `len(data)`, since
    every count in msgpack is checked against the bytes that are there.
    """
    if len(data) > max_bytes:
        raise LimitExceeded(f"{len(data)} bytes where at most {max_bytes} are allowed")
    raw = bytes(data)
    try:
        value = msgpack.unpackb(
            raw,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_str_len=len(raw),
            max_bin_len=len(raw),
            max_array_len=len(raw),
            max_map_len=0,
            max_ext_len=0,
        )
        _check(value, MAX_DEPTH)
        again = msgpack.packb(value, use_bin_type=True)
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise FormatError(f"not a valid encoding: {type(error).__name__}") from error
    if again != raw:
        raise FormatError("not the canonical encoding")
    return cast("Value", value)


def _check(value: object, depth: int) -> None:
    if depth < 0:
        raise FormatError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, list | tuple):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise FormatError("integer does not fit 64 bits")
    elif value is not None and not isinstance(value, bytes | str):
        raise FormatError(f"{type(value).__name__} is not allowed")


class Fields:
    """Takes the fields of a decoded array one by one, checking each.

    Documents grow only at the end: `done` ignores fields that a newer version added, while a
    missing or mistyped one raises FormatError naming the document and the field.
    """

    def __init__(self, value: Value, what: str) -> None:
        if not isinstance(value, list | tuple):
            raise FormatError(f"{what} is not an array")
        self._items = value
        self._next = 0
        self._what = what

    def _take(self, name: str) -> Value:
        if self._next >= len(self._items):
            raise FormatError(f"{self._what} lacks its field {name}")
        item = self._items[self._next]
        self._next += 1
        return item

    def integer(self, name: str, *, low: int = 0, high: int = (1 << 63) - 1) -> int:
        """An integer from `low` to `high`, both included."""
        item = self._take(name)
        if isinstance(item, bool) or not isinstance(item, int):
            raise FormatError(f"{self._what}: {name} is not an integer")
        if not low <= item <= high:
            raise LimitExceeded(f"{self._what}: {name} is outside {low} to {high}")
        return item

    def boolean(self, name: str) -> bool:
        item = self._take(name)
        if not isinstance(item, bool):
            raise FormatError(f"{self._what}: {name} is not a boolean")
        return item

    def text(self, name: str, *, max_bytes: int = 255) -> str:
        """UTF-8 text of at most `max_bytes` bytes."""
        item = self._take(name)
        if not isinstance(item, str):
            raise FormatError(f"{self._what}: {name} is not text")
        if len(item.encode()) > max_bytes:
            raise LimitExceeded(f"{self._what}: {name} is longer than {max_bytes} bytes")
        return item

    def binary(self, name: str, *, max_bytes: int) -> bytes:
        item = self._take(name)
        if not isinstance(item, bytes):
            raise FormatError(f"{self._what}: {name} is not a byte string")
        if len(item) > max_bytes:
            raise LimitExceeded(f"{self._what}: {name} is longer than {max_bytes} bytes")
        return item

    def array(self, name: str, *, max_items: int) -> list[Value]:
        item = self._take(name)
        if not isinstance(item, list | tuple):
            raise FormatError(f"{self._what}: {name} is not an array")
        if len(item) > max_items:
            raise LimitExceeded(f"{self._what}: {name} has more than {max_items} items")
        return list(item)

    def constant(self, name: str, expected: str | int) -> None:
        """A field that must have exactly this value."""
        item = self._take(name)
        if type(item) is not type(expected) or item != expected:
            raise FormatError(f"{self._what}: {name} is not {expected!r}")
