"""Hypothesis strategies for bytes that try to break a decoder, and how a decoder may fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgpack
from hypothesis import strategies as st

from protocol.errors import ProtocolError

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(1 << 63), max_value=(1 << 64) - 1)
    | st.binary(max_size=70)
    | st.text(max_size=20)
)

values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=8), max_leaves=30)
"""Values of the encoding."""

_foreign = st.recursive(
    _scalars | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=4)
        | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
    ),
    max_leaves=20,
)


def _mutate(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for position, removed, inserted in edits:
        start = position % (len(data) + 1)
        data = data[:start] + inserted + data[start + removed :]
    return data


def mutations(valid: bytes) -> st.SearchStrategy[bytes]:
    """`valid` with up to four stretches overwritten, removed or inserted."""
    edit = st.tuples(st.integers(0, 1 << 16), st.integers(0, 8), st.binary(max_size=8))
    return st.lists(edit, min_size=1, max_size=4).map(lambda edits: _mutate(valid, edits))


def hostile_bytes(valid: bytes) -> st.SearchStrategy[bytes]:
    """Noise, other msgpack, other values, and near misses of a valid document."""
    typed = st.lists(values, max_size=14).map(
        lambda fields: msgpack.packb([*msgpack.unpackb(valid)[:2], *fields])
    )
    return (
        st.binary(max_size=300)
        | _foreign.map(lambda value: bytes(msgpack.packb(value)))
        | typed
        | mutations(valid)
    )


def only_protocol_errors(decode: Callable[[bytes], object], data: bytes) -> None:
    """Decode, letting every exception through that is not a ProtocolError."""
    with contextlib.suppress(ProtocolError):
        decode(data)
