"""Frames are cut out of a stream alike however it is split, within bounds and without copies."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LimitExceeded
from protocol.frames import (
    FLAG_OPTIONAL,
    HEADER,
    Frame,
    FrameReader,
    FrameRule,
    encode_frame,
)
from protocol.limits import MAX_FRAME_BYTES, MIB


def cut(data: bytes, at: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(mark % (len(data) + 1) for mark in at)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


@given(
    frames=st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=80)), max_size=8
    ),
    at=st.lists(st.integers(0, 1000), max_size=40),
)
def test_any_split_gives_the_same_frames(
    frames: list[tuple[int, int, bytes]], at: list[int]
) -> None:
    data = b"".join(b"".join(encode_frame(t, p, flags=f)) for t, f, p in frames)
    reader = FrameReader()
    found = [frame for part in cut(data, at) for frame in reader.receive_bytes(part)]
    assert [(f.type, f.flags, bytes(f.payload)) for f in found] == frames
    assert not reader.in_frame


def test_a_payload_within_one_receive_is_a_view_and_not_a_copy() -> None:
    data = b"".join(encode_frame(1, b"x" * MIB))
    (frame,) = FrameReader().receive_bytes(data)
    assert frame.payload.obj is data
    assert frame.payload.readonly


def test_received_mutable_buffers_may_be_used_again() -> None:
    data = bytearray(b"".join(encode_frame(1, b"abc")))
    (frame,) = FrameReader().receive_bytes(data)
    data[:] = bytes(len(data))
    assert bytes(frame.payload) == b"abc"


def test_a_span_in_pieces_is_held_once() -> None:
    data = b"".join(encode_frame(1, bytes(MIB)))
    parts = [data[i : i + 65536] for i in range(0, len(data), 65536)]
    reader = FrameReader()
    tracemalloc.start()
    try:
        found = [frame for part in parts for frame in reader.receive_bytes(part)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 1
    assert peak < 1.2 * MIB


def test_a_large_frame_may_come_byte_by_byte() -> None:
    # Copying what is there for each byte would move 500 GB and end at the time limit of the tests.
    data = b"".join(encode_frame(1, bytes(MIB)))
    reader = FrameReader()
    found = [frame for n in range(len(data)) for frame in reader.receive_bytes(data[n : n + 1])]
    assert [len(frame.payload) for frame in found] == [MIB]


def test_a_length_over_the_limit_is_refused_at_the_header() -> None:
    reader = FrameReader()
    with pytest.raises(LimitExceeded, match="type 7"):
        reader.receive_bytes(HEADER.pack(MAX_FRAME_BYTES + 1, 7, 0, 0))


def test_a_claimed_length_alone_allocates_nothing_that_matters() -> None:
    reader = FrameReader(lambda _type, _flags: FrameRule(2**31))
    tracemalloc.start()
    try:
        reader.receive_bytes(HEADER.pack(2**30, 7, 0, 0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB


def test_skipped_frames_are_not_kept() -> None:
    reader = FrameReader(
        lambda frame_type, _flags: FrameRule(MAX_FRAME_BYTES, skip=frame_type == 9)
    )
    data = b"".join(
        b"".join(encode_frame(t, p))
        for t, p in [(9, b"z" * 1000), (1, b"a"), (9, b""), (9, b"y"), (2, b"")]
    )
    for split in (len(data), 7, 1):
        found: list[Frame] = []
        for i in range(0, len(data), split):
            found += reader.receive_bytes(data[i : i + split])
        assert [(f.type, bytes(f.payload)) for f in found] == [(1, b"a"), (2, b"")]


def test_the_judge_is_asked_after_the_frame_before_was_taken() -> None:
    asked: list[int] = []

    def judge(frame_type: int, _flags: int) -> FrameRule:
        asked.append(frame_type)
        return FrameRule(10)

    reader = FrameReader(judge)
    reader.feed(b"".join(b"".join(encode_frame(t, b"x")) for t in (1, 2)))
    assert reader.next_frame() is not None
    assert asked == [1]


def test_encoding_joins_nothing() -> None:
    payload = bytes(MIB)
    parts = encode_frame(3, b"head", payload, flags=FLAG_OPTIONAL)
    assert parts[2] is payload
    assert HEADER.unpack(parts[0]) == (MIB + 4, 3, FLAG_OPTIONAL, 0)
    with pytest.raises(LimitExceeded):
        encode_frame(3, bytes(MAX_FRAME_BYTES + 1))
