"""The one encoding: a strict, canonical subset of msgpack.

Only nil, booleans, 64-bit integers, byte strings, UTF-8 text and arrays; no maps, floats or
extension types from outside. A value has exactly one encoding (the shortest), which `unpack`
enforces by encoding again, so that two different byte strings never mean the same document.
"""

from __future__ import annotations

from typing import Final, TypeAlias, TypeVar, cast

import msgpack

from protocol.errors import FormatError, LimitExceeded
from protocol.limits import MAX_NESTING

Value: TypeAlias = "bool | int | bytes | str | list[Value] | tuple[Value, ...] | None"

_Bytes = TypeVar("_Bytes", bound=bytes)


def pack(value: Value) -> bytes:
    """Encode `value`; raises FormatError for anything outside the subset."""
    _check(value, MAX_NESTING)
    try:
        return msgpack.packb(value, use_bin_type=True, strict_types=False)
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError) as error:
        raise FormatError(f"cannot be encoded: {error}") from error


def unpack(data: bytes | bytearray | memoryview, *, max_bytes: int) -> Value:
    """Decode exactly one value that fills `data`.

    Raises LimitExceeded when `data` is longer than `max_bytes`, FormatError when it is not the
    canonical encoding of one value. Memory stays within a small multiple of `len(data)`.
    """
    if len(data) > max_bytes:
        raise LimitExceeded(f"{len(data)} bytes where at most {max_bytes} are allowed")
    raw = bytes(data)
    _scan(raw)
    try:
        value = msgpack.unpackb(raw, raw=False, use_list=True)
        again = msgpack.packb(value, use_bin_type=True)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise FormatError(f"not a valid encoding: {type(error).__name__}") from error
    if again != raw:
        raise FormatError("not the canonical encoding")
    return cast("Value", value)


def _check(value: object, depth: int) -> None:
    if isinstance(value, list | tuple):
        if depth == 0:
            raise FormatError(f"nested deeper than {MAX_NESTING}")
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise FormatError("integer does not fit 64 bits")
    elif value is not None and not isinstance(value, bytes | str):
        raise FormatError(f"{type(value).__name__} is not allowed")


_REFUSED: Final = 0
_FIXED_ARRAY: Final = -10
_LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_INTEGER_BYTES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def _step(first: int) -> int:
    """What the scan does at a value's first byte.

    Positive: the value's whole length. -1, -2, -4: a byte string or text whose length takes so
    many bytes. -10, -12, -14: an array whose count is in the byte itself or in 2 or 4 more.
    0: maps, floats, extensions and the unused byte are refused.
    """
    if first <= 0x7F or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return 1
    if 0x90 <= first <= 0x9F:
        return _FIXED_ARRAY
    if 0xA0 <= first <= 0xBF:
        return 1 + (first & 0x1F)
    if first in _LENGTH_BYTES:
        return -_LENGTH_BYTES[first]
    if first in _INTEGER_BYTES:
        return 1 + _INTEGER_BYTES[first]
    return {0xDC: -12, 0xDD: -14}.get(first, _REFUSED)


_STEPS: Final = tuple(_step(first) for first in range(256))


def _scan(raw: bytes) -> None:
    """Walk over the structure without building anything; raises FormatError.

    msgpack allocates each array when it sees the count, so a few nested headers that all claim
    as much as the limit allows would cost gigabytes, and it takes an empty extension for a
    tuple. After this walk every count is known to be there in full.
    """
    end = len(raw)
    position = 0
    left = 1
    outer: list[int] = []
    while True:
        while left == 0:
            if not outer:
                if position != end:
                    raise FormatError("bytes are left over or missing at the end")
                return
            left = outer.pop()
        if position >= end:
            raise FormatError("cut short")
        left -= 1
        step = _STEPS[raw[position]]
        if step > 0:
            position += step
        elif step >= -4 and step != _REFUSED:
            start = position + 1 - step
            position = start + int.from_bytes(raw[position + 1 : start], "big")
        elif step != _REFUSED:
            if step == _FIXED_ARRAY:
                count = raw[position] & 0x0F
                position += 1
            else:
                start = position - step - 9
                count = int.from_bytes(raw[position + 1 : start], "big")
                position = start
            outer.append(left)
            if len(outer) > MAX_NESTING:
                raise FormatError(f"nested deeper than {MAX_NESTING}")
            left = count
        else:
            raise FormatError("maps, floats and extensions are not allowed")


def open_document(
    data: bytes | bytearray | memoryview, document_type: str, *, max_bytes: int
) -> Fields:
    """The fields of `[document_type, 1, fields...]`; raises FormatError or LimitExceeded.

    The number is the format's; it changes only when an older reader must not read on, so
    another one is refused. New fields are added at the end without touching it.
    """
    fields = Fields(unpack(data, max_bytes=max_bytes), document_type)
    fields.constant("type", document_type)
    fields.constant("format", 1)
    return fields


class Fields:
    """Takes the fields of a decoded array one by one, checking each.

    Documents grow only at the end: fields that a newer version added are never looked at, while
    a missing or mistyped one raises FormatError naming the document and the field.
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

    def identity(self, name: str, kind: type[_Bytes]) -> _Bytes:
        """A typed identity or key, which checks its own length."""
        return kind(self.binary(name, max_bytes=32))

    def identities(self, name: str, kind: type[_Bytes], *, max_items: int) -> tuple[_Bytes, ...]:
        """An array of typed identities."""
        return tuple(kind(item) for item in self.binaries(name, max_items=max_items, max_bytes=32))

    def binaries(self, name: str, *, max_items: int, max_bytes: int) -> tuple[bytes, ...]:
        """An array of byte strings of at most `max_bytes` each."""
        taken = []
        for item in self.array(name, max_items=max_items):
            if not isinstance(item, bytes):
                raise FormatError(f"{self._what}: {name} holds something else than byte strings")
            if len(item) > max_bytes:
                raise LimitExceeded(f"{self._what}: {name} holds more than {max_bytes} bytes")
            taken.append(item)
        return tuple(taken)

    def next_is_nil(self) -> bool:
        """Whether the next field is there and is nil, which is then taken."""
        if self._next < len(self._items) and self._items[self._next] is None:
            self._next += 1
            return True
        return False

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
