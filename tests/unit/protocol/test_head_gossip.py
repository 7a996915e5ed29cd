"""Heads: pushed by those who hold everything, told by the others, and missed by nobody for long."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.head_gossip import (
    AGAIN_S,
    ASK_S,
    DIGEST_S,
    PUSH_S,
    TELL_S,
    HeadEffect,
    HeadGossip,
    SendHead,
    SendHeadDigest,
)
from protocol.ids import NodeId

ONE, TWO, THREE = (NodeId(bytes([n]) * 32) for n in range(1, 4))
OLD, NEW, NEWEST = (1, 1), (1, 2), (1, 3)


def gossip(*peers: NodeId, holder: bool = True, digests: bool = True) -> HeadGossip:
    made = HeadGossip(holder=holder, random=Random(1))
    made.head_changed(OLD, now=0.0)
    for peer in peers:
        made.peer_joined(peer, OLD, digests=digests, now=0.0)
    return made


def ticked(made: HeadGossip, peer: NodeId, until: float) -> list[tuple[float, HeadEffect]]:
    found = []
    while (at := made.wake_at(peer)) is not None and at <= until:
        found += [(at, effect) for effect in made.tick(peer, now=at)]
    return found


def test_a_repo_pushes_a_new_head_at_once_but_not_to_who_showed_it() -> None:
    repo = gossip(ONE, TWO, THREE)
    repo.head_shown(TWO, NEW)
    repo.head_changed(NEW, now=1.0)
    assert repo.tick(ONE, now=1.0) == [SendHead(ONE)]
    assert repo.tick(TWO, now=1.0) == []
    assert repo.tick(ONE, now=1.0) == []


def test_a_server_tells_the_number_and_sends_the_head_to_who_asks() -> None:
    server = gossip(ONE, TWO, holder=False)
    server.head_shown(ONE, NEW)
    server.head_changed(NEW, now=1.0)
    assert ticked(server, ONE, 1.0 + TELL_S) == []
    ((_, told),) = ticked(server, TWO, 1.0 + TELL_S)
    assert told == SendHeadDigest(TWO, NEW)
    server.digest_received(TWO, OLD, now=2.0)
    assert server.tick(TWO, now=2.0) == [SendHead(TWO)]


def test_a_server_that_turns_out_to_have_it_is_not_told() -> None:
    server = gossip(ONE, TWO, holder=False)
    server.head_changed(NEW, now=1.0)
    server.digest_received(ONE, NEW, now=1.0)
    server.head_shown(TWO, NEW)
    assert ticked(server, ONE, 1.0 + TELL_S) == ticked(server, TWO, 1.0 + TELL_S) == []


def test_a_peer_without_digests_gets_the_head_itself_and_never_a_digest() -> None:
    server = gossip(ONE, holder=False, digests=False)
    server.head_changed(NEW, now=1.0)
    assert ticked(server, ONE, 10 * DIGEST_S) == [(1.0, SendHead(ONE))]
    assert server.wake_at(ONE) is None


def test_who_comes_with_an_older_head_gets_the_newest() -> None:
    repo = gossip()
    repo.head_changed(NEW, now=1.0)
    repo.peer_joined(ONE, OLD, digests=True, now=2.0)
    assert repo.tick(ONE, now=2.0) == [SendHead(ONE)]


def test_many_heads_in_a_row_are_sent_as_few_and_the_last_one_is_among_them() -> None:
    repo = gossip(ONE)
    sent = []
    for serial in range(2, 102):
        now = serial / 100
        repo.head_changed((1, serial), now=now)
        sent += repo.tick(ONE, now=now)
    sent += [effect for _, effect in ticked(repo, ONE, 3.0)]
    assert 2 <= len(sent) <= 4, "two in each of the two seconds"
    assert repo.wake_at(ONE) is not None


def test_a_second_head_soon_after_the_first_is_sent_at_once_and_a_third_waits() -> None:
    repo = gossip(ONE)
    for serial, now in ((2, 1.0), (3, 1.1), (4, 1.2)):
        repo.head_changed((1, serial), now=now)
        assert repo.tick(ONE, now=now) == ([SendHead(ONE)] if serial < 4 else [])
    assert ticked(repo, ONE, 3.0) == [(1.0 + PUSH_S, SendHead(ONE))]


def test_who_could_not_take_a_head_gets_it_again_when_it_says_so() -> None:
    repo = gossip(ONE)
    repo.head_changed(NEW, now=1.0)
    assert repo.tick(ONE, now=1.0) == [SendHead(ONE)]
    repo.digest_received(ONE, OLD, now=1.1)
    assert repo.tick(ONE, now=1.1) == [], "they may have crossed"
    ((asked_at, effect),) = ticked(repo, ONE, 1.1 + 2 * AGAIN_S)
    assert effect == SendHeadDigest(ONE, NEW)
    repo.digest_received(ONE, OLD, now=asked_at)
    assert repo.tick(ONE, now=asked_at) == [SendHead(ONE)]


def test_one_peer_at_a_time_is_asked_for_a_head_and_a_liar_ever_later() -> None:
    server = gossip(ONE, TWO, holder=False)
    server.digest_received(ONE, NEW, now=1.0)
    server.digest_received(TWO, NEW, now=1.0)
    assert server.tick(ONE, now=1.0) == [SendHeadDigest(ONE, OLD)]
    assert server.tick(TWO, now=1.0) == []
    assert server.tick(TWO, now=1.0 + ASK_S) == [SendHeadDigest(TWO, OLD)]
    asked = ticked(server, ONE, 1.0 + 10 * DIGEST_S)
    assert 8 <= len(asked) <= 20


def test_peers_compare_now_and_then() -> None:
    repo = gossip(ONE)
    times = [at for at, _ in ticked(repo, ONE, 10 * DIGEST_S)]
    assert 7 <= len(times) <= 14


def test_what_is_said_of_or_by_who_is_gone_changes_nothing() -> None:
    repo = gossip(ONE)
    repo.peer_lost(ONE)
    repo.digest_received(ONE, OLD, now=1.0)
    repo.head_shown(ONE, NEW)
    assert repo.tick(ONE, now=1.0) == []
    assert repo.wake_at(ONE) is None


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=2, max_size=7),
    st.integers(0, 2**32),
    st.floats(0.0, 0.6),
)
def test_every_head_arrives_over_a_line_that_loses_some(
    holders: list[bool], seed: int, loss: float
) -> None:
    """A chain of nodes; a message is lost where a receiver could not take it."""
    random = Random(seed)
    nodes = [NodeId(bytes([n]) * 32) for n in range(len(holders))]
    machines = [HeadGossip(holder=holder, random=random) for holder in holders]
    near = {n: [m for m in (n - 1, n + 1) if 0 <= m < len(nodes)] for n in range(len(nodes))}
    for n, machine in enumerate(machines):
        machine.head_changed(OLD, now=0.0)
        for m in near[n]:
            machine.peer_joined(nodes[m], OLD, digests=True, now=0.0)
    machines[0].head_changed(NEWEST, now=0.0)
    now = 0.0
    for _ in range(40_000):
        if all(machine.order == NEWEST for machine in machines):
            break
        wakes = [
            at
            for n, machine in enumerate(machines)
            for m in near[n]
            if (at := machine.wake_at(nodes[m])) is not None
        ]
        now = max(now + 0.01, min(wakes))
        for n, machine in enumerate(machines):
            for m in near[n]:
                for effect in machine.tick(nodes[m], now=now):
                    lost = random.random() < loss
                    if isinstance(effect, SendHeadDigest):
                        machines[m].digest_received(nodes[n], effect.order, now=now)
                    elif not lost:
                        machines[m].head_shown(nodes[n], machine.order)
                        machines[m].head_changed(machine.order, now=now)
    assert all(machine.order == NEWEST for machine in machines)
