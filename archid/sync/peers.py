"""Who is admitted now: the peers that the rest of `archid.sync` may talk to."""

from __future__ import annotations

from archid.events import EventHub
from archid.log import get_logger
from archid.net.peer import Peer
from archid.sync.distrust import Distrust
from archid.sync.signal import Signal
from archid.sync.span_exchange import SpanExchange
from protocol.ids import NodeId

log = get_logger(__name__)


class PeerDirectory:
    """Admitted peers by node; one connection a node is kept, the dialer sees to that."""

    def __init__(self, events: EventHub) -> None:
        self.changed = Signal()
        self.spans = SpanExchange()
        """What these peers and this node tell one another about spans."""
        self.distrust = Distrust()
        """Which of them sent wrong bytes lately."""
        self._events = events
        self._peers: list[Peer] = []

    def add(self, peer: Peer) -> None:
        self._peers.append(peer)
        facts = peer.facts
        log.info("peer_admitted", node=facts.node.short, name=facts.name, role=facts.role)
        self._events.publish(
            "peer.admitted",
            node=facts.node.hex(),
            name=facts.name,
            role=facts.role,
            address=peer.remote,
        )
        self.changed.fire()

    def remove(self, peer: Peer) -> None:
        self._peers.remove(peer)
        # The switchboard says with which connection it went and why; this is for debugging.
        log.debug("peer_lost", node=peer.facts.node.short, name=peer.facts.name)
        self._events.publish("peer.lost", node=peer.facts.node.hex(), name=peer.facts.name)
        self.changed.fire()

    def all(self) -> tuple[Peer, ...]:
        """Every admitted connection, oldest first."""
        return tuple(self._peers)

    def one_per_node(self) -> tuple[Peer, ...]:
        """The oldest connection to each node, of those that have not ended if there is one."""
        found: dict[NodeId, Peer] = {}
        for peer in self._peers:
            other = found.get(peer.facts.node)
            if other is None or other.closed.is_set():
                found[peer.facts.node] = peer
        return tuple(found.values())

    def holders_of_everything(self) -> tuple[Peer, ...]:
        """Central and the REPOs among them."""
        return tuple(peer for peer in self.one_per_node() if peer.facts.reads_everything)
