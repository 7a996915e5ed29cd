"""Spreading heads: a pure machine that says to whom the newest head is owed.

Central and REPOs push a new head at once to every peer that is not known to have it. Others tell
their peers its number, and whoever lacks it asks: thus the head itself comes to a server about as
often as it is connected to central and REPOs, and only small digests go between servers. What was
missed, because a peer could not take what it got, is found by digests that each pair exchanges now
and then. One peer gets at most two heads a second, always the newest: a publication and the release
of what was published sign one each, and the second is not to wait for having come soon. Time and
randomness are arguments; believing a head is `protocol.trust`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from protocol.ids import NodeId

PUSH_S: Final = 1.0
"""One peer gets at most two heads within this time."""
TELL_S: Final = 0.5
"""A server tells its peers of a new head within this time, unless they turn out to have it."""
DIGEST_S: Final = 300.0
"""How often two peers compare at least."""
AGAIN_S: Final = 5.0
"""After this long, who still lacks a head that was sent to it gets it again."""
ASK_S: Final = 2.0
"""Who lacks a head asks one peer at a time, each for this long; the same one ever later."""

Order: TypeAlias = tuple[int, int]


class Uniform(Protocol):
    """What is needed of a `random.Random`; the caller brings it, so that a run can be repeated."""

    def uniform(self, a: float, b: float, /) -> float: ...


@dataclass(frozen=True, slots=True)
class SendHead:
    """Send the newest head."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class SendHeadDigest:
    """Tell which head is the newest here; whoever has a newer one then sends it."""

    peer: NodeId
    order: Order


HeadEffect: TypeAlias = SendHead | SendHeadDigest


@dataclass
class _Peer:
    known: Order
    """The newest head that it is known to have."""
    digests: bool
    digest_at: float
    telling: bool = False
    """The digest is only there to tell of a new head."""
    sent: Order = (0, 0)
    sent_at: float = float("-inf")
    sent_before_at: float = float("-inf")
    """When it got the head before that."""
    head_at: float | None = None
    ask_wait_s: float = ASK_S


class HeadGossip:
    """What one node knows of its peers' heads. Call `tick` of a peer at its `wake_at`."""

    def __init__(self, *, holder: bool, random: Uniform) -> None:
        """`holder`: this is central or a REPO."""
        self.order: Order = (0, 0)
        self._holder = holder
        self._random = random
        self._peers: dict[NodeId, _Peer] = {}
        self._ask_at = float("-inf")

    # What happened

    def peer_joined(self, node: NodeId, order: Order, *, digests: bool, now: float) -> None:
        """A peer is connected and has shown that it has this head."""
        peer = self._peers[node] = _Peer(order, digests, now + self._period_s())
        if order < self.order:
            peer.head_at = now
        elif order > self.order:
            peer.digest_at = now + ASK_S

    def peer_lost(self, node: NodeId) -> None:
        """A peer is gone."""
        self._peers.pop(node, None)

    def head_changed(self, order: Order, *, now: float) -> None:
        """This node believes, and has saved, a newer head."""
        if order <= self.order:
            return
        self.order = order
        self._ask_at = now
        for peer in self._peers.values():
            peer.ask_wait_s = ASK_S
            if peer.known >= order:
                continue
            if self._holder or not peer.digests:
                peer.head_at = max(now, peer.sent_before_at + PUSH_S)
            else:
                at = now + self._random.uniform(0.0, 1.0) * TELL_S
                peer.telling = True
                peer.digest_at = min(peer.digest_at, at)

    def head_shown(self, node: NodeId, order: Order) -> None:
        """A peer has sent a head with these numbers, so it need not get it."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.known = max(peer.known, order)

    def digest_received(self, node: NodeId, order: Order, *, now: float) -> None:
        """A peer says that this is the newest head that it has."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.known = order
        if order == self.order:
            peer.telling = False
            peer.digest_at = now + self._period_s()
        elif order > self.order:
            peer.telling = False
            peer.digest_at = min(peer.digest_at, max(now, self._ask_at))
        elif peer.sent < self.order or now >= peer.sent_at + AGAIN_S:
            peer.sent = (0, 0)
            peer.head_at = max(now, peer.sent_before_at + PUSH_S)
        else:
            # The head and this digest have crossed; if not, it will say so again.
            peer.telling = False
            peer.digest_at = min(peer.digest_at, now + 2 * AGAIN_S)

    # What to do

    def tick(self, node: NodeId, *, now: float) -> list[HeadEffect]:
        """What is to be sent to one peer now."""
        peer = self._peers.get(node)
        if peer is None:
            return []
        effects: list[HeadEffect] = []
        if peer.head_at is not None and now >= peer.head_at:
            peer.head_at = None
            if max(peer.known, peer.sent) < self.order:
                peer.sent, peer.sent_at, peer.sent_before_at = self.order, now, peer.sent_at
                effects.append(SendHead(node))
        if peer.digests and now >= peer.digest_at:
            effects += self._digest(node, peer, now)
        return effects

    def wake_at(self, node: NodeId) -> float | None:
        """When `tick` of a peer has something to do."""
        peer = self._peers.get(node)
        if peer is None:
            return None
        times = (peer.head_at, peer.digest_at if peer.digests else None)
        return min((at for at in times if at is not None), default=None)

    def _digest(self, node: NodeId, peer: _Peer, now: float) -> list[HeadEffect]:
        telling, peer.telling = peer.telling, False
        if peer.known > self.order:
            if now < self._ask_at:
                peer.digest_at = self._ask_at
                return []
            self._ask_at = now + ASK_S
            peer.digest_at = now + peer.ask_wait_s
            peer.ask_wait_s = min(2 * peer.ask_wait_s, DIGEST_S)
        else:
            peer.digest_at = now + self._period_s()
            if telling and peer.known >= self.order:
                return []
        return [SendHeadDigest(node, self.order)]

    def _period_s(self) -> float:
        return self._random.uniform(0.75, 1.25) * DIGEST_S
