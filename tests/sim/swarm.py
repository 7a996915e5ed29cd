"""A swarm in simulated time: the real planning machines over simulated lines.

Every node has a `FetchPlan` and serves through a `ServeChoice` and `ServeTurns`, as in the daemon;
lines have a rate each way, shared by all that is sent at the same time (`tests.sim.streams`), and a
delay. What has been handed to a sender's kernel can not be taken back, and what is said to somebody
comes after it. Receivers may stand at sites, where what comes from outside goes through one line,
and find one another a while after they begin. Time is a number in a queue of events, so a run is
the same run on every machine: `python -m tests.sim.swarm SEED` prints its hash.
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
from protocol.serve_turns import LOOK_S, ServeTurns, Turn
from tests.sim.streams import Line, Streams

MIB: Final = 1 << 20
SPANS_A_PIECE: Final = 80
MANIFEST: Final = ManifestId(bytes(32))
MANY: Final = 1 << 20
KERNEL_BYTES: Final = 128 * 1024


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
    kernel_bytes: int = KERNEL_BYTES
    """What a connection's sender has handed over when it goes on to the next."""
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
class _Serving:
    """What one node does for another: its requests, one after the other."""

    queue: deque[_Asked] = field(default_factory=deque)
    asked: _Asked | None = None
    """The one that is being answered."""
    span: int | None = None
    """What was picked for it."""
    begun: bool = False
    turn: Turn | None = None


