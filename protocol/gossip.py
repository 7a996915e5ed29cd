"""Spreading node states: a pure machine that says what to tell whom.

Each node tells what it says of itself to central, to REPOs and to the nodes of its site, and what
central and REPOs say of themselves goes to everybody. A newer state is passed on to every peer
that may have it and is not known to have it, at most once an interval for each node and peer; what
was missed is found by digests, exchanged when two nodes meet and with one peer now and then. So
traffic is bounded by who changes, not by who listens, and no state is lost for good while the
nodes that may have it stay connected at all. Time and randomness are arguments; verifying what
comes in is the caller's, before it is told here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeAlias

from protocol.facts import NodeFacts
from protocol.ids import NodeId
from protocol.limits import MAX_DIGEST_ROWS, MAX_STATES_SENT

FLUSH_S: Final = 1.0
"""Changes are collected for this long before they are passed on."""
DIGEST_S: Final = 60.0
"""How often one peer is asked whether something was missed."""
FIRST_HAND_PEERS: Final = 3
"""To how many peers a server passes on what a sibling said to it: the others of the site have it
from there as well, and among N servers passing on to all would make N times N messages of it."""
MAX_STATES: Final = 20_000
"""States that are kept; beyond, those of nodes that nobody spoke of for longest are dropped."""

Order: TypeAlias = tuple[int, int]


class Randomness(Protocol):
    """What is needed of a `random.Random`; the caller brings it, so that a run can be repeated."""

    def uniform(self, a: float, b: float, /) -> float: ...

    def choice(self, seq: Sequence[NodeId], /) -> NodeId: ...


class Announcement(NamedTuple):
    """A state with what proves whose it is, as it travels; `order` and `facts` were verified."""

    facts: NodeFacts
    order: Order
    payload: tuple[bytes, bytes]
    """The signed envelope, and the proof of the node's facts."""


class DigestRow(NamedTuple):
    """One node and the newest state of it that the sender has."""

    node: NodeId
    order: Order


@dataclass(frozen=True, slots=True)
class SendStates:
    """Send these states to a peer, in one message."""

    peer: NodeId
    states: tuple[Announcement, ...]


@dataclass(frozen=True, slots=True)
class SendDigest:
    """Tell a peer what is held that it may have; it answers with what is newer."""

    peer: NodeId
    rows: tuple[DigestRow, ...]
    answer: bool
    """Whether the peer should answer with a digest of its own."""


GossipEffect: TypeAlias = SendStates | SendDigest


@dataclass
class _Peer:
    facts: NodeFacts
    known: dict[NodeId, Order] = field(default_factory=dict)
    """The newest order that the peer has, as far as this node can tell."""
    due: set[NodeId] = field(default_factory=set)

    def has(self, node: NodeId, order: Order) -> None:
        """It has said so; of so many nodes at most, since it may name any that do not exist.

        Of one that is forgotten it is sent once what it has already.
        """
        known = self.known.get(node)
        if known is not None or len(self.known) < MAX_STATES:
            self.known[node] = max(known, order) if known else order


