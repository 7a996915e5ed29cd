"""Cutting streams: the frozen cut points, however the bytes arrive."""

from __future__ import annotations

import ctypes
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfastcdc import FastCDC

from archid.errors import UsageError
from archid.store import chunking
from archid.store.chunking import ALIGNED_BYTES, Cutter, require_compiled_core
from protocol.chunking_profile import PROFILES
from protocol.ids import ChunkId
from protocol.limits import MAX_CHUNK_BYTES
from protocol.pieces import chunk_table
from tests.vectors import make_content

BASE = make_content.stream("arrival", 1_500_000)
STREAMS = {name: data for name, _, data in make_content.streams()}
FROZEN: dict[str, Any] = json.loads(make_content.CHUNKING.read_text())


class Trickle:
    """A reader that hands out its bytes in portions."""

    def __init__(self, data: bytes, portions: list[int]) -> None:
        self._stream = io.BytesIO(data)
        self._portions = portions

    def readinto(self, buffer: memoryview, /) -> int:
        portion = self._portions.pop() if self._portions else len(buffer)
        return self._stream.readinto(buffer[:portion])


def test_what_is_read_lies_where_it_can_be_written_past_the_page_cache() -> None:
    places: list[tuple[int, int]] = []

    class Noting(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            if self.tell() < len(BASE):
                address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
                places.append((address, self.tell()))
            return super().readinto(buffer)

    list(Cutter(buffer_bytes=262_144).cut(Noting(BASE)))
    assert len(places) > 4
    assert not any(address % ALIGNED_BYTES or offset % ALIGNED_BYTES for address, offset in places)


def lengths(data: bytes, *, buffer_bytes: int = chunking.BUFFER_BYTES) -> list[int]:
    cutter = Cutter(buffer_bytes=buffer_bytes)
    return [chunk.length for chunk in cutter.cut(io.BytesIO(data))]


def test_the_file_is_what_the_generator_makes() -> None:
    assert make_content.text(make_content.chunking_vectors()) == make_content.CHUNKING.read_text()


def _cut_as_specified(data: bytes) -> list[int]:
    """SPEC.md 5.1, written down plainly, with the tables of the vectors."""
    profile = PROFILES[1]
    gear = [int(value, 16) for value in FROZEN["gear"]]
    before = int(FROZEN["mask before the average"], 16)
    after = int(FROZEN["mask after the average"], 16)
    found = []
    start = 0
    while start < len(data):
        end = min(start + profile.maximum_bytes, len(data))
        cut = end
        fingerprint = 0
        # The last byte is looked at only where the length to the end is even.
        limit = start + (end - start) // 2 * 2 if end - start > profile.minimum_bytes else start
        for at in range(start + profile.minimum_bytes, limit):
            fingerprint = ((fingerprint << 1) + gear[data[at]]) & (2**64 - 1)
            mask = before if at - start < profile.average_bytes else after
            if not fingerprint & mask:
                cut = at
                break
        found.append(cut - start)
        start = cut
    return found


@pytest.mark.parametrize("row", FROZEN["streams"], ids=lambda row: str(row["name"]))
def test_the_specified_algorithm_cuts_as_the_vectors_say(row: dict[str, Any]) -> None:
    data = STREAMS[row["name"]]
    assert _cut_as_specified(data) == [length for length, _ in row["chunks"]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 70_000), st.integers(0, 1_000_000))
def test_any_length_is_cut_as_specified(size: int, start: int) -> None:
    data = BASE[start : start + size]
    assert lengths(data) == _cut_as_specified(data)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300_000))
def test_a_small_file_at_once_gives_the_same_chunks_as_a_stream(size: int) -> None:
    cutter = Cutter()
    rows = [(chunk.id, chunk.length) for chunk in cutter.cut(io.BytesIO(BASE[:size]))]
    assert cutter.cut_table(BASE[:size]) == chunk_table(rows)


def test_the_profile_cuts_no_chunk_that_the_protocol_refuses() -> None:
    assert all(profile.maximum_bytes <= MAX_CHUNK_BYTES for profile in PROFILES.values())


def test_a_chunk_is_named_by_its_bytes_and_the_chunks_are_the_stream() -> None:
    data = make_content.stream("names", 700_000)
    parts = []
    for chunk in Cutter().cut(io.BytesIO(data)):
        assert ChunkId.of(chunk.data) == chunk.id
        assert len(chunk.data) == chunk.length
        parts.append(bytes(chunk.data))
    assert b"".join(parts) == data


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1_500_000),
    st.integers(262_144, 1_000_000),
    st.lists(st.integers(1, 400_000), max_size=20),
)
def test_cuts_do_not_depend_on_how_the_bytes_arrive(
    size: int, buffer_bytes: int, portions: list[int]
) -> None:
    data = BASE[:size]
    cutter = Cutter(buffer_bytes=buffer_bytes)
    found = [(chunk.id, chunk.length) for chunk in cutter.cut(Trickle(data, portions))]
    whole = FastCDC(32768, min_size=8192, max_size=131072, normalized_chunking=1, seed=0)
    expected = [(ChunkId.of(chunk.data), chunk.length) for chunk in whole.cut_buf(data)]
    streamed = [chunk.length for chunk in whole.cut_stream(io.BytesIO(data))]
    assert found == expected
    assert streamed == [length for _, length in found]


def test_one_cutter_cuts_one_stream_after_another() -> None:
    cutter = Cutter()
    data = make_content.stream("again", 400_000)
    first = [chunk.id for chunk in cutter.cut(io.BytesIO(data))]
    abandoned = cutter.cut(io.BytesIO(BASE))
    next(abandoned)
    assert [chunk.id for chunk in cutter.cut(io.BytesIO(data))] == first


def test_a_read_may_still_be_looked_at_while_the_next_ones_are_made() -> None:
    kept: list[tuple[memoryview, bytes]] = []

    class Watching(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            for view, before in kept[1 - chunking.BUFFERS :]:
                assert view == before
            count = super().readinto(buffer)
            kept.append((buffer[:count], bytes(buffer[:count])))
            return count

    for _ in Cutter(buffer_bytes=262_144).cut(Watching(2 * BASE)):
        view, before = kept[-1]
        assert view[:100] == before[:100]
    assert len(kept) > 2 * chunking.BUFFERS


def test_a_byte_inserted_changes_the_chunks_around_it_only() -> None:
    data = make_content.stream("insertion", 3_000_000)
    before = {chunk.id for chunk in Cutter().cut(io.BytesIO(data))}
    changed = data[:1_000_000] + b"!" + data[1_000_000:]
    after = [chunk.id for chunk in Cutter().cut(io.BytesIO(changed))]
    assert sum(chunk not in before for chunk in after) <= 3


def test_without_the_compiled_core_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyfastcdc.py import FastCDC as Slow

    monkeypatch.setattr(chunking, "FastCDC", Slow)
    with pytest.raises(UsageError, match="compiled core"):
        require_compiled_core()
    with pytest.raises(UsageError, match="compiled core"):
        Cutter()


def test_an_unknown_profile_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Cutter(99)


def test_what_the_reader_raises_passes_through() -> None:
    class Broken:
        def readinto(self, _: memoryview, /) -> int:
            raise OSError(5, "gone")

    with pytest.raises(OSError, match="gone"):
        list(Cutter().cut(Broken()))


def test_a_large_stream_of_zeros_is_cut_at_the_maximum() -> None:
    assert lengths(bytes(1_000_000), buffer_bytes=300_000) == [131_072] * 7 + [82_496]
