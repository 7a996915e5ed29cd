"""The encoding: one value, one byte string, and no byte string that costs more than itself."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import Fields, Value, open_document, pack, unpack
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import FleetId
from protocol.limits import MAX_NESTING
from tests.unit.protocol.arbitrary import hostile_bytes, mutations, only_protocol_errors, values


def read(data: bytes) -> Value:
    return unpack(data, max_bytes=1 << 20)


@given(values)
def test_what_is_packed_is_unpacked_alike(value: Value) -> None:
    assert read(pack(value)) == value


@given(hostile_bytes(pack(["a", 1, [b"x" * 40, None, -5], "é", 1 << 40])))
def test_bytes_that_are_accepted_are_the_only_encoding_of_their_value(data: bytes) -> None:
    try:
        value = read(data)
    except FormatError:
        return
    assert pack(value) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",
        b"\x91",
        b"\x92\x00",
        b"\xcc\x05",  # 5 in two bytes
        b"\xcd\x00\x01",
        b"\xcf\x00\x00\x00\x00\x00\x00\x00\x01",
        b"\xd0\x05",
        b"\xd0",
        b"\xd9\x01a",  # a short text in the long form
        b"\xdc\x00\x01\x00",
        b"\xdd\x00\x00\x00\x01\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\xc5\x00\x01a",
        b"\xc4\x05abc",
        b"\xc1",
        b"\xa1\xff",  # not UTF-8
        b"\xa3\xed\xa0\x80",  # a surrogate
        b"\xca\x00\x00\x00\x00",
        b"\xcb" + bytes(8),
        b"\x80",
        b"\x81\xa1a\x01",
        b"\x82\xa1a\x01\xa1a\x02",  # a map with a key twice
        b"\xc7\x00\x05",  # an empty extension, which msgpack takes for a tuple
        b"\xd4\x01\x00",
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
    ],
)
def test_what_is_outside_the_subset_or_not_the_shortest_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        read(data)


@pytest.mark.parametrize("value", [1.5, {"a": 1}, {1}, 1 << 64, -(1 << 63) - 1, "\ud800"])
def test_what_is_outside_the_subset_cannot_be_packed(value: object) -> None:
    with pytest.raises(FormatError):
        pack(value)  # type: ignore[arg-type]


def test_nesting_ends_where_the_limit_says() -> None:
    deepest: Value = []
    for _ in range(MAX_NESTING - 1):
        deepest = [deepest]
    assert read(pack(deepest)) == deepest
    with pytest.raises(FormatError, match="deeper"):
        pack([deepest])
    with pytest.raises(FormatError, match="deeper"):
        read(bytes(msgpack.packb([deepest])))


def test_headers_that_all_claim_the_maximum_cost_no_memory() -> None:
    data = b"\xdd\x00\x0f\xff\xf0" * 1000
    data += b"\xc0" * ((1 << 20) - len(data))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_more_bytes_than_allowed_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(LimitExceeded):
        unpack(b"\xc1" * 11, max_bytes=10)


def test_a_document_ignores_fields_that_a_newer_version_added() -> None:
    fields = open_document(pack(["thing", 1, 5, "new"]), "thing", max_bytes=100)
    assert fields.integer("five") == 5


@pytest.mark.parametrize("head", [["other", 1], ["thing", 2], ["thing", True], ["thing"], "thing"])
def test_a_document_of_another_type_or_format_is_refused(head: Value) -> None:
    with pytest.raises(FormatError):
        open_document(pack(head), "thing", max_bytes=100)


def test_a_missing_or_mistyped_field_is_named() -> None:
    with pytest.raises(FormatError, match="thing lacks its field size"):
        Fields([], "thing").integer("size")
    with pytest.raises(FormatError, match="size is not an integer"):
        Fields([True], "thing").integer("size")
    with pytest.raises(LimitExceeded, match="size"):
        Fields([11], "thing").integer("size", high=10)
    with pytest.raises(LimitExceeded, match="name"):
        Fields(["éé"], "thing").text("name", max_bytes=3)
    with pytest.raises(FormatError, match="FleetId"):
        Fields([b"short"], "thing").identity("fleet", FleetId)
    with pytest.raises(LimitExceeded, match="parts"):
        Fields([[b"a", b"b"]], "thing").binaries("parts", max_items=1, max_bytes=1)
    with pytest.raises(LimitExceeded, match="parts"):
        Fields([[b"ab"]], "thing").binaries("parts", max_items=1, max_bytes=1)
    with pytest.raises(FormatError, match="parts"):
        Fields([[1]], "thing").binaries("parts", max_items=1, max_bytes=1)


@given(values, st.data())
def test_no_mutation_of_a_valid_encoding_breaks_the_decoder(
    value: Value, data: st.DataObject
) -> None:
    only_protocol_errors(read, data.draw(mutations(pack(value))))
