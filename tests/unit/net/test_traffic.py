"""Counting what goes through connections: sums, rates, and what is gossip."""

from __future__ import annotations

import pytest

from archid.net.traffic import Meter, Traffic, TrafficBook, gossip_bytes
from protocol.envelope import PublicKey
from protocol.facts import NodeFacts
from protocol.ids import ManifestId, NodeId, PieceId
from protocol.messages import HaveUpdate, PeerHint, PeerHints, SentState, States


def facts(number: int) -> NodeFacts:
    return NodeFacts(NodeId(bytes([number]) * 32), PublicKey(bytes(32)), "ice", f"node-{number}")


def test_a_rate_is_what_came_in_the_last_seconds() -> None:
    meter = Meter()
    assert meter.bytes_per_s(now=100.0) == 0
    for step in range(10):
        meter.count(1_000, now=100.0 + step)
    assert meter.bytes_per_s(now=109.5) == pytest.approx(1_000, rel=0.15)
    assert meter.bytes_per_s(now=130.0) == 0


def test_a_rate_is_known_soon_after_the_first_byte() -> None:
    meter = Meter()
    meter.count(500_000, now=100.0)
    meter.count(500_000, now=100.4)
    assert meter.bytes_per_s(now=100.4) == 2_000_000


def test_sums_go_on_when_a_node_comes_back() -> None:
    book = TrafficBook()
    for reason in ("it broke", "it was stopped"):
        book.connected(facts(1), "127.0.0.1:4777")
        book.ended(facts(1).node, Traffic(span_bytes_sent=7), now_s=5.0, reason=reason)
    known = book.of(facts(1).node)
    assert known is not None
    assert (known.connections, known.past.span_bytes_sent) == (2, 14)
    assert known.lost_reason == "it was stopped"


def test_the_sum_of_all_is_kept_for_nodes_that_there_is_no_room_for() -> None:
    book = TrafficBook(max_nodes=2)
    for number in (1, 2, 3, 4):
        book.connected(facts(number), "")
    for number in (1, 2, 3, 4):
        book.ended(facts(number).node, Traffic(received_bytes=10), now_s=0.0, reason=None)
    assert [one.facts.name for one in book.nodes()] == ["node-3", "node-4"]
    assert book.past.received_bytes == 40


def test_gossip_is_counted_by_its_payload_and_have_maps_are_not_gossip() -> None:
    assert gossip_bytes(States((SentState(b"12345", b"678"),))) == 8
    assert gossip_bytes(PeerHints((PeerHint(NodeId(bytes(32)), "repo", ("a:1",)),))) == 39
    assert gossip_bytes(HaveUpdate(ManifestId(bytes(32)), PieceId(bytes(32)), 1)) == 0