class StateGossip:
    """What one node knows of the others, and what it owes its peers."""

    def __init__(self, own: NodeFacts, *, random: Randomness, flush_s: float = FLUSH_S) -> None:
        self.own = own
        self.states: dict[NodeId, Announcement] = {}
        self._held: dict[tuple[bytes, bytes], NodeId] = {}
        """Whose state has these bytes."""
        self._random = random
        self._flush_s = flush_s
        self._peers: dict[NodeId, _Peer] = {}
        self._owed: set[NodeId] = set()
        """Peers to which something is due."""
        self._said: dict[str | None, set[NodeId]] = {}
        """Whose states are held, by site; None for those that everybody may have."""
        self._listening: dict[str | None, set[NodeId]] = {}
        """Peers by site; None for those that may have everything."""
        self._flush_at: float | None = None
        self._digest_at: float | None = None

    def held(self, payload: tuple[bytes, bytes]) -> Announcement | None:
        """The state that travels as these very bytes, if it is held: it need not be verified again.

        At a site everybody hears of everybody from everybody else.
        """
        node = self._held.get(payload)
        return None if node is None else self.states[node]

    # What happened

    def peer_joined(self, peer: NodeFacts, *, now: float) -> list[GossipEffect]:
        """A peer is connected: compare notes."""
        self.peer_lost(peer.node)
        self._peers[peer.node] = _Peer(peer)
        self._listening.setdefault(_circle(peer), set()).add(peer.node)
        if self._digest_at is None:
            self._digest_at = now + self._random.uniform(0.5, 1.0) * DIGEST_S
        return self._digest(peer, answer=False)

    def peer_lost(self, node: NodeId) -> None:
        """A peer is gone, and with it what it was owed."""
        peer = self._peers.pop(node, None)
        if peer is not None:
            self._owed.discard(node)
            _discard(self._listening, _circle(peer.facts), node)

    def own_changed(self, state: Announcement, *, now: float) -> None:
        """This node has something new to say of itself."""
        self.own = state.facts
        self._take(state, now=now)

    def received(
        self, peer: NodeId, states: Iterable[Announcement], *, now: float
    ) -> list[Announcement]:
        """A peer sent verified states; returns those that were news."""
        sender = self._peers.get(peer)
        news = []
        for state in states:
            node = state.facts.node
            if sender is not None:
                sender.has(node, state.order)
            if node != self.own.node and self._take(state, now=now, first_hand=node == peer):
                news.append(state)
        return news

    def digest_received(
        self, peer: NodeId, rows: Sequence[DigestRow], *, answer: bool, now: float
    ) -> list[GossipEffect]:
        """A peer said what it has: what is newer here is owed to it."""
        other = self._peers.get(peer)
        if other is None:
            return []
        for row in rows:
            other.has(row.node, row.order)
        for node in self._for(other.facts):
            if self._lacks(other, self.states[node]):
                # Further pages may still say that it has it; that is looked at again when sending.
                other.due.add(node)
                self._owed.add(peer)
        self._schedule(now)
        return self._digest(other.facts, answer=False) if answer else []

    def tick(self, *, now: float) -> list[GossipEffect]:
        """Send what is due; call it at `wake_at` or later."""
        effects: list[GossipEffect] = []
        if self._flush_at is not None and now >= self._flush_at:
            self._flush_at = None
            owed, self._owed = self._owed, set()
            for node in sorted(owed):
                effects += self._flush(self._peers[node])
        if self._digest_at is not None and now >= self._digest_at:
            self._digest_at = now + self._random.uniform(0.75, 1.25) * DIGEST_S
            if self._peers:
                chosen = self._random.choice(sorted(self._peers))
                effects += self._digest(self._peers[chosen].facts, answer=True)
        return effects

    @property
    def wake_at(self) -> float | None:
        """When `tick` has something to do; None while there is nothing."""
        times = [at for at in (self._flush_at, self._digest_at) if at is not None]
        return min(times, default=None)

    def forget(self, nodes: Iterable[NodeId]) -> None:
        """Drop the states of nodes that left the fleet."""
        for node in nodes:
            self._drop(node)

    # Rules

    def _for(self, reader: NodeFacts) -> Iterable[NodeId]:
        """Whose states `reader` may have: all, or those of holders and of its own site."""
        if reader.reads_everything:
            return self.states
        near = self._said.get(reader.site, ()) if reader.site else ()
        return [*self._said.get(None, ()), *near]

    def _readers(self, whose: NodeFacts) -> Iterable[NodeId]:
        """Peers that may have what the node with facts `whose` says of itself."""
        if whose.reads_everything:
            return self._peers
        near = self._listening.get(whose.site, ()) if whose.site else ()
        return [*self._listening.get(None, ()), *near]

    def _take(self, state: Announcement, *, now: float, first_hand: bool = False) -> bool:
        node = state.facts.node
        held = self.states.get(node)
        if held is not None and state.order <= held.order:
            return False
        self._drop(node)  # newest last
        self.states[node] = state
        self._held[state.payload] = node
        self._said.setdefault(_circle(state.facts), set()).add(node)
        while len(self.states) > MAX_STATES:
            self._drop(next(iter(self.states)))
        lacking = [
            name for name in self._readers(state.facts) if self._lacks(self._peers[name], state)
        ]
        if first_hand and not self.own.reads_everything:
            lacking = self._few(lacking)
        for name in lacking:
            self._peers[name].due.add(node)
            self._owed.add(name)
            self._schedule(now)
        return True

    def _few(self, peers: Iterable[NodeId]) -> list[NodeId]:
        left, chosen = sorted(peers), list[NodeId]()
        while left and len(chosen) < FIRST_HAND_PEERS:
            chosen.append(self._random.choice(left))
            left.remove(chosen[-1])
        return chosen

    def _drop(self, node: NodeId) -> None:
        state = self.states.pop(node, None)
        if state is not None:
            self._held.pop(state.payload, None)
            _discard(self._said, _circle(state.facts), node)

    def _lacks(self, peer: _Peer, state: Announcement) -> bool:
        if state.facts.node == peer.facts.node:
            return False  # it knows best
        known = peer.known.get(state.facts.node)
        return known is None or known < state.order

    def _schedule(self, now: float) -> None:
        if self._flush_at is None:
            self._flush_at = now + self._flush_s

    def _flush(self, peer: _Peer) -> list[GossipEffect]:
        owed = [
            state
            for node in sorted(peer.due)
            if (state := self.states.get(node)) is not None and self._lacks(peer, state)
        ]
        peer.due.clear()
        for state in owed:
            peer.known[state.facts.node] = state.order
        return [
            SendStates(peer.facts.node, tuple(owed[start : start + MAX_STATES_SENT]))
            for start in range(0, len(owed), MAX_STATES_SENT)
        ]

    def _digest(self, peer: NodeFacts, *, answer: bool) -> list[GossipEffect]:
        """What is held that the peer may have, in order, so that gaps can be told."""
        rows = [DigestRow(node, self.states[node].order) for node in sorted(self._for(peer))]
        pages = [rows[n : n + MAX_DIGEST_ROWS] for n in range(0, len(rows), MAX_DIGEST_ROWS)] or [
            []
        ]
        return [
            SendDigest(peer.node, tuple(page), answer and n == len(pages) - 1)
            for n, page in enumerate(pages)
        ]


def _circle(facts: NodeFacts) -> str | None:
    """The site in which a node's words stay; None for central and REPOs."""
    return None if facts.reads_everything else facts.site


def _discard(groups: dict[str | None, set[NodeId]], group: str | None, node: NodeId) -> None:
    members = groups[group]
    members.discard(node)
    if not members:
        del groups[group]
