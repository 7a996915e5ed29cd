"""How much went to and came from each node, by kind, also over connections that have ended.

*Content* is the payload of spans, which both ends count alike; *gossip* is what nodes tell one
another unasked (states, digests, heads, addresses), counted by its payload. Bytes on the wire
include all of it, the requests and what TLS adds. Everything is since the daemon started.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from protocol.facts import NodeFacts
from protocol.ids import NodeId
from protocol.messages import HaveUpdate, Message, Unwant

METER_STEP_S: Final = 0.5
METER_WINDOW_S: Final = 5.0
MAX_NODES: Final = 1024
_NUMBER_BYTES: Final = 8


@dataclass(frozen=True)
class Traffic:
    """What went through one connection, or through several added up."""

    received_bytes: int = 0
    """On the wire, TLS included."""
    sent_bytes: int = 0
    span_bytes_received: int = 0
    """Payload of spans alone."""
    span_bytes_sent: int = 0
    gossip_bytes_received: int = 0
    """Payload of what is told unasked."""
    gossip_bytes_sent: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.received_bytes + other.received_bytes,
            self.sent_bytes + other.sent_bytes,
            self.span_bytes_received + other.span_bytes_received,
            self.span_bytes_sent + other.span_bytes_sent,
            self.gossip_bytes_received + other.gossip_bytes_received,
            self.gossip_bytes_sent + other.gossip_bytes_sent,
        )


class Meter:
    """A rate over the last seconds, in a few numbers however much goes through."""

    def __init__(self) -> None:
        self._steps: deque[list[float]] = deque(maxlen=int(METER_WINDOW_S / METER_STEP_S))

    def count(self, size_bytes: int, *, now: float) -> None:
        """So many bytes went through at `now`, on a clock that does not go back."""
        step = now // METER_STEP_S
        if self._steps and self._steps[-1][0] == step:
            self._steps[-1][1] += size_bytes
        else:
            self._steps.append([step, size_bytes])

    def bytes_per_s(self, *, now: float) -> float:
        """Over the window, or since counting began in it."""
        first = (now - METER_WINDOW_S) // METER_STEP_S
        recent = [step for step in self._steps if step[0] > first]
        if not recent:
            return 0.0
        took_s = now - recent[0][0] * METER_STEP_S
        return sum(size for _, size in recent) / max(took_s, METER_STEP_S)


def gossip_bytes(message: Message) -> int:
    """The payload of a notice that is gossip, 0 for one that belongs to a transfer."""
    return 0 if isinstance(message, HaveUpdate | Unwant) else _payload_bytes(message)


def _payload_bytes(value: object) -> int:
    if isinstance(value, bytes | bytearray | memoryview | str):
        return len(value)
    if isinstance(value, int):
        return _NUMBER_BYTES
    if isinstance(value, tuple | list):
        return sum(map(_payload_bytes, value))
    if dataclasses.is_dataclass(value):
        return sum(_payload_bytes(getattr(value, one.name)) for one in dataclasses.fields(value))
    return 0


@dataclass
class NodeTraffic:
    """One node that was connected since the daemon started; `past` is of ended connections."""

    facts: NodeFacts
    connections: int = 0
    past: Traffic = field(default_factory=Traffic)
    address: str = ""
    """Of the newest connection."""
    lost_s: float | None = None
    """When a connection ended last, and why."""
    lost_reason: str | None = None


class TrafficBook:
    """By node, for as many nodes as there is room; of more, the sum is kept."""

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self._max_nodes = max_nodes
        self._nodes: dict[NodeId, NodeTraffic] = {}
        self._forgotten = Traffic()

    @property
    def past(self) -> Traffic:
        """Of all connections that have ended."""
        return sum((one.past for one in self._nodes.values()), self._forgotten)

    def nodes(self) -> Iterable[NodeTraffic]:
        """Every node, the one that connected last at the end."""
        return tuple(self._nodes.values())

    def of(self, node: NodeId) -> NodeTraffic | None:
        """What is known of a node, None when it was never connected."""
        return self._nodes.get(node)

    def connected(self, facts: NodeFacts, address: str) -> None:
        """A connection begins to count."""
        known = self._nodes.pop(facts.node, None) or NodeTraffic(facts)
        known.facts, known.address = facts, address
        known.connections += 1
        self._nodes[facts.node] = known
        while len(self._nodes) > self._max_nodes:
            self._forgotten += self._nodes.pop(next(iter(self._nodes))).past

    def ended(self, node: NodeId, traffic: Traffic, *, now_s: float, reason: str | None) -> None:
        """A connection is over; `traffic` is what went through it."""
        known = self._nodes.get(node)
        if known is None:
            self._forgotten += traffic
            return
        known.past += traffic
        known.lost_s, known.lost_reason = now_s, reason
