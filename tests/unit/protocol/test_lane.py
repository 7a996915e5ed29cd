"""Lanes: what one end seals the other opens, and nothing else opens anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from protocol.connection import ConnectionEnded, LocalProtocolError, MessageReceived
from protocol.connection_states import Side
from protocol.errors import FormatError, LimitExceeded, ProtocolError
from protocol.features import LANES
from protocol.ids import NodeId, PieceId
from protocol.lane import (
    LENGTH,
    MAX_HEAD_RECORD_BYTES,
    MAX_RECORD_BYTES,
    SPAN_ROOM_BYTES,
    TAG_BYTES,
    LaneBroken,
    LaneEvent,
    LaneInput,
    LaneOutput,
    LaneSecret,
    SpanData,
    SpanHead,
    lane_of,
    preamble,
)
from protocol.messages import (
    Cancel,
    ErrorCode,
    GetSpan,
    LaneOffered,
    LaneProof,
    OpenLane,
    Picked,
    Refused,
    SpanAnswer,
    WantLane,
)
from protocol.messages.content import MAX_SPAN_BYTES
from tests.unit.protocol.connection_pairs import MANIFEST, PIECE, admitted_pair, ended
from tests.vectors import make_lane
from tests.vectors.make_lane import MESSAGES, REKEY_RECORDS, SECRET

Sealable = LaneProof | Picked | Refused | SpanAnswer

PICKED = st.builds(Picked, st.integers(1, 2**63 - 1), st.integers(0, 32767), st.integers(0, 65535))
REFUSED = st.builds(Refused, st.integers(1, 2**63 - 1), st.sampled_from(ErrorCode), st.text())
SPAN = st.builds(
    SpanAnswer,
    st.integers(1, 2**63 - 1),
    st.binary(min_size=32, max_size=32).map(PieceId),
    st.integers(0, 65535),
    st.binary(max_size=3000),
)


def seal(output: LaneOutput, messages: Sequence[Sealable]) -> list[bytes]:
    """Every record that they make, one by one."""
    room = memoryview(bytearray(SPAN_ROOM_BYTES))
    sent = b"".join(
        bytes(output.span(one, room)) if isinstance(one, SpanAnswer) else output.message(one)
        for one in messages
    )
    return list(records_of(sent))


def records_of(sent: bytes) -> Iterator[bytes]:
    while sent:
        end = LENGTH.size + LENGTH.unpack_from(sent)[0]
        yield sent[:end]
        sent = sent[end:]


def give(lane: LaneInput, record: bytes) -> LaneEvent:
    prefix, sealed = record[: LENGTH.size], record[LENGTH.size :]
    assert lane.begin(prefix) == len(sealed)
    return lane.take(sealed, memoryview(bytearray(MAX_RECORD_BYTES)))


def whole(events: Sequence[LaneEvent]) -> list[Sealable]:
    """The messages that were sent, put together again."""
    return [
        SpanAnswer(one.head.request, one.head.piece, one.head.n, bytes(one.data))
        if isinstance(one, SpanData)
        else one
        for one in events
        if not isinstance(one, SpanHead)
    ]


@given(st.lists(st.one_of(PICKED, REFUSED, SPAN), max_size=6), st.sampled_from(Side))
def test_the_other_end_opens_what_was_sealed(messages: list[Sealable], side: Side) -> None:
    output = LaneOutput(SECRET, side, rekey_bytes=5000, rekey_records=3)
    other = LaneInput(SECRET, side.other, rekey_bytes=5000, rekey_records=3)
    records = seal(output, [LaneProof(), *messages])
    opened = whole([give(other, record) for record in records])
    # Text for people is made printable on the way.
    assert [type(one) for one in opened] == [LaneProof, *(type(one) for one in messages)]
    assert [one for one in opened if not isinstance(one, Refused)] == [
        one for one in (LaneProof(), *messages) if not isinstance(one, Refused)
    ]


def test_the_largest_span_fits_its_room_and_a_larger_one_is_refused() -> None:
    output, other = LaneOutput(SECRET, Side.SERVER), LaneInput(SECRET, Side.CLIENT)
    largest = SpanAnswer(1, PIECE, 0, bytes(MAX_SPAN_BYTES))
    assert whole([give(other, record) for record in seal(output, [LaneProof(), largest])])[1:] == [
        largest
    ]
    with pytest.raises(LimitExceeded):
        seal(output, [SpanAnswer(2, PIECE, 0, bytes(MAX_SPAN_BYTES + 1))])


@given(st.data())
def test_a_record_that_was_changed_anywhere_does_not_open(data: st.DataObject) -> None:
    output, other = LaneOutput(SECRET, Side.SERVER), LaneInput(SECRET, Side.CLIENT)
    [record] = seal(output, [LaneProof()])
    at = data.draw(st.integers(0, len(record) - 1))
    changed = bytearray(record)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        length = other.begin(changed[: LENGTH.size])
    except LimitExceeded:
        return
    sealed = bytes(changed[LENGTH.size :])[:length].ljust(length, b"\0")
    with pytest.raises(LaneBroken):
        other.take(sealed, memoryview(bytearray(MAX_RECORD_BYTES)))


@pytest.mark.parametrize("order", [(0, 2), (0, 1, 1), (1,)], ids=["dropped", "repeated", "first"])
def test_records_open_in_their_order_only(order: tuple[int, ...]) -> None:
    output, other = LaneOutput(SECRET, Side.SERVER), LaneInput(SECRET, Side.CLIENT)
    records = seal(output, [LaneProof(), Picked(1, 0, 0), Picked(2, 0, 0)])
    for n in order[:-1]:
        give(other, records[n])
    with pytest.raises(ProtocolError):
        give(other, records[order[-1]])


def test_a_record_does_not_open_where_it_was_sealed() -> None:
    [record] = seal(LaneOutput(SECRET, Side.CLIENT), [LaneProof()])
    with pytest.raises(LaneBroken):
        give(LaneInput(SECRET, Side.CLIENT), record)


@pytest.mark.parametrize("name", LaneSecret._fields)
def test_every_part_of_the_secret_counts(name: str) -> None:
    was = getattr(SECRET, name)
    changed = bytes([was[0] ^ 1, *was[1:]])
    parts = {**SECRET._asdict(), name: NodeId(changed) if len(was) == 32 else changed}
    other = LaneSecret(**parts)
    assert all(other.key(side) != SECRET.key(side) for side in Side)


def test_keys_follow_one_another() -> None:
    """Under the first key alone the records behind the change do not open."""
    records = seal(LaneOutput(SECRET, Side.SERVER, rekey_records=REKEY_RECORDS), MESSAGES)
    first = AESGCM(SECRET.key(Side.SERVER))
    for n, record in enumerate(records):
        prefix, sealed = record[: LENGTH.size], record[LENGTH.size :]
        opens = True
        try:
            first.decrypt(n.to_bytes(12, "big"), sealed, prefix)
        except Exception:  # noqa: BLE001 - whatever says no
            opens = False
        assert opens is (n < REKEY_RECORDS)


def test_the_first_message_has_to_be_the_proof() -> None:
    [record] = seal(LaneOutput(SECRET, Side.SERVER), [Picked(1, 0, 0)])
    with pytest.raises(FormatError, match="begin with LaneProof"):
        give(LaneInput(SECRET, Side.CLIENT), record)


@given(st.integers(0, 2**32 - 1))
def test_no_length_is_believed_that_no_message_can_have(length: int) -> None:
    other = LaneInput(SECRET, Side.CLIENT)
    try:
        assert other.begin(LENGTH.pack(length)) == length
    except LimitExceeded:
        return
    assert length <= MAX_HEAD_RECORD_BYTES


def test_the_bytes_of_a_span_are_as_many_as_its_head_says() -> None:
    output, other = LaneOutput(SECRET, Side.SERVER), LaneInput(SECRET, Side.CLIENT)
    proof, head, _ = seal(output, [LaneProof(), SpanAnswer(1, PIECE, 0, b"twelve bytes")])
    give(other, proof)
    assert give(other, head) == SpanHead(1, PIECE, 0, 12)
    with pytest.raises(LimitExceeded):
        other.begin(LENGTH.pack(13 + TAG_BYTES))


@given(st.binary(max_size=40))
def test_any_first_bytes_are_a_lane_or_an_error(data: bytes) -> None:
    try:
        lane = lane_of(data)
    except FormatError:
        return
    assert preamble(lane) == data


def test_a_lanes_id_comes_back_from_its_preamble() -> None:
    assert lane_of(preamble(SECRET.lane)) == SECRET.lane


def test_the_secret_is_not_in_its_own_text() -> None:
    assert SECRET.client_random.hex() not in repr(SECRET)
    assert repr(SECRET.client_random) not in repr(SECRET)


def test_todays_code_makes_the_frozen_vectors() -> None:
    frozen = json.loads(make_lane.PATH.read_text())
    assert make_lane.vectors() == frozen
    for side in Side:
        other = LaneInput(SECRET, side.other, rekey_records=REKEY_RECORDS)
        sent = b"".join(map(bytes.fromhex, frozen[f"records of the {side.value}"]))
        assert whole([give(other, record) for record in records_of(sent)]) == list(MESSAGES)


# On a connection


def test_answers_that_come_by_lane_end_their_requests() -> None:
    both = admitted_pair(LANES)
    both.client.send(GetSpan(1, MANIFEST, PIECE, 0, b""))
    both.run()
    answer = SpanAnswer(1, PIECE, 0, b"")
    assert both.server.send_by_lane(answer) is answer
    [event] = both.client.receive_by_lane(answer, size_bytes=1000)
    assert isinstance(event, MessageReceived)
    assert event.message is answer
    assert both.client.open_requests == both.server.requests_to_answer == 0


def test_what_comes_by_lane_after_a_cancel_is_counted_and_passed_over() -> None:
    both = admitted_pair(LANES)
    both.client.send(GetSpan(1, MANIFEST, PIECE, 0, b""))
    both.run()
    answer = SpanAnswer(1, PIECE, 0, b"")
    both.server.send_by_lane(answer)
    both.client.send(Cancel(1))
    assert both.client.receive_by_lane(answer, size_bytes=1000) == []
    assert both.client.late_span_bytes == 1000


def test_a_cancelled_answer_goes_by_lane_as_a_refusal() -> None:
    both = admitted_pair(LANES)
    both.client.send(GetSpan(1, MANIFEST, PIECE, 0, b""))
    both.client.send(Cancel(1))
    both.run()
    instead = both.server.send_by_lane(SpanAnswer(1, PIECE, 0, b""))
    assert isinstance(instead, Refused)
    assert instead.code is ErrorCode.CANCELLED


def test_an_answer_by_lane_to_no_request_ends_the_connection() -> None:
    both = admitted_pair(LANES)
    [event] = both.client.receive_by_lane(SpanAnswer(1, PIECE, 0, b""))
    assert isinstance(event, ConnectionEnded)
    assert event.code is ErrorCode.PROTOCOL_ERROR


def test_a_lane_that_broke_ends_the_connection_with_the_reason() -> None:
    both = admitted_pair(LANES)
    both.client.lane_broke(LaneBroken("a record of a lane was not sealed by its other end"))
    both.run()
    assert ended(both.server_events).text.startswith("a record of a lane")


@pytest.mark.parametrize(
    ("sender", "message"),
    [("client", WantLane()), ("server", OpenLane(1, b"l" * 16, b"r" * 32))],
)
def test_only_who_dialled_opens_a_lane(sender: str, message: WantLane | OpenLane) -> None:
    both = admitted_pair(LANES)
    one, other = both.client, both.server
    if sender == "server":
        one, other = other, one
    with pytest.raises(LocalProtocolError):
        one.send(message)
    [event] = other.receive_bytes(b"".join(message.encode()))
    assert isinstance(event, ConnectionEnded)
    assert event.code is ErrorCode.PROTOCOL_ERROR


def test_a_lane_is_offered_when_it_is_asked_for() -> None:
    both = admitted_pair(LANES)
    both.client.send(OpenLane(1, b"l" * 16, b"r" * 32))
    both.run()
    both.server.send(LaneOffered(1, b"s" * 32))
    both.run()
    assert both.client.open_requests == 0
