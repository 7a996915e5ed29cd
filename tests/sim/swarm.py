"""A swarm in simulated time: the real planning machines over simulated lines.

Every node has a `FetchPlan` and serves through a `ServeChoice`, as in the daemon; lines have a
rate each way and a delay. A server sends one span at a time, taking turns among those who have
asked it; a receiver's line takes one after the other. Receivers may stand at sites, where what
comes from outside goes through one line, and find one another a while after they begin. Time is
a number in a queue of events, so a run is the same run on every machine: `python -m
tests.sim.swarm SEED` prints its hash.
"""

from __future__ import annotations

import heapq
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from blake3 import blake3

from protocol.fetch import FetchPlan
from protocol.fetch_events import (
    COMPLETE,
    AskAny,
    AskSpan,
    CancelOffer,
    CancelSpan,
    FetchEffect,
    FetchEvent,
    Finished,
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
from protocol.ids import ManifestId
from protocol.messages.codes import ErrorCode
from protocol.serve_choice import ServeChoice

MIB: Final = 1 << 20
SPANS_A_PIECE: Final = 80
MANIFEST: Final = ManifestId(bytes(32))
MANY: Final = 1 << 20
AHEAD: Final = 1
"""As in `archid.sync.upload_turns`."""


@dataclass(frozen=True)
class Swarm:
    """What is simulated: `seeds` hold everything, `receivers` nothing."""

    receivers: int
    size_mib: int
    seeds: int = 1
    picks: bool = True
    """Whether servers may pick; else every span is asked for by name."""
    window: int = 4
    offers: int = 4
    rate: float = 12.5e6
    """Bytes a second, each way, of every node."""
    jitter: float = 0.02
    """A span takes up to so much longer than by the rate: nothing is of one speed."""
    delay_s: float = 0.002
    seed: int = 1
    site_size: int = 0
    """So many receivers stand at each site; 0: none do."""
    line_rate: float = 1.25e6
    """Of what comes into a site from outside."""
    meet_s: float = 0.5
    """How long after they begin the nodes of a site know of one another."""
    divide: bool = True
    """Whether the nodes of a site know that they are: else each fetches as if alone."""
    stuck: frozenset[int] = frozenset()
    """Receivers (0 is the first) that get nothing from outside."""
    lost: tuple[tuple[int, float], ...] = ()
    """Receivers that vanish at a time."""

    @property
    def lower_bound_s(self) -> float:
        """No swarm can be faster: max(F/seeds up, F/down, N F/(sum of up))."""
        size = self.size_mib * MIB / self.rate
        uploaders = self.seeds + self.receivers
        return max(size / self.seeds, size, self.receivers * size / uploaders)


@dataclass
class Result:
    """What came of it."""

    seconds: float
    seed_copies: float
    """Bytes that the seeds sent, over the size."""
    duplicate_bytes: int
    log_hash: str
    line_copies: float = 0.0
    """Bytes that the busiest site's line carried, over the size."""


@dataclass
class _Asked:
    """A request in a server's queue: for a span, or for any of several."""

    number: int
    spans: tuple[int, ...]
    offer: int | None
    cancelled: bool = False


@dataclass
class _Node:
    name: bytes
    plan: FetchPlan | None
    held: set[int]
    choice: ServeChoice
    queues: dict[int, deque[_Asked]] = field(default_factory=dict)
    turn: deque[int] = field(default_factory=deque)
    sending: bool = False
    line_free_at: float = 0.0
    wake_at: float | None = None
    sent_spans: int = 0
    ahead: deque[tuple[int, _Asked, int]] = field(default_factory=deque)


class Simulation:
    """One run."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self.now = 0.0
        self.random = Random(swarm.seed)
        self.keys = [SpanKey(i // SPANS_A_PIECE, i % SPANS_A_PIECE) for i in range(swarm.size_mib)]
        self.index = {key: i for i, key in enumerate(self.keys)}
        self.nodes = [self._node(n) for n in range(swarm.seeds + swarm.receivers)]
        self.unfinished = swarm.receivers
        self.received = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._requests = 0
        self._hash = blake3()
        self.line_free_at: dict[int, float] = {}
        self.line_spans: Counter[int] = Counter()
        self.gone: set[int] = set()
        self.met: set[tuple[int, int]] = set()

    def site(self, number: int) -> int | None:
        """The site of a node, None for one that stands nowhere."""
        receiver = number - self.swarm.seeds
        return receiver // self.swarm.site_size if receiver >= 0 < self.swarm.site_size else None

    def near(self, one: int, other: int) -> bool:
        """Whether two nodes stand at one site."""
        return self.site(one) is not None and self.site(one) == self.site(other)

    def _node(self, number: int) -> _Node:
        name = b"%03d" % number
        plan = None
        held = set(range(len(self.keys)))
        if number >= self.swarm.seeds:
            sizes = [MIB] * len(self.keys)
            plan = FetchPlan(
                self.keys,
                sizes,
                window=self.swarm.window,
                offers=self.swarm.offers,
                seed=name,
                topic=MANIFEST,
                shared_line=self.swarm.site_size > 1,
            )
            held = set()
        choice = ServeChoice(randrange=Random(self.random.getrandbits(64)).randrange)
        return _Node(name, plan, held, choice)

    def run(self) -> Result:
        """Until every receiver has everything."""
        for receiver, node in enumerate(self.nodes):
            if node.plan is None:
                continue
            for number, other in enumerate(self.nodes):
                if other is not node:
                    have = COMPLETE if other.plan is None else frozenset[SpanKey]()
                    picks = self.swarm.picks
                    # Nobody starts at the very same moment.
                    start_s = self.random.random() * 0.01
                    near = self.near(receiver, number)
                    if near:
                        start_s += self.swarm.meet_s
                    elif other.plan is not None and self.swarm.site_size:
                        continue  # rooms of different sites know nothing of one another here
                    joined = PeerJoined(b"%03d" % number, have, picks, near and self.swarm.divide)
                    self._at(start_s, self._join, receiver, number, joined)
        for receiver, at_s in self.swarm.lost:
            self._at(at_s, self._lose, receiver + self.swarm.seeds)
        while self.unfinished:
            self.now, _, action = heapq.heappop(self._events)
            action()
        copies = sum(node.sent_spans for node in self.nodes[: self.swarm.seeds])
        wanted = self.swarm.receivers * len(self.keys)
        return Result(
            self.now,
            copies / len(self.keys),
            (self.received - wanted) * MIB,
            self._hash.hexdigest(),
            max(self.line_spans.values(), default=0) / len(self.keys),
        )

    def _join(self, receiver: int, number: int, joined: PeerJoined) -> None:
        if receiver in self.gone or number in self.gone:
            return
        if self.nodes[number].plan is not None:
            have = frozenset(self.keys[span] for span in self.nodes[number].held)
            joined = replace(joined, have=have)
        self.met.add((receiver, number))
        self._tell(receiver, joined)

    def _lose(self, number: int) -> None:
        self.gone.add(number)
        node = self.nodes[number]
        self.unfinished -= node.plan is not None and not node.plan.finished
        for other in range(len(self.nodes)):
            self._later(self._tell, other, PeerLost(node.name))

    def _at(self, when: float, action: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, lambda: action(*arguments)))

    def _later(self, action: Callable[..., None], *arguments: object) -> None:
        self._at(self.now + self.swarm.delay_s, action, *arguments)

    # The receiving side

    def _tell(self, receiver: int, event: FetchEvent) -> None:
        node = self.nodes[receiver]
        if node.plan is None or node.plan.finished or receiver in self.gone:
            return
        effects = node.plan.step(event, now=self.now)
        self._hash.update(f"{self.now!r} {receiver} {event} {effects}\n".encode())
        for effect in effects:
            self._do(receiver, node, effect)

    def _do(self, receiver: int, node: _Node, effect: FetchEffect) -> None:
        match effect:
            case AskSpan(peer, key):
                self._ask(receiver, int(peer), (self.index[key],), None)
            case AskAny(peer, offer, wanted):
                self._ask(receiver, int(peer), tuple(self._spans(wanted)), offer)
            case UnwantSpan(peer, key):
                self._later(self._unwant, int(peer), receiver, self.index[key], self._requests)
            case CancelSpan(peer, key):
                self._later(self._cancel, int(peer), receiver, self.index[key], None)
            case CancelOffer(peer, offer):
                self._later(self._cancel, int(peer), receiver, None, offer)
            case WakeAt(at):
                node.wake_at = at
                self._at(at, self._wake, receiver, at)
            case Finished():
                self.unfinished -= 1

    def _wake(self, receiver: int, at: float) -> None:
        if self.nodes[receiver].wake_at == at:
            self._tell(receiver, Tick())

    def _spans(self, wanted: Wanted) -> list[int]:
        return [
            self.index[SpanKey(piece_index, n)]
            for piece_index, bitmap in wanted
            for n in range(8 * len(bitmap))
            if bitmap[n // 8] >> n % 8 & 1
        ]

    def _arrived(self, receiver: int, server: int, span: int) -> None:
        node = self.nodes[receiver]
        if receiver in self.gone:
            return
        self.received += 1
        key = self.keys[span]
        if span not in node.held:
            node.held.add(span)
            for number in range(len(self.nodes)):
                if (number, receiver) in self.met:
                    self._later(self._tell, number, PeerHas(node.name, key))
        self._tell(receiver, SpanReceived(self.nodes[server].name, key))

    # The serving side

    def _ask(self, receiver: int, server: int, spans: tuple[int, ...], offer: int | None) -> None:
        self._requests += 1
        self._later(self._asked, server, receiver, _Asked(self._requests, spans, offer))

    def _asked(self, server: int, receiver: int, asked: _Asked) -> None:
        node = self.nodes[server]
        if receiver - self.swarm.seeds in self.swarm.stuck and not self.near(receiver, server):
            return
        if receiver not in node.queues:
            node.queues[receiver] = deque()
            node.turn.append(receiver)
        node.queues[receiver].append(asked)
        self._serve(server)

    def _unwant(self, server: int, receiver: int, span: int, up_to: int) -> None:
        self.nodes[server].choice.unwanted(receiver, MANIFEST, span, up_to=up_to)

    def _cancel(self, server: int, receiver: int, span: int | None, offer: int | None) -> None:
        for to, asked, picked in self.nodes[server].ahead:
            if to == receiver and (picked == span or (offer is not None and asked.offer == offer)):
                asked.cancelled = True
        for asked in self.nodes[server].queues.get(receiver, ()):
            if asked.offer == offer and (offer is not None or asked.spans == (span,)):
                asked.cancelled = True

    def _serve(self, server: int) -> None:
        """Send what was picked, one span at a time, and say meanwhile what comes next."""
        node = self.nodes[server]
        if server in self.gone:
            return
        self._pick_ahead(server)
        while not node.sending and node.ahead:
            receiver, asked, span = node.ahead.popleft()
            if asked.cancelled:
                node.choice.not_sent(MANIFEST, span)
                refused = SpanRefused(node.name, self.keys[span], ErrorCode.CANCELLED)
                self._later(self._tell, receiver, refused)
            else:
                node.sending = True
                node.sent_spans += 1
                took_s = MIB / self.swarm.rate * (1 + self.swarm.jitter * self.random.random())
                self._at(self.now + took_s, self._sent, server, receiver, span)
            self._pick_ahead(server)

    def _pick_ahead(self, server: int) -> None:
        node = self.nodes[server]
        while len(node.ahead) < AHEAD and any(node.queues.values()):
            receiver = max(
                (one for one in node.turn if node.queues[one]),
                key=lambda one: self._lacks(node, one),
            )
            node.turn.remove(receiver)
            node.turn.append(receiver)
            asked = node.queues[receiver].popleft()
            span = None if asked.cancelled else self._chosen(server, receiver, asked)
            if span is None:
                self._later(self._tell, receiver, self._refusal(server, asked))
                continue
            if asked.offer is not None:
                picked = SpanPicked(node.name, asked.offer, self.keys[span])
                self._later(self._tell, receiver, picked)
            node.ahead.append((receiver, asked, span))

    def _lacks(self, node: _Node, receiver: int) -> int:
        """How many spans a receiver could still be sent, as far as its next request says."""
        asked = node.queues[receiver][0]
        if asked.offer is None or asked.cancelled:
            return MANY
        return len(node.choice.still_wanted(receiver, MANIFEST, asked.spans, request=asked.number))

    def _chosen(self, server: int, receiver: int, asked: _Asked) -> int | None:
        node = self.nodes[server]
        if asked.offer is None:
            return asked.spans[0] if asked.spans[0] in node.held else None
        among = node.choice.still_wanted(receiver, MANIFEST, asked.spans, request=asked.number)
        among = [span for span in among if span in node.held]
        return node.choice.pick(MANIFEST, among, span_count=len(self.keys))

    def _refusal(self, server: int, asked: _Asked) -> FetchEvent:
        name = self.nodes[server].name
        if asked.offer is None:
            return SpanRefused(name, self.keys[asked.spans[0]], ErrorCode.CANCELLED)
        return OfferRefused(name, asked.offer, ErrorCode.CANCELLED)

    def _sent(self, server: int, receiver: int, span: int) -> None:
        self.nodes[server].sending = False
        began = self.now - MIB / self.swarm.rate + self.swarm.delay_s
        if (site := self.site(receiver)) is not None and not self.near(receiver, server):
            self.line_spans[site] += 1
            through = max(began, self.line_free_at.get(site, 0.0)) + MIB / self.swarm.line_rate
            self.line_free_at[site] = through
            began = through - MIB / self.swarm.rate
        self._at(max(self.now, began), self._comes, receiver, server, span, began)
        self._serve(server)

    def _comes(self, receiver: int, server: int, span: int, began: float) -> None:
        # The receiver's line takes it in while it comes, unless it still has another to take in.
        node = self.nodes[receiver]
        node.line_free_at = max(began, node.line_free_at) + MIB / self.swarm.rate
        self._at(node.line_free_at, self._arrived, receiver, server, span)


def simulate(swarm: Swarm) -> Result:
    """Run it to its end."""
    return Simulation(swarm).run()


if __name__ == "__main__":
    sys.stdout.write(simulate(Swarm(8, 64, seeds=2, seed=int(sys.argv[1]))).log_hash + "\n")
