"""One node of the simulated fleet: the real machines, joined as the daemon joins them.

`PeerView` chooses its connections, `StateGossip` and `HeadGossip` say what to tell whom, and
`TrustedDocuments` what to believe, signatures included. Messages are the real ones, encoded for
their size. Where the daemon waits, this node asks the network to wake it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Final

from protocol.facts import ROLE_CENTRAL, ROLE_ICE, NodeFacts
from protocol.gossip import Announcement, DigestRow, GossipEffect, SendStates, StateGossip
from protocol.head_gossip import HeadGossip, SendHead
from protocol.ids import NodeId
from protocol.messages import (
    HeadAnnounce,
    HeadDigest,
    Message,
    PeerHint,
    PeerHints,
    SentState,
    StateDigest,
    StateRow,
    States,
)
from protocol.peer_view import Dial, Kind, PeerView, TurnAway
from protocol.refusals import HeadRolledBack
from tests.sim.network import Link
from tests.unit.protocol.signed_fleet import NOW_S

if TYPE_CHECKING:
    from tests.sim.fleet import SimFleet

SIGN_OF_LIFE_S: Final = 300.0
SHORTEST_S: Final = 5.0
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
MOST: Final = {ROLE_ICE: 64}


class SimNode:
    """A node from one start to its end; what is on disk comes from `SimFleet`."""

    def __init__(self, fleet: SimFleet, facts: NodeFacts, *, incarnation: int) -> None:
        self.fleet = fleet
        self.net = fleet.net
        self.facts = facts
        self.node = facts.node
        self.trust = fleet.trust[self.node]
        random = Random(f"{fleet.spec.seed} {facts.name} {incarnation}")
        self._random = random
        self.view = PeerView(
            self.node,
            holder=facts.reads_everything,
            most=MOST.get(facts.role, fleet.spec.max_peers),
            random=random,
        )
        self.states = StateGossip(facts, random=random)
        self.heads = HeadGossip(holder=facts.reads_everything, random=random)
        self.links: dict[NodeId, Link] = {}
        self.hints: dict[NodeId, str] = {}
        """The address book: role of every holder."""
        self._dialling: dict[NodeId, float] = {}
        self._incarnation = incarnation
        self._seq = 0
        self._state_wake: float | None = None
        self._view_wake: float | None = None
        self._head_wakes: dict[NodeId, float] = {}

    @property
    def order(self) -> tuple[int, int]:
        return self.trust.head.order if self.trust.head is not None else (0, 0)

    def start(self, hints: Sequence[NodeId]) -> None:
        """Come up with an address book."""
        self.heads.head_changed(self.order, now=self.net.now)
        for node in hints:
            self.hints[node] = self.fleet.facts[node].role
        self._learn()
        self._say_in(0.1)
        self._look()

    # What the network tells

    def connected(self, link: Link, other: NodeId, *, dialled: bool) -> None:
        facts = self.fleet.facts[other]
        self.links[other] = link
        self._dialling[other] = FIRST_WAIT_S
        theirs = self.net.hosts[other]
        assert isinstance(theirs, SimNode)
        now, met_with = self.net.now, theirs.order
        if met_with < self.order:  # our proof brings it
            data = self._encoded(HeadAnnounce(*self._head_bytes()))
            head, grants = self._head_bytes()
            self._send(other, "meeting", data, lambda peer: peer.take_head(self.node, head, grants))
        self.view.peer_joined(other, self._kind(facts), dialled=dialled)
        self._do(self.states.peer_joined(facts, now=now))
        self.heads.peer_joined(other, max(met_with, self.order), digests=True, now=now)
        if self.facts.reads_everything:
            self._send_hints(other)
        self._tell_heads(other)
        self._wake_states()
        self.fleet.delivery.met(self.node, other)
        self._look()

    def disconnected(self, link: Link, other: NodeId, *, busy: bool) -> None:
        if self.links.get(other) is not link:
            return
        del self.links[other]
        now = self.net.now
        self.view.peer_lost(other, now=now)
        if busy:
            self.view.dial_failed(other, busy=True, now=now)
        self.states.peer_lost(other)
        self.heads.peer_lost(other)
        self.fleet.delivery.parted(self.node, other)
        self._look()
        self._dial_later(other)

    def dial_failed(self, other: NodeId) -> None:
        self.view.dial_failed(other, busy=False, now=self.net.now)
        self._look()
        self._dial_later(other)

    # Connections

    def _look(self) -> None:
        now = self.net.now
        for effect in self.view.tick(now=now):
            if isinstance(effect, Dial):
                self._dialling[effect.node] = FIRST_WAIT_S
                if effect.node not in self.links:
                    self.net.dial(self.node, effect.node)
            elif effect.node in self.links:
                link = self.links[effect.node]
                if isinstance(effect, TurnAway):
                    self._send_hints(effect.node)
                    self.net.end(link, self.node, busy=True)
                elif link.dialler == self.node:
                    self.net.end(link, self.node)
        wake_at = self.view.wake_at(now=now)
        if wake_at is not None and wake_at != self._view_wake:
            self._view_wake = wake_at
            self.net.at(wake_at, lambda: self._view_woken(wake_at))

    def _view_woken(self, at: float) -> None:
        if self._here() and self._view_wake == at:
            self._view_wake = None
            self._look()

    def _dial_later(self, other: NodeId) -> None:
        if other not in self.view.dialled:
            return
        wait_s = self._dialling.get(other, FIRST_WAIT_S)
        self._dialling[other] = min(2 * wait_s, LONGEST_WAIT_S)
        self.net.later(wait_s * self._random.uniform(0.5, 1.0), lambda: self._dial_again(other))

    def _dial_again(self, other: NodeId) -> None:
        if self._here() and other in self.view.dialled and other not in self.links:
            self.net.dial(self.node, other)

    def _send_hints(self, other: NodeId) -> None:
        roles = {self.node: self.facts.role, **self.hints}
        hints = tuple(PeerHint(node, role, ("h:1",)) for node, role in sorted(roles.items()))
        message = PeerHints(hints)
        self._say(other, "hints", message, lambda peer: peer.take_hints(message))

    def take_hints(self, message: PeerHints) -> None:
        new = {one.node: one.role for one in message.hints if one.node != self.node}
        if new.keys() <= self.hints.keys():
            return
        self.hints.update(new)
        self._learn()
        if self.facts.reads_everything:
            for other in sorted(self.links):
                self._send_hints(other)
        self._look()

    def _learn(self) -> None:
        for node in sorted(self.hints):
            self.view.learnt(node, Kind.HOLDER, ("h:1",))

    def _kind(self, other: NodeFacts) -> Kind:
        if other.reads_everything:
            return Kind.HOLDER
        near = self.facts.role == ROLE_ICE and other.site == self.facts.site
        return Kind.NEIGHBOUR if near else Kind.OTHER

    # Heads

    def sign(self, head: bytes, grants: bytes) -> None:
        """Central has something new."""
        assert self.facts.role == ROLE_CENTRAL
        self.take_head(self.node, head, grants)

    def take_head(self, sender: NodeId, head: bytes, grants: bytes) -> None:
        opened = self.fleet.opened(head)
        self.heads.head_shown(sender, self.fleet.order_of(head))
        try:
            newer = self.trust.accept_head(opened, now=NOW_S + self.net.now)
        except HeadRolledBack:
            return
        self.trust.accept_grants(self.fleet.opened(grants))
        if newer.value != "newer":
            return
        self.net.note("head", self.node, self.order)
        self.fleet.head_arrived(self)
        self.heads.head_changed(self.order, now=self.net.now)
        for other in sorted(self.links):
            self._tell_heads(other)
        self._say_in(self._random.uniform(0.0, SHORTEST_S))
        self.fleet.delivery.granted(self)

    def take_digest(self, sender: NodeId, order: tuple[int, int]) -> None:
        self.heads.digest_received(sender, order, now=self.net.now)
        self._tell_heads(sender)

    def _tell_heads(self, other: NodeId) -> None:
        for effect in self.heads.tick(other, now=self.net.now):
            if isinstance(effect, SendHead):
                head, grants = self._head_bytes()
                announce = HeadAnnounce(head, grants)
                self._say(other, "head", announce, _heads_of(self.node, head, grants))
            else:
                message = HeadDigest(effect.order)
                self._say(other, "head digest", message, _digest_of(self.node, effect.order))
        wake_at = self.heads.wake_at(other)
        if wake_at is not None and self._head_wakes.get(other) != wake_at:
            self._head_wakes[other] = wake_at
            self.net.at(wake_at, lambda: self._head_woken(other, wake_at))

    def _head_woken(self, other: NodeId, at: float) -> None:
        if self._here() and self._head_wakes.get(other) == at:
            del self._head_wakes[other]
            self._tell_heads(other)

    def _head_bytes(self) -> tuple[bytes, bytes]:
        head, trust = self.trust.head_envelope, self.trust
        assert head is not None
        assert trust.head is not None
        grants = trust.grants_envelope(trust.head.grants_roots[0])
        return head.encode(), grants.encode() if grants is not None else b""

    # States

    def _say_in(self, wait_s: float) -> None:
        self._seq += 1
        number = self._seq
        self.net.later(wait_s, lambda: self._speak(number))

    def _speak(self, number: int) -> None:
        if not self._here() or number != self._seq:
            return  # something newer was said, or will be
        announced = self.fleet.announced(self.facts, self._incarnation, self._seq, self.order)
        self.states.own_changed(announced, now=self.net.now)
        self._wake_states()
        self._say_in(SIGN_OF_LIFE_S)

    def take_states(self, sender: NodeId, announced: Sequence[Announcement]) -> None:
        near = False
        for one in self.states.received(sender, announced, now=self.net.now):
            if self._kind(one.facts) is Kind.NEIGHBOUR:
                self.view.learnt(one.facts.node, Kind.NEIGHBOUR, ("n:1",))
                near = True
        if near:
            self._look()
        for one in announced:
            self.fleet.told(self.facts, one.facts)
        self._wake_states()

    def take_state_digest(self, sender: NodeId, rows: Sequence[DigestRow], answer: bool) -> None:
        self._do(self.states.digest_received(sender, rows, answer=answer, now=self.net.now))
        self._wake_states()

    def _do(self, effects: Sequence[GossipEffect]) -> None:
        for effect in effects:
            if isinstance(effect, SendStates):
                told = effect.states
                message: Message = States(tuple(SentState(*one.payload) for one in told))
                self._say(effect.peer, "states", message, _states_of(self.node, told))
            else:
                rows = tuple(StateRow(row.node, *row.order) for row in effect.rows)
                message = StateDigest(rows, effect.answer)
                take = _rows_of(self.node, effect.rows, effect.answer)
                self._say(effect.peer, "state digest", message, take)

    def _wake_states(self) -> None:
        wake_at = self.states.wake_at
        if wake_at is not None and (self._state_wake is None or wake_at < self._state_wake):
            self._state_wake = wake_at
            self.net.at(wake_at, lambda: self._states_woken(wake_at))

    def _states_woken(self, at: float) -> None:
        if not self._here() or self._state_wake != at:
            return
        self._state_wake = None
        self._do(self.states.tick(now=self.net.now))
        self._wake_states()

    # Sending

    def _here(self) -> bool:
        return self.net.hosts.get(self.node) is self

    def _say(self, other: NodeId, kind: str, message: Message, take: Callable[[SimNode], None]
             ) -> None:  # fmt: skip
        self._send(other, kind, self._encoded(message), take)

    def _send(self, other: NodeId, kind: str, data: bytes, take: Callable[[SimNode], None]) -> None:
        link = self.links.get(other)
        if link is None:
            return

        def deliver() -> None:
            peer = self.net.hosts[other]
            assert isinstance(peer, SimNode)
            if self.node in peer.links:
                take(peer)

        self.net.send(link, self.node, kind, data, deliver)

    def _encoded(self, message: Message) -> bytes:
        return b"".join(message.encode())


def _heads_of(sender: NodeId, head: bytes, grants: bytes) -> Callable[[SimNode], None]:
    return lambda peer: peer.take_head(sender, head, grants)


def _digest_of(sender: NodeId, order: tuple[int, int]) -> Callable[[SimNode], None]:
    return lambda peer: peer.take_digest(sender, order)


def _states_of(sender: NodeId, told: Sequence[Announcement]) -> Callable[[SimNode], None]:
    return lambda peer: peer.take_states(sender, told)


def _rows_of(sender: NodeId, rows: Sequence[DigestRow], answer: bool) -> Callable[[SimNode], None]:
    return lambda peer: peer.take_state_digest(sender, rows, answer)
