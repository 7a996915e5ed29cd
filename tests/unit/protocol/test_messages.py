"""Every message survives the wire, refuses what is over its limits, and keeps its bytes."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import pack, unpack
from protocol.errors import FormatError, LimitExceeded, ProtocolError
from protocol.frames import FLAG_OPTIONAL, Frame, FrameReader
from protocol.limits import MAX_ERROR_TEXT_BYTES, MAX_FRAME_BYTES, MAX_PROOF_BYTES
from protocol.messages import (
    MEANINGS,
    MESSAGE_TYPES,
    REACTIONS,
    Entitle,
    ErrorCode,
    GetPieces,
    GetSpan,
    Goodbye,
    HaveUpdate,
    Hello,
    JoinRequest,
    Message,
    PeerHints,
    Ping,
    Refused,
    Request,
    SpanAnswer,
    StateDigest,
    States,
    join_proof_payload,
)
from tests.unit.protocol.message_examples import (
    ANY_MESSAGE,
    EXAMPLES,
    FLEET,
    MANIFEST,
    PIECE,
    STRATEGIES,
)
from tests.unit.protocol.message_vectors import VECTORS, vectors


def over_the_wire(message: Message) -> Message:
    (frame,) = FrameReader().receive_bytes(b"".join(message.encode()))
    return MESSAGE_TYPES[frame.type].decode(frame)


@given(ANY_MESSAGE)
def test_every_message_survives_the_wire(message: Message) -> None:
    assert over_the_wire(message) == message


def test_every_message_has_a_strategy() -> None:
    assert set(STRATEGIES) == set(MESSAGE_TYPES.values())


@pytest.mark.parametrize("kind", MESSAGE_TYPES.values(), ids=lambda kind: kind.__name__)
def test_the_wire_table_names_the_fields_in_their_order(kind: type[Message]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if kind is SpanAnswer:
        assert not kind.WIRE
    else:
        assert list(kind.WIRE) == names
    assert kind.MAX_BYTES <= MAX_FRAME_BYTES
    if issubclass(kind, Request):
        assert kind.ANSWER in MESSAGE_TYPES.values()


@given(kind=st.sampled_from(list(MESSAGE_TYPES.values())), data=st.binary(max_size=400))
def test_any_payload_gives_a_message_or_a_protocol_error(kind: type[Message], data: bytes) -> None:
    try:
        message = kind.decode_payload(data)
    except ProtocolError:
        return
    assert b"".join(bytes(part) for part in message.encode_payload())


@given(ANY_MESSAGE, st.lists(st.integers(0, 100) | st.binary(max_size=5), min_size=1, max_size=3))
def test_fields_that_a_newer_version_added_are_ignored(
    message: Message, tail: list[int | bytes]
) -> None:
    if isinstance(message, SpanAnswer):
        return
    value = unpack(b"".join(message.encode_payload()), max_bytes=MAX_FRAME_BYTES)
    assert isinstance(value, list)
    longer = pack([*value, *tail])
    if len(longer) <= message.MAX_BYTES:
        assert type(message).decode_payload(longer) == message


def test_a_span_is_neither_copied_when_sent_nor_when_received() -> None:
    data = bytes(1 << 20)
    frame = SpanAnswer(1, PIECE, 0, data).encode()
    assert frame[-1] is data
    received = b"".join(frame)
    (whole,) = FrameReader().receive_bytes(received)
    answer = SpanAnswer.decode(whole)
    assert isinstance(answer.data, memoryview)
    assert answer.data.obj is received


def test_what_is_over_a_limit_is_not_sent() -> None:
    with pytest.raises(LimitExceeded):
        Entitle(1, MANIFEST, bytes(MAX_PROOF_BYTES + 1)).encode()
    with pytest.raises(LimitExceeded):
        GetSpan(0, MANIFEST, PIECE, 0, b"").encode()
    with pytest.raises(LimitExceeded):
        SpanAnswer(1, PIECE, 0, bytes(SpanAnswer.MAX_BYTES)).encode()
    with pytest.raises(LimitExceeded):
        SpanAnswer(-1, PIECE, 0, b"").encode()


def test_what_is_over_a_limit_is_refused() -> None:
    with pytest.raises(LimitExceeded):
        Ping.decode_payload(bytes(Ping.MAX_BYTES + 1))
    with pytest.raises(LimitExceeded):
        SpanAnswer.decode_payload(bytes(SpanAnswer.MAX_BYTES + 1))
    with pytest.raises(FormatError):
        SpanAnswer.decode_payload(bytes(10))
    with pytest.raises(FormatError, match="no piece"):
        GetPieces.decode_payload(pack([1, MANIFEST, []]))


def test_a_frame_of_another_type_is_not_decoded() -> None:
    with pytest.raises(FormatError, match="not Ping"):
        Ping.decode(Frame(6, 0, memoryview(b"")))


def test_hello_begins_with_its_magic() -> None:
    payload = b"".join(EXAMPLES[0].encode_payload())
    assert unpack(payload, max_bytes=10_000)[0] == "archid"  # type: ignore[index]
    with pytest.raises(FormatError, match="magic"):
        Hello.decode_payload(payload.replace(b"archid", b"orchid", 1))


def test_error_codes_of_newer_versions_read_as_other() -> None:
    refused = Refused.decode_payload(pack([1, 4711, "why"]))
    assert refused.code is ErrorCode.OTHER


def test_every_error_code_says_what_it_means() -> None:
    assert set(MEANINGS) == set(REACTIONS) == set(ErrorCode)


def test_texts_for_people_are_cut_and_made_printable() -> None:
    goodbye = over_the_wire(Goodbye(ErrorCode.INTERNAL, "a\x1b[2Jb\n" + "é" * 1000))
    assert isinstance(goodbye, Goodbye)
    assert goodbye.text.startswith("a?[2Jb?é")
    assert len(goodbye.text.encode()) <= MAX_ERROR_TEXT_BYTES
    raw = Goodbye.decode_payload(pack([0, "a\x00\x07"]))
    assert raw.text == "a??"


def test_only_messages_that_may_be_skipped_say_so() -> None:
    optional = {kind for kind in MESSAGE_TYPES.values() if kind.OPTIONAL}
    assert optional == {HaveUpdate, PeerHints, StateDigest, States}
    for example in EXAMPLES:
        (frame,) = FrameReader().receive_bytes(b"".join(example.encode()))
        assert bool(frame.flags & FLAG_OPTIONAL) == example.OPTIONAL


def test_a_join_secret_is_not_in_the_text_of_a_message() -> None:
    request = JoinRequest(bytes(16), b"hush" * 8, bytes(32), bytes(64), "n")
    assert "hush" not in repr(request)


def test_a_join_proof_is_bound_to_both_nonces() -> None:
    same = {"token_id": bytes(16), "public_key": bytes(32), "name": "n"}
    proofs = {
        join_proof_payload(client_nonce=bytes([c]) * 32, server_nonce=bytes([s]) * 32, **same)  # type: ignore[arg-type]
        for c in (1, 2)
        for s in (1, 2)
    }
    assert len(proofs) == 4


def test_the_frozen_vectors_hold() -> None:
    frozen = json.loads(VECTORS.read_text())
    assert vectors() == frozen
    for example, vector in zip(EXAMPLES, frozen, strict=True):
        (frame,) = FrameReader().receive_bytes(bytes.fromhex(vector["frame"]))
        assert MESSAGE_TYPES[frame.type].decode(frame) == example


def test_fleet_may_be_absent_only_as_no_bytes() -> None:
    hello = EXAMPLES[1]
    assert isinstance(hello, Hello)
    assert hello.fleet is None
    value = unpack(b"".join(EXAMPLES[0].encode_payload()), max_bytes=10_000)
    assert isinstance(value, list)
    value[4] = bytes(FLEET)[:31]
    with pytest.raises(FormatError):
        Hello.decode_payload(pack(value))
