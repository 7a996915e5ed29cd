"""Requests for any of several spans on the wire: two answers in order, and only by agreement."""

from __future__ import annotations

import pytest

from protocol.connection import LocalProtocolError, MessageReceived
from protocol.errors import FormatError
from protocol.features import SWARM
from protocol.ids import PieceId
from protocol.messages import (
    Cancel,
    ErrorCode,
    GetAny,
    Message,
    Picked,
    Refused,
    SpanAnswer,
    Unwant,
)
from tests.unit.protocol.connection_pairs import (
    MANIFEST,
    PIECE,
    Pair,
    admitted_pair,
    ended,
    frame,
)

WANTED = ((0, b"\x06"), (3, b"\x80"))


def asked() -> tuple[Pair, GetAny]:
    both = admitted_pair(SWARM)
    request = GetAny(both.client.next_request(), MANIFEST, WANTED)
    both.client.send(request)
    both.run()
    return both, request


def test_the_choice_comes_first_and_then_the_bytes() -> None:
    both, request = asked()
    picked = Picked(request.request, 3, 7)
    both.server.send(picked)
    both.run()
    assert both.client_events == [MessageReceived(picked, request)]
    assert both.client.open_requests == 1
    both.server.send(SpanAnswer(request.request, PIECE, 7, b"bytes"))
    both.run()
    assert len(both.client_events) == 2
    assert both.client.open_requests == both.server.requests_to_answer == 0


@pytest.mark.parametrize(
    "wrong",
    [
        Picked(1, 0, 0),  # not one of those asked for
        Picked(1, 1, 1),
        Picked(1, 3, 8),
        SpanAnswer(1, PIECE, 7, b"bytes"),  # nothing was picked yet
    ],
    ids=repr,
)
def test_a_choice_of_something_else_is_an_error_on_both_sides(wrong: Message) -> None:
    both, _ = asked()
    with pytest.raises(LocalProtocolError):
        both.server.send(wrong)
    assert ended(both.client.receive_bytes(frame(wrong))).code is ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("wrong", [SpanAnswer(1, PieceId(bytes(32)), 2, b""), Picked(1, 3, 7)])
def test_after_the_choice_nothing_else_may_come(wrong: Message) -> None:
    both, request = asked()
    both.server.send(Picked(request.request, 0, 1))
    both.run()
    with pytest.raises(LocalProtocolError):
        both.server.send(wrong)
    assert ended(both.client.receive_bytes(frame(wrong))).code is ErrorCode.PROTOCOL_ERROR


def test_a_refusal_may_come_before_or_after_the_choice() -> None:
    for picked in (False, True):
        both, request = asked()
        if picked:
            both.server.send(Picked(request.request, 0, 1))
        both.server.send(Refused(request.request, ErrorCode.CHUNK_CORRUPT, "rotten"))
        both.run()
        assert both.client.open_requests == both.server.requests_to_answer == 0


def test_cancelled_after_the_choice_it_ends_without_the_bytes() -> None:
    both, request = asked()
    both.server.send(Picked(request.request, 0, 1))
    both.run()
    both.client.send(Cancel(request.request))
    both.run()
    both.server.send(SpanAnswer(request.request, PIECE, 1, b"for nothing" * 1000))
    assert sum(len(part) for part in both.server._output) < 100
    both.run()
    assert both.client.open_requests == both.server.requests_to_answer == 0


@pytest.mark.parametrize("both_name_it", [False, True])
def test_none_of_it_is_spoken_without_agreement(both_name_it: bool) -> None:
    if both_name_it:
        both = admitted_pair(SWARM)
        both.client.send(Unwant(1, MANIFEST, 0, 1))
        both.run()
        assert both.server_events == [MessageReceived(Unwant(1, MANIFEST, 0, 1))]
        return
    both = admitted_pair()
    for message in (GetAny(1, MANIFEST, WANTED), Unwant(1, MANIFEST, 0, 1)):
        with pytest.raises(LocalProtocolError):
            both.client.send(message)
    events = both.server.receive_bytes(frame(Unwant(1, MANIFEST, 0, 1)))
    assert "without the feature swarm" in ended(events).text


@pytest.mark.parametrize("wanted", [(), ((0, b""),), ((0, b"\x00"),), ((3, b"\x01"), (0, b"\x01"))])
def test_a_request_for_nothing_or_out_of_order_is_malformed(
    wanted: tuple[tuple[int, bytes], ...],
) -> None:
    with pytest.raises(FormatError):
        GetAny(1, MANIFEST, wanted)
