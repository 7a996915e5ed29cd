"""Carries out whom to be connected to: feeds `protocol.peer_view` and does what it says.

It reads where nodes are from the address book and from states, who is connected from the
directory, and tells the dialer whom to dial. The addresses that a person has configured are
dialled whatever the machine says. Nobody is chosen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from random import SystemRandom
from typing import Final

import trio

from archid.addresses import Address, parse_address
from archid.log import SparingLog, get_logger
from archid.net.dialer import Dialer
from archid.net.errors import PeerLost
from archid.net.switchboard import Switchboard
from archid.sync.address_book import AddressBook
from archid.sync.fellows import Fellows
from archid.sync.own_leaf import OwnLeaf
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal, either
from archid.sync.states import NodeStates
from archid.sync.trust_keeper import TrustKeeper
from protocol.facts import ROLE_CENTRAL, NodeFacts
from protocol.ids import NodeId
from protocol.messages import ErrorCode, PeerHint, PeerHints
from protocol.peer_view import Kind, PeerView, Randomness, TurnAway

log = get_logger(__name__)
_sparing = SparingLog(log)

AGE_S: Final = 3600.0
"""How often the address book is looked through for those who were silent for long."""
MOST_OF_ICE: Final = 64
"""Connections of an ICE server, whatever is configured."""


class PeerChoice:
    """Decides nothing: `run` keeps the dialer and the switchboard to what the view says."""

    def __init__(
        self,
        own: NodeId,
        *,
        holder: bool,
        max_peers: int,
        pinned: Callable[[], Iterable[Address]],
        central: Iterable[Address],
        not_dialled: Callable[[], Iterable[Address]],
        keeper: TrustKeeper,
        leaf: OwnLeaf,
        addresses: AddressBook,
        states: NodeStates,
        directory: PeerDirectory,
        fellows: Fellows | None = None,
        random: Randomness | None = None,
    ) -> None:
        """`pinned` is what is configured; `central` where central was when this node joined."""
        most = max_peers if holder else min(max_peers, MOST_OF_ICE)
        self.view = PeerView(own, holder=holder, most=most, random=random or SystemRandom())
        self._pinned = pinned
        self._central = frozenset(central)
        self._not_dialled = not_dialled
        self._keeper = keeper
        self._leaf = leaf
        self._addresses = addresses
        self._states = states
        self._directory = directory
        self._fellows = fellows or Fellows(own)
        self._at: dict[Address, NodeId] = {}
        self._failed: list[tuple[Address, bool]] = []
        self._poked = Signal()
        self._aged_at = float("-inf")

    def poke(self) -> None:
        """What is configured has changed."""
        self._poked.fire()

    def dial_failed(self, address: Address, code: ErrorCode | None) -> None:
        """The dialer got nowhere; `code` is what the other end said, if it said anything."""
        self._failed.append((address, code is ErrorCode.BUSY))
        self._poked.fire()

    async def run(self, dialer: Dialer, switchboard: Switchboard) -> None:
        """Keep to the view until cancelled."""
        signals = (
            self._poked,
            self._addresses.changed,
            self._states.places_changed,
            self._directory.changed,
            self._keeper.changed,
            self._fellows.changed,
        )
        while True:
            seen = tuple((signal, signal.version) for signal in signals)
            now = trio.current_time()
            seeds = self._learn(now)
            self._note(now)
            for effect in self.view.tick(now=now):
                if isinstance(effect, TurnAway):
                    self._turn_away(effect.node, switchboard)
            self._at = {
                address: node
                for node, texts in self.view.dialled.items()
                for address in _parsed(texts)
            }
            wanted = {*self._pinned(), *seeds, *self._at}
            dialer.want(wanted.difference(self._not_dialled()))
            wakes = (self.view.wake_at(now=now), self._fellows.wake_at(), self._aged_at + AGE_S)
            with trio.move_on_at(min(at for at in wakes if at is not None)):
                await either(*seen)

    def _learn(self, now: float) -> Iterable[Address]:
        """Tell the view where nodes are; returns where central is, while it is not listed."""
        trust, own = self._keeper.trust, self._leaf.facts
        near: dict[NodeId, tuple[str, ...]] = {}
        for facts, state in self._states.places():
            if facts.reads_everything:
                hint = PeerHint(facts.node, facts.role, state.addresses)
                self._addresses.learn_state(hint, state.issued_s)
            elif _kind(own, facts) is Kind.NEIGHBOUR and not trust.is_denied(facts.node):
                near[facts.node] = state.addresses
        if now >= self._aged_at + AGE_S:
            self._aged_at = now
            self._addresses.age(peer.node for peer in self._directory.one_per_node())
        far = {hint.node: hint.addresses for hint in self._addresses.known()}
        seeds = {str(one) for one in self._central}
        for hint in self._addresses.known():
            if hint.role == ROLE_CENTRAL and seeds:
                far[hint.node] = tuple(sorted({*hint.addresses, *seeds}))
        fellows = {
            node: texts
            for node, texts in self._fellows.places(now=now).items()
            if node not in far and node not in near and not trust.is_denied(node)
        }
        self.view.want_others(bool(fellows))
        groups = ((far, Kind.HOLDER), (near, Kind.NEIGHBOUR), (fellows, Kind.OTHER))
        for nodes, kind in groups:
            for node, texts in sorted(nodes.items()):
                self.view.learnt(node, kind, texts)
        self.view.forgotten(self.view.known - far.keys() - near.keys() - fellows.keys())
        listed = any(hint.role == ROLE_CENTRAL for hint in self._addresses.known())
        return () if listed else self._central

    def _note(self, now: float) -> None:
        """Tell the view who has come and gone, and which attempts have failed."""
        present = {
            peer.node: peer for peer in self._directory.one_per_node() if not peer.closed.is_set()
        }
        for node in sorted(self.view.connected - present.keys()):
            self.view.peer_lost(node, now=now)
        for node in sorted(present.keys() - self.view.connected):
            peer = present[node]
            kind = _kind(self._leaf.facts, peer.facts)
            self.view.peer_joined(node, kind, dialled=peer.dialled)
        failed, self._failed = self._failed, []
        for address, busy in failed:
            if address in self._at:
                self.view.dial_failed(self._at[address], busy=busy, now=now)

    def _turn_away(self, node: NodeId, switchboard: Switchboard) -> None:
        peer = switchboard.peers.get(node)
        if peer is None:
            return
        _sparing.warning(
            "peer_turned_away", name=peer.facts.name, connected=len(self.view.connected)
        )
        own = self._leaf.facts
        if own is not None and own.reads_everything:
            with suppress(PeerLost):
                peer.push(PeerHints(self._addresses.hints()))
        peer.disconnect(ErrorCode.BUSY, "as many nodes are connected as it takes; ask another")


def _kind(own: NodeFacts | None, other: NodeFacts) -> Kind:
    if other.reads_everything:
        return Kind.HOLDER
    near = own is not None and own.site != "" and own.site == other.site
    return Kind.NEIGHBOUR if near else Kind.OTHER


def _parsed(texts: Iterable[str]) -> Iterable[Address]:
    for text in texts:
        with suppress(ValueError):
            address = parse_address(text)
            if not address.is_wildcard:
                yield address
