"""Two machines in memory: hello, admission, joining, and how connections end."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.connection import (
    Admitted,
    Connection,
    ConnectionEnded,
    HelloReceived,
    LocalProtocolError,
    MessageReceived,
    ProofReceived,
    State,
)
from protocol.connection_states import ALLOWED, TRANSITIONS, Trigger
from protocol.frames import FLAG_OPTIONAL, HEADER, encode_frame
from protocol.ids import DocumentId
from protocol.limits import MAX_PROVES, MIB
from protocol.messages import (
    MESSAGE_TYPES,
    Entitle,
    ErrorCode,
    GetGrants,
    GetHead,
    GetRoot,
    GetSpan,
    Goodbye,
    GrantsAnswer,
    HeadAnnounce,
    JoinAccepted,
    JoinBegin,
    JoinOffer,
    JoinReady,
    JoinRequest,
    LaneProof,
    Message,
    Ping,
    Pong,
    Refused,
    RootDocument,
    Welcome,
)
from tests.unit.protocol.connection_pairs import (
    MANIFEST,
    OTHER_FLEET,
    PIECE,
    PROVE,
    admitted_pair,
    ended,
    frame,
    hello,
    pair,
)


@given(st.data())
def test_both_are_admitted_however_the_bytes_are_split(data: st.DataObject) -> None:
    both = pair()
    both.split = lambda: data.draw(st.integers(1, 60))
    both.run()
    assert isinstance(both.client_events[0], HelloReceived)
    both.client.send(PROVE)
    both.run()
    assert both.server.admit() == []
    both.server.send(PROVE)
    both.run()
    assert both.states == {State.PROVING}
    assert both.client.admit() == [Admitted()]
    both.run()
    assert both.server_events[1:] == [ProofReceived(PROVE), Admitted()]
    assert both.states == {State.ADMITTED}


def test_requests_may_follow_a_welcome_at_once() -> None:
    both = pair()
    both.run()
    both.client.send(PROVE)
    both.server.send(PROVE)
    both.run()
    both.server.admit()
    both.run()
    both.client.admit()
    number = both.client.next_request()
    both.client.send(GetHead(number))
    both.clear()
    both.run()
    assert both.server_events == [Admitted(), MessageReceived(GetHead(number))]


def test_the_highest_common_version_and_the_shared_features_are_spoken() -> None:
    both = pair(
        hello(1, min_version=1, max_version=4, features=("any", "lanes", "new")),
        hello(2, min_version=2, max_version=3, features=("lanes", "any", "old")),
    )
    both.run()
    for side in (both.client, both.server):
        assert side.version == 3
        assert side.features == {"any", "lanes"}


def test_without_a_common_version_both_sides_say_so() -> None:
    both = pair(hello(1, max_version=1), hello(2, min_version=2, max_version=3))
    both.run()
    for events in (both.client_events, both.server_events):
        assert ended(events).code is ErrorCode.VERSION_MISMATCH
    assert "1 to 1" in ended(both.client_events).text


def test_nodes_of_different_fleets_part() -> None:
    both = pair(hello(1), hello(2, fleet=OTHER_FLEET))
    both.run()
    assert ended(both.client_events).code is ErrorCode.WRONG_FLEET
    assert ended(both.server_events).code is ErrorCode.WRONG_FLEET


def test_a_client_without_fleet_is_refused_unless_it_joins() -> None:
    both = pair(hello(1, fleet=None, node=None))
    both.run()
    assert ended(both.server_events).code is ErrorCode.WRONG_FLEET


def test_an_older_node_works_in_a_newer_fleet() -> None:
    both = admitted_pair()
    newer = b"".join(encode_frame(200, b"what a newer version says", flags=FLAG_OPTIONAL))
    ping = frame(Ping(7))
    assert both.server.receive_bytes(newer + ping) == []
    assert b"".join(both.server.bytes_to_send()) == frame(Pong(7))
    (event,) = both.server.receive_bytes(b"".join(encode_frame(200, b"must be understood")))
    assert isinstance(event, ConnectionEnded)
    assert event.code is ErrorCode.PROTOCOL_ERROR
    assert "200" in event.text


def test_roots_and_grants_may_be_exchanged_before_anything_is_proven() -> None:
    both = pair()
    both.run()
    both.clear()
    one, two = both.client.next_request(), both.client.next_request()
    both.client.send(GetRoot(one, 2))
    both.client.send(GetGrants(two, DocumentId(bytes(32))))
    back = both.server.next_request()
    both.server.send(GetRoot(back, 1))
    both.run()
    both.server.send(RootDocument(one, b"root"))
    both.server.send(GrantsAnswer(two, b"grants"))
    both.client.send(Refused(back, ErrorCode.UNKNOWN_DOCUMENT, "not held"))
    both.run()
    assert [e.message for e in both.client_events if isinstance(e, MessageReceived)] == [
        GetRoot(back, 1),
        RootDocument(one, b"root"),
        GrantsAnswer(two, b"grants"),
    ]


@pytest.mark.parametrize(
    "message",
    [
        GetSpan(1, MANIFEST, PIECE, 0, b""),
        GetHead(1),
        HeadAnnounce(b"", b""),
        Entitle(1, MANIFEST, b""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_nothing_else_is_allowed_before_admission(message: Message) -> None:
    both = pair()
    both.run()
    with pytest.raises(LocalProtocolError, match="PROVING"):
        both.client.send(message)
    both.clear()
    both.server_events += both.server.receive_bytes(frame(message))
    assert ended(both.server_events).code is ErrorCode.PROTOCOL_ERROR
    both.run()
    assert ended(both.client_events) == ConnectionEnded(
        ErrorCode.PROTOCOL_ERROR, ended(both.server_events).text, by_peer=True
    )


def test_a_refused_proof_ends_the_connection_with_the_reason() -> None:
    both = pair()
    both.run()
    both.client.send(PROVE)
    both.run()
    (mine,) = both.server.refuse(ErrorCode.DENIED, "the node is denied")
    both.run()
    assert mine == ConnectionEnded(ErrorCode.DENIED, "the node is denied", by_peer=False)
    assert ended(both.client_events) == dataclasses.replace(mine, by_peer=True)
    assert both.server.closed


def test_a_better_proof_may_follow_and_may_cross_its_welcome() -> None:
    both = pair()
    both.run()
    both.client.send(PROVE)
    both.server.send(PROVE)
    both.run()
    both.server.admit()
    both.client.admit()
    both.client.send(PROVE)  # sent before the Welcome to the first arrived
    both.run()
    assert sum(isinstance(event, ProofReceived) for event in both.server_events) == 1
    assert both.states == {State.ADMITTED}
    number = both.client.next_request()
    both.client.send(GetHead(number))
    both.run()
    assert both.server_events[-1] == MessageReceived(GetHead(number))


def test_proofs_are_counted() -> None:
    both = pair()
    both.run()
    for _ in range(MAX_PROVES):
        both.client.send(PROVE)
    with pytest.raises(LocalProtocolError):
        both.client.send(PROVE)
    both.run()
    events = both.server.receive_bytes(frame(PROVE))
    assert ended(events).code is ErrorCode.LIMIT_EXCEEDED


def test_a_welcome_without_a_proof_is_an_error() -> None:
    both = pair()
    both.run()
    assert ended(both.server.receive_bytes(frame(Welcome()))).code is ErrorCode.PROTOCOL_ERROR


def test_admitting_before_a_proof_is_a_local_error() -> None:
    both = pair()
    both.run()
    with pytest.raises(LocalProtocolError):
        both.client.admit()


def test_a_node_joins_in_five_messages() -> None:
    both = pair(hello(1, fleet=None, node=None), joining=True)
    both.run()
    assert both.states == {State.JOINING}
    steps: list[tuple[Connection, Message]] = [
        (both.client, JoinBegin(bytes(16))),
        (both.server, JoinOffer((b"root",))),
        (both.client, JoinRequest(bytes(16), bytes(32), bytes(32), bytes(64), "n")),
        (both.server, JoinAccepted(b"c", (b"root",), b"h", b"g", b"l")),
        (both.client, JoinReady()),
        (both.server, Goodbye(ErrorCode.CLOSING, "welcome")),
    ]
    for sender, message in steps:
        sender.send(message)
        both.run()
    heard = [e.message for e in both.server_events if isinstance(e, MessageReceived)]
    assert heard == [steps[0][1], steps[2][1], steps[4][1]]
    assert ended(both.client_events).code is ErrorCode.CLOSING


def test_join_messages_out_of_turn_are_refused_at_their_header() -> None:
    both = pair(hello(1, fleet=None, node=None), joining=True)
    both.run()
    with pytest.raises(LocalProtocolError, match="turn"):
        both.client.send(JoinReady())
    header = HEADER.pack(2 * MIB, JoinAccepted.TYPE, 0, 0)
    assert "turn" in ended(both.server.receive_bytes(header)).text


def test_a_member_without_a_shared_ca_may_exchange_roots_and_nothing_else() -> None:
    both = pair(joining=True)
    both.run()
    number = both.client.next_request()
    both.client.send(GetRoot(number, 5))
    both.run()
    both.server.send(RootDocument(number, b"root"))
    both.run()
    assert both.client_events[-1] == MessageReceived(
        RootDocument(number, b"root"), GetRoot(number, 5)
    )
    with pytest.raises(LocalProtocolError):
        both.client.send(PROVE)
    assert ended(both.server.receive_bytes(frame(PROVE))).code is ErrorCode.PROTOCOL_ERROR


def test_goodbye_ends_both_sides_and_nothing_follows() -> None:
    both = admitted_pair()
    both.client.send(Goodbye(ErrorCode.CLOSING, "done"))
    both.run()
    assert both.client.closed
    assert ended(both.server_events) == ConnectionEnded(ErrorCode.CLOSING, "done", by_peer=True)
    assert both.server.receive_bytes(frame(Ping(1))) == []
    assert both.server.receive_eof() == []
    assert both.server.bytes_to_send() == []
    with pytest.raises(LocalProtocolError):
        both.client.send(Ping(1))
    with pytest.raises(LocalProtocolError):
        both.client.refuse(ErrorCode.INTERNAL, "")


def test_the_end_of_the_stream_is_told_apart_in_the_middle_of_a_message() -> None:
    both = admitted_pair()
    both.server.receive_bytes(frame(Ping(1))[:5])
    event = ended(both.server.receive_eof())
    assert event.code is ErrorCode.CONNECTION_LOST
    assert "middle" in event.text
    assert "middle" not in ended(both.client.receive_eof()).text


def test_the_machine_sends_its_own_messages_itself() -> None:
    both = admitted_pair()
    for message in (hello(), Welcome(), Pong(1)):
        with pytest.raises(LocalProtocolError, match="itself"):
            both.client.send(message)


def test_a_message_over_its_limit_is_a_local_error_and_leaves_the_connection_whole() -> None:
    both = admitted_pair()
    with pytest.raises(LocalProtocolError):
        both.client.send(HeadAnnounce(bytes(MIB), b""))
    both.client.send(Ping(1))
    both.run()
    assert both.client_events == [MessageReceived(Pong(1))]


def test_every_transition_is_reachable_and_nothing_leaves_closed() -> None:
    reached = {State.HELLO} | set(TRANSITIONS.values())
    assert reached == set(State)
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)
    assert State.CLOSED not in {state for state, _ in TRANSITIONS}
    assert ALLOWED[State.CLOSED] == frozenset()
    used = frozenset().union(*ALLOWED.values())
    assert used == set(MESSAGE_TYPES.values()) - {LaneProof}  # that one is for lanes alone
