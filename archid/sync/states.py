"""What this node says of itself, and what the others say of themselves.

The own state is made again when something changed and now and then as a sign of life, signed, and
given to the machine in `protocol.gossip`, which says who gets what. What peers send is verified
here first: the facts of the node, its signature, its order. Only what may be known here arrives
here, so everything kept may be shown.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import SystemRandom
from types import MappingProxyType
from typing import Final, TypeAlias

import trio

from archid.events import EventHub
from archid.identity import Identity
from archid.log import SparingLog, get_logger
from archid.net.errors import PeerLost
from archid.net.peer import Peer
from archid.sync.own_leaf import OwnLeaf
from archid.sync.signal import Signal
from archid.sync.trust_keeper import TrustKeeper
from protocol.envelope import Envelope
from protocol.errors import ProtocolError, TrustError
from protocol.facts import NodeFacts
from protocol.gossip import Announcement, DigestRow, GossipEffect, SendStates, StateGossip
from protocol.grants import Proof
from protocol.head import DENIED_NODE, Head
from protocol.ids import NodeId
from protocol.messages import ErrorCode, SentState, StateDigest, StateRow, States
from protocol.messages.gossip import MAX_STATE_ENVELOPE_BYTES
from protocol.state import Holding, NodeState, ReleaseStanding, open_state

log = get_logger(__name__)
_sparing = SparingLog(log)

SIGN_OF_LIFE_S: Final = 300.0
SHORTEST_S: Final = 5.0
"""A node says something new at most this often, unless it is its first word."""
SILENT_AFTER_S: Final = 3 * SIGN_OF_LIFE_S
QUEUED_MESSAGES: Final = 256


_Link: TypeAlias = tuple[Peer, trio.MemorySendChannel[States | StateDigest]]


@dataclass(frozen=True)
class Account:
    """What a node has to say of itself, without numbers and signature."""

    software: str
    addresses: tuple[str, ...]
    health: str
    reasons: tuple[str, ...]
    free_bytes: int
    releases: tuple[ReleaseStanding, ...]
    holdings: tuple[Holding, ...]


class NodeStates:
    """The states that are known here, and the gossip about them."""

    def __init__(
        self,
        identity: Identity,
        *,
        incarnation: int,
        keeper: TrustKeeper,
        leaf: OwnLeaf,
        events: EventHub,
        account: Callable[[], Awaitable[Account]],
        roster: Callable[[NodeId], NodeFacts | None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`roster` knows facts of nodes without a proof, on central and REPOs."""
        self.changed = Signal()
        self.places_changed = Signal()
        self.heads_changed = Signal()
        """Somebody was heard of for the first time, or has another head than it had: while nodes
        fetch, states change far more often than that."""
        self._identity = identity
        self._incarnation = incarnation
        self._keeper = keeper
        self._leaf = leaf
        self._events = events
        self._account = account
        self._roster = roster
        self._clock = clock
        self._random = SystemRandom()
        self._gossip: StateGossip | None = None
        self._peers: dict[NodeId, _Link] = {}
        self._states: dict[NodeId, NodeState] = {}
        self._places: dict[NodeId, tuple[NodeFacts, NodeState]] = {}
        self._poked = Signal()
        self._said: Account | None = None
        self._said_head = (0, 0)
        self._seq = 0

    @property
    def known(self) -> Mapping[NodeId, NodeState]:
        """The newest state of every node that told something, this one included."""
        return MappingProxyType(self._states)

    def facts(self, node: NodeId) -> NodeFacts | None:
        """Who a node with a state is."""
        held = self._gossip.states.get(node) if self._gossip is not None else None
        return held.facts if held is not None else None

    def is_silent(self, state: NodeState) -> bool:
        """Whether a node has said nothing for so long that it must be down or cut off."""
        return self._clock() - state.issued_s > SILENT_AFTER_S

    def places(self) -> tuple[tuple[NodeFacts, NodeState], ...]:
        """Whom this node may want to dial, by their own account: holders and its own site."""
        return tuple(place for _, place in sorted(self._places.items()))

    def poke(self) -> None:
        """Something about this node may have changed."""
        self._poked.fire()

    def forget_revoked(self) -> None:
        """Drop what nodes said that the head denies: it is passed on no more, nor dialled."""
        head = self._keeper.trust.head
        if self._gossip is None or head is None:
            return
        denied = {one.id for one in head.denied if one.kind == DENIED_NODE}
        spoke = [node for node in self._states if node in denied] if denied else []
        gone = [node for node in spoke if self._is_revoked(node, head)]
        self._gossip.forget(gone)
        for node in gone:
            del self._states[node]
            self._places.pop(node, None)
        if gone:
            self.changed.fire()
            self.places_changed.fire()

    def _is_revoked(self, node: NodeId, head: Head) -> bool:
        held = self._gossip.states.get(node) if self._gossip is not None else None
        if held is None or node == self._identity.node_id or self._roster(node) is not None:
            return False
        # Who was let in again speaks under newer Grants, which the denial leaves alone.
        return head.denies(DENIED_NODE, node, Proof.decode(held.payload[1]).grants_root)

    def _machine(self) -> StateGossip | None:
        """The gossip, from when this node knows who it is."""
        if self._gossip is None and self._leaf.facts is not None:
            self._gossip = StateGossip(self._leaf.facts, random=self._random)
        return self._gossip

    # Connections

    async def attend(self, peer: Peer) -> None:
        """Gossip with an admitted peer until the connection has ended."""
        gossip = self._machine()
        if gossip is None:
            return
        queue, queued = trio.open_memory_channel[States | StateDigest](QUEUED_MESSAGES)
        self._peers[peer.node] = (peer, queue)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_queued, peer, queued)
                self._send(gossip.peer_joined(peer.facts, now=trio.current_time()))
                self._poked.fire()
                await peer.closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self._peers.get(peer.node) == (peer, queue):
                del self._peers[peer.node]
                gossip.peer_lost(peer.node)

    async def _send_queued(
        self, peer: Peer, queued: trio.MemoryReceiveChannel[States | StateDigest]
    ) -> None:
        with suppress(PeerLost):
            async for message in queued:
                await peer.announce(message)

    def take(self, peer: Peer, message: States | StateDigest) -> None:
        """Take what a peer sent; what does not hold is passed over and logged."""
        gossip = self._machine()
        if gossip is None:
            return
        now = trio.current_time()
        if isinstance(message, StateDigest):
            rows = [DigestRow(row.node, (row.incarnation, row.seq)) for row in message.rows]
            answer = message.answer
            self._send(gossip.digest_received(peer.node, rows, answer=answer, now=now))
        else:
            announced: list[Announcement] = []
            states: dict[NodeId, NodeState] = {}
            for sent in message.states:
                held = gossip.held((sent.envelope, sent.proof))
                if held is not None:
                    announced.append(held)
                elif opened := self._open(peer, sent):
                    announced.append(opened[0])
                    states[opened[1].node] = opened[1]
            for one in gossip.received(peer.node, announced, now=now):
                if one.facts.node in states:
                    self._keep(one.facts, states[one.facts.node])
        self._poked.fire()

    def _open(self, peer: Peer, sent: SentState) -> tuple[Announcement, NodeState] | None:
        try:
            envelope = Envelope.decode(sent.envelope, max_bytes=MAX_STATE_ENVELOPE_BYTES)
            proof = Proof.decode(sent.proof)
            facts = self._facts_of(proof)
            state = open_state(envelope, facts.key)
            if state.node != facts.node or state.fleet != self._keeper.trust.fleet:
                raise TrustError("a state is another node's or another fleet's than its proof")
        except ProtocolError as error:
            _sparing.info("state_refused", node=peer.node.short, why=str(error))
            return None
        return Announcement(facts, state.order, (sent.envelope, sent.proof)), state

    def _facts_of(self, proof: Proof) -> NodeFacts:
        head = self._keeper.head
        facts, grants_root = self._roster(proof.node), head.grants_roots[0]
        if facts is None:
            grants_root = proof.grants_root
            grants = self._keeper.trust.grants(grants_root)
            if grants is None:
                raise TrustError("its proof is under Grants that are not accepted")
            facts, _ = proof.verify(grants)
        if head.denies(DENIED_NODE, facts.node, grants_root):
            raise TrustError(f"{facts.name} was revoked")
        return facts

    def _keep(self, facts: NodeFacts, state: NodeState) -> None:
        before = self._states.get(facts.node)
        self._states[facts.node] = state
        if before is None or before.head_order != state.head_order:
            self.heads_changed.fire()
        self._note_place(facts, state)
        self._events.publish(
            "state.changed",
            node=facts.node.hex(),
            name=facts.name,
            health=state.health,
            releases=[[one.release.hex(), one.generation, one.state] for one in state.releases],
        )
        self.changed.fire()

    def _note_place(self, facts: NodeFacts, state: NodeState) -> None:
        own = self._leaf.facts
        if own is None or facts.node == own.node or not state.addresses:
            return
        if facts.reads_everything or (own.site and facts.site == own.site):
            held = self._places.get(facts.node)
            self._places[facts.node] = (facts, state)
            if held is None or (held[0], held[1].addresses) != (facts, state.addresses):
                self.places_changed.fire()

    # Saying and passing on

    async def run(self) -> None:
        """Speak and pass on until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._speak)
            while True:
                seen = self._poked.version
                wait_s = SHORTEST_S
                if self._gossip is not None:
                    now = trio.current_time()
                    self._send(self._gossip.tick(now=now))
                    wake_at = self._gossip.wake_at
                    wait_s = SIGN_OF_LIFE_S if wake_at is None else max(wake_at - now, 0.0)
                with trio.move_on_after(wait_s):
                    await self._poked.wait(seen)

    async def _speak(self) -> None:
        spoke_at = float("-inf")
        while True:
            account = await self._account()
            now = trio.current_time()
            self.forget_revoked()
            news = account != self._said or self._keeper.order != self._said_head
            if self._leaf.facts is not None and (news or now - spoke_at >= SIGN_OF_LIFE_S):
                self._say(account)
                spoke_at = now
                self._poked.fire()
            await trio.sleep(SHORTEST_S)

    def _say(self, account: Account) -> None:
        held = self._leaf.document_and_leaf
        fleet = self._keeper.trust.fleet
        if held is None or fleet is None:
            return
        document, leaf = held
        self._seq += 1
        state = NodeState(
            fleet=fleet,
            node=self._identity.node_id,
            incarnation=self._incarnation,
            seq=self._seq,
            issued_s=max(0, int(self._clock())),
            software=account.software,
            addresses=account.addresses,
            head_order=self._keeper.order,
            health=account.health,
            reasons=account.reasons,
            free_bytes=account.free_bytes,
            releases=account.releases,
            holdings=account.holdings,
        )
        try:
            payload = state.encode()
        except ProtocolError as error:
            log.error("own_state_unfit", why=str(error))
            return
        envelope = Envelope(payload, (self._identity.sign(NodeState.TYPE, payload),))
        proof = document.proof().encode()
        announced = Announcement(leaf.facts, state.order, (envelope.encode(), proof))
        gossip = self._machine()
        if gossip is not None:
            gossip.own_changed(announced, now=trio.current_time())
        self._said, self._said_head = account, self._keeper.order
        self._keep(leaf.facts, state)

    def _send(self, effects: Sequence[GossipEffect]) -> None:
        for effect in effects:
            if effect.peer not in self._peers:
                continue
            peer, queue = self._peers[effect.peer]
            if isinstance(effect, SendStates):
                message: States | StateDigest = States(
                    tuple(SentState(*one.payload) for one in effect.states)
                )
            else:
                rows = tuple(StateRow(row.node, *row.order) for row in effect.rows)
                message = StateDigest(rows, effect.answer)
            try:
                queue.send_nowait(message)
            except trio.WouldBlock:
                # It must not hold up what others are told, and what it missed is found again
                # when it comes back.
                peer.disconnect(ErrorCode.LIMIT_EXCEEDED, "it does not take what it is told")
