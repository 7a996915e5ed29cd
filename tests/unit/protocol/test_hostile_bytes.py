"""Whatever bytes a peer sends, a connection ends at most once and stays small."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.connection import (
    Connection,
    ConnectionEnded,
    Event,
    Side,
)
from protocol.frames import FLAG_OPTIONAL, HEADER, encode_frame
from protocol.limits import MIB
from protocol.messages import (
    MESSAGE_TYPES,
    GetSpan,
    Ping,
)
from tests.unit.protocol.connection_pairs import (
    MANIFEST,
    PIECE,
    SIDES,
    admitted_pair,
    frame,
    hello,
    pair,
)
from tests.unit.protocol.message_examples import ANY_MESSAGE

HEADERS = st.builds(
    lambda kind, length, flags: HEADER.pack(length, kind, flags, 0),
    st.sampled_from([*MESSAGE_TYPES, 0, 200]),
    st.integers(0, 3 * MIB) | st.integers(0, 40),
    st.integers(0, 3),
)
JUNK = st.lists(
    ANY_MESSAGE.map(frame) | HEADERS | st.binary(max_size=60) | st.just(frame(hello(3))),
    max_size=12,
).map(b"".join)


def connection(kind: str, side: Side) -> Connection:
    if kind == "new":
        return Connection(side=side, hello=hello(1))
    if kind == "joining":
        both = pair(hello(1, fleet=None, node=None), joining=True)
        both.run()
    elif kind == "proving":
        both = pair()
        both.run()
    else:
        both = admitted_pair()
        for end in (both.client, both.server):
            end.send(GetSpan(end.next_request(), MANIFEST, PIECE, 0, b""))
        both.run()
    return both.client if side is Side.CLIENT else both.server


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["new", "joining", "proving", "admitted"]),
    side=SIDES,
    data=JUNK,
    splits=st.lists(st.integers(1, 40), min_size=1, max_size=10),
)
def test_any_bytes_in_any_split_never_raise_and_end_at_most_once(
    kind: str, side: Side, data: bytes, splits: list[int]
) -> None:
    machine = connection(kind, side)
    machine.bytes_to_send()
    events: list[Event] = []
    at = turn = 0
    while at < len(data):
        step = splits[turn % len(splits)]
        events += machine.receive_bytes(data[at : at + step])
        at, turn = at + step, turn + 1
    events += machine.receive_eof()
    ends = [event for event in events if isinstance(event, ConnectionEnded)]
    assert len(ends) == 1
    assert events[-1] is ends[0]
    assert machine.closed
    out = b"".join(machine.bytes_to_send())
    assert len(out) <= len(data) + 600


@given(data=JUNK, split=st.integers(1, 50))
def test_the_split_does_not_change_what_is_understood(data: bytes, split: int) -> None:
    whole, parts = connection("admitted", Side.CLIENT), connection("admitted", Side.CLIENT)
    expected = whole.receive_bytes(data)
    found: list[Event] = []
    for at in range(0, len(data), split):
        found += parts.receive_bytes(data[at : at + split])
    assert found == expected


def test_memory_stays_bounded_whatever_a_peer_sends() -> None:
    machine = connection("admitted", Side.SERVER)
    stream = frame(Ping(1)) * 50 + b"".join(encode_frame(250, bytes(60_000), flags=FLAG_OPTIONAL))
    tracemalloc.start()
    try:
        for _ in range(200):
            machine.receive_bytes(stream)
            machine.bytes_to_send()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB
