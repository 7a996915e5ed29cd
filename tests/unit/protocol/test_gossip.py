"""State gossip: everybody who may have a state gets the newest one, nobody else any."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.envelope import PublicKey
from protocol.facts import NodeFacts
from protocol.gossip import (
    FIRST_HAND_PEERS,
    MAX_STATES,
    Announcement,
    DigestRow,
    SendDigest,
    SendStates,
    StateGossip,
)
from protocol.ids import NodeId

KEY = PublicKey(bytes(32))


def facts(number: int, role: str = "ice", site: str = "") -> NodeFacts:
    return NodeFacts(NodeId(number.to_bytes(32, "big")), KEY, role, f"node-{number}", site)


def state(who: NodeFacts, seq: int, incarnation: int = 1) -> Announcement:
    return Announcement(who, (incarnation, seq), (b"state %d" % seq, b"proof"))


class Network:
    """Gossips wired together; messages arrive in the order sent, one clock for all."""

    def __init__(self, nodes: list[NodeFacts]) -> None:
        self.now = 0.0
        self.nodes = {one.node: StateGossip(one, random=Random(7)) for one in nodes}
        self.links: set[frozenset[NodeId]] = set()
        self.states_sent = 0
        self.told: list[tuple[NodeId, NodeId]] = []

    def connect(self, one: NodeFacts, other: NodeFacts) -> None:
        self.links.add(frozenset((one.node, other.node)))
        first = self.nodes[one.node].peer_joined(other, now=self.now)
        second = self.nodes[other.node].peer_joined(one, now=self.now)
        self._carry(one.node, first)
        self._carry(other.node, second)

    def cut(self, one: NodeFacts, other: NodeFacts) -> None:
        self.links.discard(frozenset((one.node, other.node)))
        self.nodes[one.node].peer_lost(other.node)
        self.nodes[other.node].peer_lost(one.node)

    def say(self, who: NodeFacts, seq: int) -> None:
        self.nodes[who.node].own_changed(state(who, seq), now=self.now)

    def settle(self, seconds: int = 12) -> None:
        for _ in range(seconds):
            self.now += 1.0
            for node, gossip in self.nodes.items():
                self._carry(node, gossip.tick(now=self.now))

    def _carry(self, sender: NodeId, effects: list[SendStates | SendDigest]) -> None:
        for effect in effects:
            if frozenset((sender, effect.peer)) not in self.links:
                continue
            receiver = self.nodes[effect.peer]
            if isinstance(effect, SendStates):
                self.states_sent += len(effect.states)
                self.told += [(effect.peer, one.facts.node) for one in effect.states]
                receiver.received(sender, effect.states, now=self.now)
            else:
                answer = receiver.digest_received(
                    sender, effect.rows, answer=effect.answer, now=self.now
                )
                self._carry(effect.peer, answer)


CENTRAL = facts(1, "central", "head office")
REPO = facts(2, "repo", "paris")
LYON = [facts(10, site="lyon"), facts(11, site="lyon")]
NICE = [facts(20, site="nice")]
EVERYBODY = [CENTRAL, REPO, *LYON, *NICE]


def fleet() -> Network:
    """ICE servers reach the REPO only; the REPO reaches central."""
    network = Network(EVERYBODY)
    network.connect(CENTRAL, REPO)
    for ice in (*LYON, *NICE):
        network.connect(ice, REPO)
    return network


def held(network: Network, who: NodeFacts) -> dict[NodeId, tuple[int, int]]:
    return {node: one.order for node, one in network.nodes[who.node].states.items()}


def test_central_learns_of_a_room_that_it_is_not_connected_to() -> None:
    network = fleet()
    network.say(LYON[0], 1)
    network.settle()
    assert held(network, CENTRAL)[LYON[0].node] == (1, 1)
    network.say(LYON[0], 2)
    network.settle()
    assert held(network, CENTRAL)[LYON[0].node] == (1, 2)


def test_a_neighbour_gets_a_rooms_state_and_another_cinema_never_does() -> None:
    network = fleet()
    network.connect(LYON[0], NICE[0])
    for who in EVERYBODY:
        network.say(who, 1)
    network.settle(30)
    assert held(network, LYON[1])[LYON[0].node] == (1, 1)
    assert held(network, NICE[0]).keys() == {NICE[0].node, CENTRAL.node, REPO.node}
    lyon = {one.node for one in LYON}
    assert not [pair for pair in network.told if pair[0] == NICE[0].node and pair[1] in lyon]


def test_what_was_missed_while_apart_is_found_when_they_meet_again() -> None:
    network = fleet()
    network.cut(REPO, CENTRAL)
    network.say(LYON[0], 5)
    network.settle()
    assert LYON[0].node not in held(network, CENTRAL)
    network.connect(CENTRAL, REPO)
    network.settle()
    assert held(network, CENTRAL)[LYON[0].node] == (1, 5)


def test_an_older_state_never_replaces_a_newer_one() -> None:
    gossip = StateGossip(REPO, random=Random(1))
    gossip.peer_joined(CENTRAL, now=0.0)
    new, old = state(LYON[0], 9), state(LYON[0], 8)
    assert gossip.received(CENTRAL.node, [new], now=0.0) == [new]
    assert gossip.received(CENTRAL.node, [old], now=0.0) == []
    assert gossip.received(CENTRAL.node, [state(LYON[0], 1, incarnation=2)], now=0.0)
    assert gossip.states[LYON[0].node].order == (2, 1)


def test_many_changes_in_a_second_cost_one_message_a_peer() -> None:
    network = fleet()
    network.settle()
    before = network.states_sent
    for seq in range(1, 101):
        network.say(LYON[0], seq)
    network.settle()
    # To the REPO, and from there to central and to the neighbour.
    assert network.states_sent - before == 3


def test_nothing_is_sent_when_nothing_changes() -> None:
    network = fleet()
    for who in EVERYBODY:
        network.say(who, 1)
    network.settle(20)
    before = network.states_sent
    network.settle(300)
    assert network.states_sent == before


def test_among_the_servers_of_a_large_site_a_state_does_not_come_from_everybody() -> None:
    site = [facts(100 + n, site="large") for n in range(16)]
    network = Network(site)
    pairs = [(one, other) for n, one in enumerate(site) for other in site[n + 1 :]]
    for one, other in pairs[1:]:  # the first two are not connected
        network.connect(one, other)
    network.say(site[0], 1)
    network.settle(3)
    assert network.states_sent <= 14 + 14 * FIRST_HAND_PEERS + 14
    network.settle(90)  # digests find who was missed
    for reader in site:
        assert held(network, reader)[site[0].node] == (1, 1)


def test_bytes_that_are_held_are_told_from_others() -> None:
    gossip = StateGossip(REPO, random=Random(1))
    old, new = state(LYON[0], 1), state(LYON[0], 2)
    assert gossip.held(old.payload) is None
    gossip.received(CENTRAL.node, [old], now=0.0)
    assert gossip.held(old.payload) == old
    gossip.received(CENTRAL.node, [new], now=0.0)
    assert (gossip.held(old.payload), gossip.held(new.payload)) == (None, new)
    gossip.forget([LYON[0].node])
    assert gossip.held(new.payload) is None


def test_a_digest_full_of_strangers_costs_nothing_and_stays_bounded() -> None:
    gossip = StateGossip(REPO, random=Random(1))
    gossip.peer_joined(CENTRAL, now=0.0)
    rows = tuple(DigestRow(facts(n).node, (1, 1)) for n in range(500))
    assert gossip.digest_received(CENTRAL.node, rows, answer=False, now=0.0) == []
    assert gossip.states == {}
    for first in range(500, MAX_STATES + 1000, 500):
        more = [DigestRow(facts(n).node, (1, 1)) for n in range(first, first + 500)]
        gossip.digest_received(CENTRAL.node, more, answer=False, now=0.0)
    assert len(gossip._peers[CENTRAL.node].known) == MAX_STATES
    # What it has of one of them is still followed.
    gossip.received(CENTRAL.node, [state(facts(7), 2)], now=0.0)
    assert gossip._peers[CENTRAL.node].known[facts(7).node] == (1, 2)


def test_a_digest_of_many_nodes_comes_in_pages_and_only_the_last_asks_for_an_answer() -> None:
    gossip = StateGossip(REPO, random=Random(1))
    for number in range(100, 1400):
        gossip.received(CENTRAL.node, [state(facts(number), 1)], now=0.0)
    effects = gossip.peer_joined(CENTRAL, now=0.0)
    digests = [one for one in effects if isinstance(one, SendDigest)]
    assert sum(len(one.rows) for one in digests) == 1300
    assert len(digests) == 3


@pytest.mark.parametrize("seed", range(3))
@settings(max_examples=30)
@given(data=st.data())
def test_whatever_breaks_in_between_everybody_ends_with_the_newest(
    seed: int, data: st.DataObject
) -> None:
    del seed
    nodes = [CENTRAL, REPO, facts(3, "repo"), *LYON, *NICE, facts(21, site="nice")]
    network = Network(nodes)
    seqs = dict.fromkeys(nodes, 0)
    pairs = [(a, b) for n, a in enumerate(nodes) for b in nodes[n + 1 :]]
    for _ in range(data.draw(st.integers(5, 40))):
        what = data.draw(st.sampled_from(["say", "link", "wait"]))
        if what == "say":
            who = data.draw(st.sampled_from(nodes))
            seqs[who] += 1
            network.say(who, seqs[who])
        elif what == "link":
            one, other = data.draw(st.sampled_from(pairs))
            if frozenset((one.node, other.node)) in network.links:
                network.cut(one, other)
            else:
                network.connect(one, other)
        else:
            network.settle(data.draw(st.integers(1, 3)))
    for one, other in pairs:
        if REPO in (one, other) and frozenset((one.node, other.node)) not in network.links:
            network.connect(one, other)
    network.settle(20)
    for reader in nodes:
        for who, seq in seqs.items():
            may = reader.reads_everything or who.reads_everything or who.site == reader.site
            if seq and may:
                assert held(network, reader)[who.node] == (1, seq)
            elif not may:
                assert who.node not in held(network, reader)