@dataclass
class _Node:
    name: bytes
    plan: FetchPlan | None
    held: set[int]
    choice: ServeChoice
    turns: ServeTurns = field(default_factory=ServeTurns)
    serving: dict[int, _Serving] = field(default_factory=dict)
    whose: dict[Turn, int] = field(default_factory=dict)
    looks: bool = False
    wake_at: float | None = None
    sent_spans: int = 0


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
        self.line_spans: Counter[int] = Counter()
        self.gone: set[int] = set()
        self.met: set[tuple[int, int]] = set()
        rates: dict[Line, float] = {}
        for number in range(len(self.nodes)):
            rates["up", number] = rates["down", number] = swarm.rate
            if (site := self.site(number)) is not None:
                rates["line", site] = swarm.line_rate
        self.streams = Streams(rates, kernel_bytes=swarm.kernel_bytes)

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
            through_at = self.streams.next_at()
            if not self._events or through_at <= self._events[0][0]:
                self.now = through_at
                self._let_through()
            else:
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
        self._let_through()
        self.streams.drop(number)
        node = self.nodes[number]
        self.unfinished -= node.plan is not None and not node.plan.finished
        for other in range(len(self.nodes)):
            self._later(self._tell, other, PeerLost(node.name))

    def _at(self, when: float, action: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, lambda: action(*arguments)))

    def _let_through(self) -> None:
        for action in self.streams.advance(self.now):
            action()

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
                name = self.nodes[number].name
                spared = node.plan is not None and node.plan.holds(name, key)
                if (number, receiver) in self.met and not spared:
                    self._later(self._tell, number, PeerHas(node.name, key))
        self._tell(receiver, SpanReceived(self.nodes[server].name, key))

    # The serving side

    def _ask(self, receiver: int, server: int, spans: tuple[int, ...], offer: int | None) -> None:
        self._requests += 1
        self._later(self._asked, server, receiver, _Asked(self._requests, spans, offer))

    def _asked(self, server: int, receiver: int, asked: _Asked) -> None:
        if receiver - self.swarm.seeds in self.swarm.stuck and not self.near(receiver, server):
            return
        if server not in self.gone:
            self._serving(server, receiver).queue.append(asked)
            self._next(server, receiver)

    def _serving(self, server: int, receiver: int) -> _Serving:
        return self.nodes[server].serving.setdefault(receiver, _Serving())

    def _unwant(self, server: int, receiver: int, span: int, up_to: int) -> None:
        self.nodes[server].choice.unwanted(receiver, MANIFEST, span, up_to=up_to)

    def _cancel(self, server: int, receiver: int, span: int | None, offer: int | None) -> None:
        serving = self._serving(server, receiver)
        now = serving.asked
        if now is not None and (
            (span is not None and serving.span == span)
            or (offer is not None and now.offer == offer)
        ):
            now.cancelled = True
        for asked in serving.queue:
            if asked.offer == offer and (offer is not None or asked.spans == (span,)):
                asked.cancelled = True

    def _next(self, server: int, receiver: int) -> None:
        """Take up the next request of a peer, if the one before is over."""
        node, serving = self.nodes[server], self._serving(server, receiver)
        while serving.asked is None and serving.queue:
            asked = serving.queue.popleft()
            if asked.cancelled:
                self._say(server, receiver, self._refusal(server, asked))
                continue
            serving.asked, serving.span, serving.begun = asked, None, False
            site = self.site(receiver)
            turn = node.turns.wait(
                receiver,
                lambda: self._lacks(server, receiver),
                site=b"%03d" % receiver if site is None else site,
                now=self.now,
            )
            serving.turn = turn
            node.whose[turn] = receiver
        self._go_on(server)

    def _go_on(self, server: int) -> None:
        node = self.nodes[server]
        if server in self.gone:
            return
        for turn in node.turns.go_on(now=self.now):
            receiver = node.whose.get(turn)
            if receiver is None:
                continue
            serving = node.serving[receiver]
            if serving.span is None and not self._pick(server, receiver, serving):
                self._over(server, receiver, serving)
            elif turn.since is not None and not serving.begun:
                serving.begun = True
                self._begin(server, receiver, serving)
        if node.whose and not node.looks:
            node.looks = True
            self._at(self.now + LOOK_S, self._look, server)

    def _look(self, server: int) -> None:
        self.nodes[server].looks = False
        self._go_on(server)

    def _pick(self, server: int, receiver: int, serving: _Serving) -> bool:
        """Say what will be sent; False when it is nothing."""
        asked, node = serving.asked, self.nodes[server]
        assert asked is not None
        serving.span = None if asked.cancelled else self._chosen(server, receiver, asked)
        if serving.span is None:
            return False
        if asked.offer is not None:
            picked = SpanPicked(node.name, asked.offer, self.keys[serving.span])
            self._say(server, receiver, picked)
        return True

    def _begin(self, server: int, receiver: int, serving: _Serving) -> None:
        node, asked, span = self.nodes[server], serving.asked, serving.span
        assert asked is not None
        assert span is not None
        if asked.cancelled:
            node.choice.not_sent(MANIFEST, span)
            self._over(server, receiver, serving)
            return
        node.sent_spans += 1
        if (site := self.site(receiver)) is not None and not self.near(receiver, server):
            self.line_spans[site] += 1
        size_bytes = MIB * (1 + self.swarm.jitter * self.random.random())
        self._send(
            server,
            receiver,
            size_bytes,
            lambda: self._later(self._arrived, receiver, server, span),
            lambda: self._taken(server, receiver, serving),
        )

    def _send(
        self,
        server: int,
        receiver: int,
        size_bytes: float,
        arrived: Callable[[], None],
        taken: Callable[[], None] | None = None,
    ) -> None:
        self._let_through()
        lines: tuple[Line, ...] = (("up", server), ("down", receiver))
        if not self.near(server, receiver) and (site := self.site(receiver)) is not None:
            lines = (*lines, ("line", site))
        self.streams.send(server, receiver, lines, size_bytes, arrived, taken)

    def _say(self, server: int, receiver: int, event: FetchEvent) -> None:
        """Tell something behind what is being sent."""
        self._send(server, receiver, 1.0, lambda: self._later(self._tell, receiver, event))

    def _taken(self, server: int, receiver: int, serving: _Serving) -> None:
        node = self.nodes[server]
        if serving.turn is not None and node.turns.crowded(receiver, now=self.now):
            node.turns.sent(serving.turn, MIB, now=self.now)
        self._done(server, receiver, serving)

    def _over(self, server: int, receiver: int, serving: _Serving) -> None:
        """Nothing is sent for a request."""
        assert serving.asked is not None
        self._say(server, receiver, self._refusal(server, serving.asked, serving.span))
        self._done(server, receiver, serving)

    def _done(self, server: int, receiver: int, serving: _Serving) -> None:
        node = self.nodes[server]
        assert serving.turn is not None
        node.turns.leave(serving.turn)
        del node.whose[serving.turn]
        serving.asked = serving.span = serving.turn = None
        self._next(server, receiver)

    def _lacks(self, server: int, receiver: int) -> int:
        """How many spans a receiver could still be sent, as far as its request says."""
        node = self.nodes[server]
        asked = node.serving[receiver].asked
        if asked is None or asked.offer is None or asked.cancelled:
            return MANY
        return len(node.choice.still_wanted(receiver, MANIFEST, asked.spans, request=asked.number))

    def _chosen(self, server: int, receiver: int, asked: _Asked) -> int | None:
        node = self.nodes[server]
        if asked.offer is None:
            return asked.spans[0] if asked.spans[0] in node.held else None
        node.choice.done_before(receiver, asked.number)
        among = node.choice.still_wanted(receiver, MANIFEST, asked.spans, request=asked.number)
        among = [span for span in among if span in node.held]
        return node.choice.pick(MANIFEST, among, span_count=len(self.keys))

    def _refusal(self, server: int, asked: _Asked, picked: int | None = None) -> FetchEvent:
        name = self.nodes[server].name
        if asked.offer is None:
            return SpanRefused(name, self.keys[asked.spans[0]], ErrorCode.CANCELLED)
        if picked is not None:
            return SpanRefused(name, self.keys[picked], ErrorCode.CANCELLED)
        return OfferRefused(name, asked.offer, ErrorCode.CANCELLED)


def simulate(swarm: Swarm) -> Result:
    """Run it to its end."""
    return Simulation(swarm).run()


if __name__ == "__main__":
    sys.stdout.write(simulate(Swarm(8, 64, seeds=2, seed=int(sys.argv[1]))).log_hash + "\n")
