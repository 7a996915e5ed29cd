"""A release on its way through the simulated fleet: the planning machines over its connections.

Every ICE server that has the head with the release fetches one version by a `FetchPlan`, from the
nodes that it is connected to at the time; whoever serves sends one span at a time, as fast as its
line takes it. What was received is on disk and outlives a node's end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from protocol.fetch import FetchPlan
from protocol.fetch_events import (
    COMPLETE,
    AskAny,
    AskSpan,
    CancelOffer,
    CancelSpan,
    FetchEffect,
    FetchEvent,
    OfferRefused,
    PeerHas,
    PeerJoined,
    PeerLost,
    SpanKey,
    SpanPicked,
    SpanReceived,
    SpanRefused,
    Tick,
    UnwantSpan,
    WakeAt,
    Wanted,
)
from protocol.ids import ManifestId, NodeId
from protocol.messages.codes import ErrorCode
from protocol.serve_choice import ServeChoice

if TYPE_CHECKING:
    from tests.sim.fleet import SimFleet
    from tests.sim.fleet_node import SimNode

MIB: Final = 1 << 20
MANIFEST: Final = ManifestId(bytes(32))
SMALL: Final = 60
"""Bytes of a request, a refusal or an announcement of a span."""


@dataclass
class _Asked:
    number: int
    receiver: NodeId
    spans: tuple[int, ...]
    offer: int | None
    cancelled: bool = False


@dataclass
class _Server:
    choice: ServeChoice
    queue: deque[_Asked] = field(default_factory=deque)
    sending: bool = False


class Delivery:
    """The version `MANIFEST` of so many spans of a MiB."""

    def __init__(self, fleet: SimFleet, *, spans: int, rate: float) -> None:
        """`rate`: bytes a second that a node sends."""
        self.fleet = fleet
        self.net = fleet.net
        self.keys = [SpanKey(0, n) for n in range(spans)]
        self.held: dict[NodeId, set[SpanKey]] = {}
        self.since: tuple[int, int] | None = None
        """The head with which it is granted."""
        self._rate = rate
        self._plans: dict[NodeId, FetchPlan] = {}
        self._servers: dict[NodeId, _Server] = {}
        self._wakes: dict[NodeId, float] = {}
        self._requests = 0

    def whole(self, node: NodeId) -> bool:
        """Whether a node has all of it."""
        if self.fleet.facts[node].reads_everything:
            return True
        return len(self.held.get(node, ())) == len(self.keys)

    # What happens to nodes

    def granted(self, node: SimNode) -> None:
        """A node has a head; it may be, or follow, the one with the release."""
        late = self.since is None or node.order < self.since
        if late or node.node in self._plans or self.whole(node.node):
            return
        held = self.held.setdefault(node.node, set())
        sizes = [MIB] * len(self.keys)
        self._plans[node.node] = FetchPlan(
            self.keys, sizes, frozenset(held), seed=node.node, topic=MANIFEST, shared_line=True
        )
        for other in sorted(node.links):
            self.met(node.node, other)

    def met(self, node: NodeId, other: NodeId) -> None:
        """A connection stands."""
        if node not in self._plans:
            return
        facts, own = self.fleet.facts[other], self.fleet.facts[node]
        whole = self.whole(other)
        have = COMPLETE if whole else frozenset(self.held.get(other, ()))
        near = own.site == facts.site and not facts.reads_everything
        self._tell(node, PeerJoined(other, have, whole, near))

    def parted(self, node: NodeId, other: NodeId) -> None:
        """It has ended."""
        server = self._servers.get(node)
        if server is not None:
            server.queue = deque(one for one in server.queue if one.receiver != other)
            server.choice.peer_lost(other)
        if node in self._plans:
            self._tell(node, PeerLost(other))

    def vanished(self, node: NodeId) -> None:
        """A node has ended, with what it was about to do."""
        self._plans.pop(node, None)
        self._servers.pop(node, None)

    # Receiving

    def _tell(self, node: NodeId, event: FetchEvent) -> None:
        plan = self._plans.get(node)
        if plan is None or plan.finished:
            return
        effects = plan.step(event, now=self.net.now)
        self.net.note(node, event, effects)
        for effect in effects:
            self._do(node, effect)

    def _do(self, node: NodeId, effect: FetchEffect) -> None:
        match effect:
            case AskSpan(peer, key):
                self._ask(node, NodeId(peer), (key.n,), None)
            case AskAny(peer, offer, wanted):
                self._ask(node, NodeId(peer), _numbers(wanted), offer)
            case UnwantSpan(peer, key):
                number, server = self._requests, NodeId(peer)
                self._small(
                    node, server, "unwant", lambda: self._unwant(server, node, key.n, number)
                )
            case CancelSpan(peer, key):
                server = NodeId(peer)
                self._small(node, server, "cancel", lambda: self._cancel(server, node, key.n, None))
            case CancelOffer(peer, offer):
                server = NodeId(peer)
                self._small(node, server, "cancel", lambda: self._cancel(server, node, None, offer))
            case WakeAt(at):
                self._wakes[node] = at
                self.net.at(at, lambda: self._woken(node, at))

    def _woken(self, node: NodeId, at: float) -> None:
        if self._wakes.get(node) == at:
            self._tell(node, Tick())

    def _arrived(self, node: NodeId, sender: NodeId, key: SpanKey) -> None:
        held = self.held.setdefault(node, set())
        if key not in held:
            held.add(key)
            self.fleet.span_arrived(node)
            host = self.fleet.node(node)
            for other in sorted(host.links):
                if other in self._plans:
                    self._small(node, other, "have update", self._telling(other, node, key))
        self._tell(node, SpanReceived(sender, key))
        plan = self._plans.get(node)
        if plan is not None and plan.finished:
            del self._plans[node]
            self.net.note("whole", node)

    def _telling(self, other: NodeId, node: NodeId, key: SpanKey) -> Callable[[], None]:
        return lambda: self._tell(other, PeerHas(node, key))

    # Serving

    def _ask(self, node: NodeId, server: NodeId, spans: tuple[int, ...], offer: int | None) -> None:
        self._requests += 1
        asked = _Asked(self._requests, node, spans, offer)
        self._small(node, server, "request", lambda: self._asked(server, asked))

    def _asked(self, server: NodeId, asked: _Asked) -> None:
        self._server(server).queue.append(asked)
        self._serve(server)

    def _server(self, node: NodeId) -> _Server:
        if node not in self._servers:
            random = Random(f"{self.fleet.spec.seed} serves {node.hex()}")
            self._servers[node] = _Server(ServeChoice(randrange=random.randrange))
        return self._servers[node]

    def _unwant(self, server: NodeId, node: NodeId, span: int, up_to: int) -> None:
        self._server(server).choice.unwanted(node, MANIFEST, span, up_to=up_to)

    def _cancel(self, server: NodeId, node: NodeId, span: int | None, offer: int | None) -> None:
        for asked in self._server(server).queue:
            if asked.receiver == node and asked.offer == offer:
                asked.cancelled = asked.cancelled or offer is not None or asked.spans == (span,)

    def _serve(self, node: NodeId) -> None:
        server = self._server(node)
        while server.queue and not server.sending:
            asked = server.queue.popleft()
            chosen = None if asked.cancelled else self._chosen(node, server, asked)
            if chosen is None:
                self._refuse(node, asked)
                continue
            if asked.offer is not None:
                self._picked(node, asked, self.keys[chosen])
            server.sending = True
            self.net.later(MIB / self._rate, self._sending(node, server, asked.receiver, chosen))

    def _chosen(self, node: NodeId, server: _Server, asked: _Asked) -> int | None:
        held = self.held.get(node, set())
        whole = self.whole(node)
        has = [span for span in asked.spans if whole or self.keys[span] in held]
        if asked.offer is None:
            return has[0] if has else None
        server.choice.done_before(asked.receiver, asked.number)
        among = server.choice.still_wanted(asked.receiver, MANIFEST, has, request=asked.number)
        return server.choice.pick(MANIFEST, among, span_count=len(self.keys))

    def _picked(self, node: NodeId, asked: _Asked, key: SpanKey) -> None:
        assert asked.offer is not None
        event = SpanPicked(node, asked.offer, key)
        self._small(node, asked.receiver, "picked", lambda: self._tell(asked.receiver, event))

    def _refuse(self, node: NodeId, asked: _Asked) -> None:
        event: FetchEvent
        if asked.offer is None:
            event = SpanRefused(node, self.keys[asked.spans[0]], ErrorCode.CANCELLED)
        else:
            event = OfferRefused(node, asked.offer, ErrorCode.CANCELLED)
        self._small(node, asked.receiver, "refusal", lambda: self._tell(asked.receiver, event))

    def _sending(
        self, node: NodeId, server: _Server, receiver: NodeId, span: int
    ) -> Callable[[], None]:
        def sent() -> None:
            if self._servers.get(node) is not server:
                return
            server.sending = False
            self._send(node, receiver, "span", MIB, lambda: self._arrived(receiver, node, key))
            self._serve(node)

        key = self.keys[span]
        return sent

    def _small(self, node: NodeId, other: NodeId, kind: str, take: Callable[[], None]) -> None:
        self._send(node, other, kind, SMALL, take)

    def _send(
        self, node: NodeId, other: NodeId, kind: str, size: int, take: Callable[[], None]
    ) -> None:
        link = self.fleet.link(node, other)
        if link is not None:
            self.net.send(link, node, kind, size, take)


def _numbers(wanted: Wanted) -> tuple[int, ...]:
    return tuple(
        n for _, bitmap in wanted for n in range(8 * len(bitmap)) if bitmap[n // 8] >> n % 8 & 1
    )
