"""Requests are matched with their answers, counted, cancelled and bounded."""

from __future__ import annotations

import pytest

from protocol.connection import (
    LocalProtocolError,
    MessageReceived,
)
from protocol.frames import HEADER
from protocol.ids import DocumentId, NodeId, PieceId
from protocol.limits import MAX_OUTSTANDING_REQUESTS, MIB
from protocol.messages import (
    Cancel,
    ErrorCode,
    GetHead,
    GetLeaf,
    GetPieces,
    GetSpan,
    HeadAnswer,
    LeafAnswer,
    Message,
    PieceAnswer,
    Refused,
    SpanAnswer,
)
from tests.unit.protocol.connection_pairs import (
    MANIFEST,
    PIECE,
    admitted_pair,
    ended,
    frame,
    pair,
)


def test_answers_are_matched_to_their_requests() -> None:
    both = admitted_pair()
    requests = [GetSpan(both.client.next_request(), MANIFEST, PIECE, n, b"") for n in range(3)]
    for request in requests:
        both.client.send(request)
    both.run()
    assert both.server.requests_to_answer == 3
    for request in reversed(requests):
        both.server.send(SpanAnswer(request.request, PIECE, request.n, b"bytes"))
    both.run()
    assert both.client_events == [
        MessageReceived(SpanAnswer(r.request, PIECE, r.n, b"bytes"), r) for r in reversed(requests)
    ]
    assert both.client.open_requests == both.server.requests_to_answer == 0


@pytest.mark.parametrize(
    "wrong",
    [
        SpanAnswer(1, PIECE, 1, b""),
        SpanAnswer(1, PieceId(bytes(32)), 0, b""),
        SpanAnswer(2, PIECE, 0, b""),
        HeadAnswer(1, b"", b""),
        Refused(2, ErrorCode.BUSY, ""),
    ],
    ids=repr,
)
def test_an_answer_to_nothing_asked_is_an_error_on_both_sides(wrong: Message) -> None:
    both = admitted_pair()
    both.client.send(GetSpan(both.client.next_request(), MANIFEST, PIECE, 0, b""))
    both.run()
    with pytest.raises(LocalProtocolError):
        both.server.send(wrong)
    assert ended(both.client.receive_bytes(frame(wrong))).code is ErrorCode.PROTOCOL_ERROR


def test_pieces_come_one_by_one_in_the_order_asked() -> None:
    both = admitted_pair()
    ids = tuple(PieceId(bytes([n]) * 32) for n in range(3))
    request = GetPieces(both.client.next_request(), MANIFEST, ids)
    both.client.send(request)
    both.run()
    with pytest.raises(LocalProtocolError):
        both.server.send(PieceAnswer(request.request, ids[1], b""))
    for piece in ids:
        assert both.client.open_requests == 1
        both.server.send(PieceAnswer(request.request, piece, b"data"))
        both.run()
    assert both.client.open_requests == 0
    assert len(both.client_events) == 3


def test_pieces_may_end_with_a_refusal() -> None:
    both = admitted_pair()
    ids = tuple(PieceId(bytes([n]) * 32) for n in range(3))
    request = GetPieces(both.client.next_request(), MANIFEST, ids)
    both.client.send(request)
    both.run()
    both.server.send(PieceAnswer(request.request, ids[0], b"data"))
    both.server.send(Refused(request.request, ErrorCode.UNKNOWN_MANIFEST, "gone"))
    both.run()
    assert both.client.open_requests == both.server.requests_to_answer == 0
    assert isinstance(both.client_events[-1], MessageReceived)
    assert both.client_events[-1].request == request


