"""The records of a lane are read whole, however the bytes come, and with few calls."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archid.net.errors import PeerLost
from archid.net.lane_reading import LaneReader
from protocol.connection_states import Side
from protocol.errors import LimitExceeded
from protocol.lane import LENGTH, SPAN_ROOM_BYTES, LaneEvent, LaneInput, LaneOutput, SpanData
from protocol.messages import LaneProof, Picked, SpanAnswer
from tests.unit.net.lane_ends import PIECE
from tests.vectors.make_lane import SECRET

SIZES = (0, 1, 60_000, 4096, 9)
"""Of the spans that are sent: some fit into what is received ahead, some do not."""


class CountingSocket(socket.socket):
    """Knows how often something was received."""

    calls = 0

    def recv_into(self, *arguments: object) -> int:
        count = super().recv_into(*arguments)  # type: ignore[arg-type]
        self.calls += 1
        return count

    def recvmsg_into(self, *arguments: object):  # type: ignore[no-untyped-def]
        found = super().recvmsg_into(*arguments)  # type: ignore[arg-type]
        self.calls += 1
        return found


@dataclass
class Reading:
    """A reader, and what sends to it."""

    reader: LaneReader
    connected: CountingSocket
    other: socket.socket
    events: list[LaneEvent] = field(default_factory=list)

    def read(self, most_bytes: int) -> None:
        """Take all that has come."""
        while self.reader.fill(most_bytes):
            self.reader.take(self._keep)

    def _keep(self, event: LaneEvent) -> None:
        if isinstance(event, SpanData):
            event = SpanData(event.head, memoryview(bytes(event.data)))
        self.events.append(event)


def reading() -> Reading:
    one, other = socket.socketpair()
    connected = CountingSocket(fileno=one.detach())
    connected.setblocking(False)
    return Reading(LaneReader(connected, LaneInput(SECRET, Side.CLIENT)), connected, other)


def sealed() -> bytes:
    """A proof and some spans, each with what says that it was picked."""
    output, room = LaneOutput(SECRET, Side.SERVER), memoryview(bytearray(SPAN_ROOM_BYTES))
    parts = [output.message(LaneProof())]
    for n, size_bytes in enumerate(SIZES, 1):
        parts.append(output.message(Picked(n, 0, n)))
        parts.append(bytes(output.span(SpanAnswer(n, PIECE, n, bytes([n]) * size_bytes), room)))
    return b"".join(parts)


@pytest.fixture
def whole() -> Iterator[Reading]:
    made = reading()
    yield made
    made.reader.drop_room()
    made.connected.close()
    made.other.close()


def came(events: list[LaneEvent]) -> list[int | bytes]:
    """The numbers picked and the bytes of the spans, in order."""
    return [
        event.n if isinstance(event, Picked) else bytes(event.data)
        for event in events
        if isinstance(event, Picked | SpanData)
    ]


EXPECTED = [part for n, size_bytes in enumerate(SIZES, 1) for part in (n, bytes([n]) * size_bytes)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    slices=st.lists(st.integers(1, 70_000), min_size=1, max_size=30),
    most_bytes=st.sampled_from([1, 100, 5000, 1 << 20]),
)
def test_records_come_whole_however_they_are_cut(slices: list[int], most_bytes: int) -> None:
    made, data = reading(), sealed()
    try:
        for size_bytes in [*slices, len(data)]:
            made.other.sendall(data[:size_bytes])
            data = data[size_bytes:]
            made.read(most_bytes)
        assert came(made.events) == EXPECTED
        assert not made.reader.at_hand
        assert made.reader.wire_bytes == len(sealed())
    finally:
        made.reader.drop_room()
        made.connected.close()
        made.other.close()


def test_what_is_small_comes_with_what_was_before_it(whole: Reading) -> None:
    whole.other.sendall(sealed())
    whole.read(1 << 20)
    assert came(whole.events) == EXPECTED
    # The first 4 KiB, the rest of the large span with what is after it, what does not fit there.
    assert whole.connected.calls == 3


def test_what_is_at_hand_is_read_before_anything_is_received(whole: Reading) -> None:
    whole.other.sendall(sealed())
    assert whole.reader.fill(1)
    assert whole.reader.at_hand
    received_bytes = whole.reader.wire_bytes
    whole.reader.take(whole._keep)
    whole.reader.fill(1)
    assert whole.reader.wire_bytes == received_bytes


def test_a_length_that_no_record_has_is_refused_before_anything_is_read_for_it(
    whole: Reading,
) -> None:
    whole.other.sendall(LENGTH.pack(1 << 30))
    with pytest.raises(LimitExceeded):
        whole.read(1 << 20)


def test_the_end_of_a_lane_is_told_after_what_came_before_it(whole: Reading) -> None:
    whole.other.sendall(sealed())
    whole.other.close()
    with pytest.raises(PeerLost):
        whole.read(1 << 20)
    assert came(whole.events) == EXPECTED