def test_a_cancelled_request_is_refused_and_its_late_answer_is_tolerated() -> None:
    both = admitted_pair()
    late = GetSpan(both.client.next_request(), MANIFEST, PIECE, 0, b"")
    soon = GetSpan(both.client.next_request(), MANIFEST, PIECE, 1, b"")
    for request in (late, soon):
        both.client.send(request)
    both.run()
    both.server.send(SpanAnswer(late.request, PIECE, 0, b"late"))  # crosses the Cancel
    for request in (late, soon):
        both.client.send(Cancel(request.request))
        both.client.send(Cancel(request.request))
    both.run()
    assert both.server_events[-1] == MessageReceived(Cancel(soon.request))
    both.server.send(SpanAnswer(soon.request, PIECE, 1, b"for nothing" * 1000))
    assert sum(len(part) for part in both.server._output) < 100
    both.run()
    assert both.client_events == []
    assert both.client.open_requests == both.server.requests_to_answer == 0
    both.client.send(Cancel(soon.request))
    assert both.client.bytes_to_send() == []


def test_cancelled_pieces_end_with_one_refusal() -> None:
    both = admitted_pair()
    ids = tuple(PieceId(bytes([n]) * 32) for n in range(3))
    request = GetPieces(both.client.next_request(), MANIFEST, ids)
    both.client.send(request)
    both.client.send(Cancel(request.request))
    both.run()
    for piece in ids:
        both.server.send(PieceAnswer(request.request, piece, b"data"))
    sent = b"".join(both.server.bytes_to_send())
    assert HEADER.unpack(sent[:8])[1] == Refused.TYPE
    assert both.client.receive_bytes(sent) == []
    assert both.client.open_requests == 0


def test_open_requests_are_bounded_both_ways() -> None:
    both = admitted_pair()
    for _ in range(MAX_OUTSTANDING_REQUESTS):
        both.client.send(GetHead(both.client.next_request()))
    extra = both.client.next_request()
    with pytest.raises(LocalProtocolError):
        both.client.send(GetHead(extra))
    both.run()
    events = both.server.receive_bytes(frame(GetHead(extra)))
    assert ended(events).code is ErrorCode.LIMIT_EXCEEDED


def test_cancelling_does_not_make_room_before_the_other_side_has_answered() -> None:
    both = admitted_pair()
    for _ in range(MAX_OUTSTANDING_REQUESTS):
        number = both.client.next_request()
        both.client.send(GetHead(number))
        both.client.send(Cancel(number))
    both.run()
    events = both.server.receive_bytes(frame(GetHead(both.client.next_request())))
    assert ended(events).code is ErrorCode.LIMIT_EXCEEDED


def test_request_numbers_only_grow() -> None:
    both = admitted_pair()
    both.client.send(GetHead(both.client.next_request()))
    both.run()
    both.server.send(HeadAnswer(1, b"h", b"g"))
    with pytest.raises(LocalProtocolError):
        both.client.send(GetHead(1))
    assert ended(both.server.receive_bytes(frame(GetHead(1)))).code is ErrorCode.PROTOCOL_ERROR


def test_large_answers_that_nobody_asked_for_are_refused_at_their_header() -> None:
    both = admitted_pair()
    header = HEADER.pack(MIB, SpanAnswer.TYPE, 0, 0)
    assert "no open request" in ended(both.server.receive_bytes(header)).text


def test_a_leaf_is_held_smaller_before_admission() -> None:
    both = pair()
    both.run()
    request = GetLeaf(both.client.next_request(), NodeId(bytes(32)), DocumentId(bytes(32)))
    both.client.send(request)
    header = HEADER.pack(MIB, LeafAnswer.TYPE, 0, 0)
    assert ended(both.client.receive_bytes(header)).code is ErrorCode.LIMIT_EXCEEDED


def test_spans_leave_without_being_joined_or_copied() -> None:
    both = admitted_pair()
    both.client.send(GetSpan(both.client.next_request(), MANIFEST, PIECE, 0, b""))
    both.run()
    data = bytes(MIB)
    both.server.send(SpanAnswer(1, PIECE, 0, data))
    assert both.server.bytes_to_send()[-1] is data
