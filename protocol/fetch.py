"""Planning a fetch: whom to ask for which span, as a pure machine.

`FetchPlan.step` is given what happened and answers what to do. It knows spans by number, their
sizes and who holds them; it never sees a byte of content, a socket or a clock. Rules: rarest
first among what a peer holds, except that who holds everything may pick, knowing best what
others lack; a small window a peer, so that choices are made late; what nodes of the own site
have is asked there, and what they are fetching awaited (`protocol.site_plan`); what a silent peer
owes is asked elsewhere long before the connection is given up; the last few spans are asked twice
where that pays; wrong bytes are counted and end in `DropPeer`. Everything is deterministic: the
same events give the same effects, which `replay` checks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from protocol.fetch_board import Board
from protocol.fetch_choice import Choice
from protocol.fetch_events import (
    COMPLETE,
    CancelOffer,
    CancelSpan,
    DropPeer,
    DropReason,
    FetchEffect,
    FetchEvent,
    Finished,
    OfferRefused,
    OneEvent,
    Paused,
    PeerHas,
    PeerJoined,
    PeerLost,
    PeerName,
    SpanCorrupt,
    SpanKey,
    SpanPicked,
    SpanReceived,
    Tick,
    Together,
    WakeAt,
)
from protocol.fetch_habits import (
    MAX_CORRUPT,
    OFFERS,
    OUT_CODES,
    PATIENCE_CODES,
    WINDOW_BYTES,
    WINDOW_SPANS,
)
from protocol.fetch_log import LogEntry, Recipe
from protocol.fetch_peer import ALL, FetchPeer
from protocol.fetch_watch import wake_times, watch
from protocol.messages.codes import ErrorCode
from protocol.site_plan import SitePlan


class FetchPlan:
    """The plan for one manifest.

    `spans` and `sizes` (bytes to be moved for each) go together; `held` need no fetching. Lower
    `priorities` come first, 0 where nothing is said. Spans in `by_name` are never offered: they
    are partly held, so that the request has to say which chunks to leave out. With a `seed` (the
    node's id, say) equally rare spans are taken in an order of this node's own, so that a swarm
    does not ask everybody for the same; without one in the order given. The seed is also the name
    under which the site's other nodes know this one; `topic` (the manifest's id) is the same at
    all of them. Where the site's line is shared with them, requests to outside begin with one and
    stay few. `log` keeps the last
    `log_limit` steps, or all of them for None.
    """

    def __init__(
        self,
        spans: Sequence[SpanKey],
        sizes: Sequence[int],
        held: AbstractSet[SpanKey] = frozenset(),
        *,
        window: int = WINDOW_SPANS,
        window_bytes: int = WINDOW_BYTES,
        offers: int = OFFERS,
        by_name: AbstractSet[SpanKey] = frozenset(),
        priorities: Mapping[SpanKey, int] | None = None,
        seed: bytes = b"",
        topic: bytes = b"",
        shared_line: bool = False,
        log_limit: int | None = 4096,
    ) -> None:
        ranks = priorities or {}
        self.recipe = Recipe(
            tuple(spans),
            tuple(sizes),
            frozenset(held),
            window,
            window_bytes,
            offers,
            frozenset(by_name),
            tuple(sorted(ranks.items())),
            seed,
            topic,
            shared_line,
        )
        self.log: deque[LogEntry] = deque(maxlen=log_limit)
        self.listener: Callable[[LogEntry], None] | None = None
        """Told of each step, for who keeps them all."""
        self.finished = False
        self._board = Board(
            spans, sizes, held, by_name=by_name, priorities=ranks, seed=seed, topic=topic
        )
        self._choice = Choice(
            self._board,
            spans,
            window=window,
            window_bytes=window_bytes,
            offers=offers,
            shared_line=shared_line,
        )
        self._wake: float | None = None

    # What the owner may want to know

    @property
    def missing_spans(self) -> int:
        return self._board.wanted.bit_count()

    @property
    def missing_bytes(self) -> int:
        return self._board.missing_bytes

    @property
    def unobtainable_spans(self) -> int:
        """How many missing spans no peer at hand holds."""
        offered = 0
        for peer in self._board.peers.values():
            offered |= peer.mask
        return (self._board.wanted & ~offered).bit_count()

    @property
    def peers(self) -> Mapping[PeerName, FetchPeer]:
        """Every peer and its state; to look at only."""
        return self._board.peers

    def holds(self, name: PeerName, span: SpanKey) -> bool:
        """Whether a peer is known to hold a span."""
        peer, bit = self._board.peers.get(name), self._board.table.bit_of.get(span)
        return peer is not None and bit is not None and bool(peer.mask >> bit & 1)

    @property
    def site(self) -> SitePlan:
        """How the site divides; to look at only."""
        return self._board.site

    # The machine

    def step(self, event: FetchEvent, *, now: float) -> list[FetchEffect]:
        """Take one event and say what to do. Events about unknown peers or spans, and ones that
        crossed a cancellation, are harmless. What happened together is one step."""
        effects: list[FetchEffect] = []
        if not self.finished:
            for one in event.events if isinstance(event, Together) else (event,):
                effects += self._handle(one, now)
            if self._board.wanted:
                effects += watch(self._board, now)
                effects += self._choice.fill(now)
                effects += self._wake_effect(now)
            else:
                self.finished = True
                self._board.peers.clear()
                effects.append(Finished())
        entry = (now, event, tuple(effects))
        self.log.append(entry)
        if self.listener is not None:
            self.listener(entry)
        return effects

    def _handle(self, event: OneEvent, now: float) -> Iterable[FetchEffect]:
        if isinstance(event, Tick):
            return ()
        if isinstance(event, Paused):
            self._choice.paused = event.paused
            return ()
        if isinstance(event, PeerJoined):
            return self._peer_joined(event, now)
        if isinstance(event, PeerLost):
            self._board.remove(event.peer)
            return ()
        peer = self._board.peers.get(event.peer) if event.peer is not None else None
        if isinstance(event, OfferRefused):
            return self._offer_refused(event.peer, peer, event.offer, event.code, now)
        bit = self._board.table.bit_of.get(event.span)
        if bit is None:
            return ()
        if isinstance(event, SpanReceived):
            return self._span_received(peer, bit, now)
        if peer is None or event.peer is None:
            return ()
        if isinstance(event, PeerHas):
            self._board.set_mask(peer, peer.mask | 1 << bit)
            self._board.site.has(event.peer, bit, self._board.wanted, now)
            return ()
        if isinstance(event, SpanPicked):
            return self._span_picked(event.peer, peer, event.offer, bit, now)
        if isinstance(event, SpanCorrupt):
            return self._span_corrupt(event.peer, peer, bit, now)
        return self._span_refused(event.peer, peer, bit, event.code, now)

    def _peer_joined(self, event: PeerJoined, now: float) -> Iterable[FetchEffect]:
        board, name = self._board, event.peer
        counted = event.have is not COMPLETE
        mask = board.table.all if event.have is COMPLETE else board.table.mask_of(event.have)
        peer = board.peers.get(name)
        if peer is None:
            peer = board.peers[name] = FetchPeer(0, counted, board.table.rank(name))
        else:
            board.set_mask(peer, 0)
            peer.counted = counted
        peer.picks = event.picks
        peer.assigned = ALL if counted else 0
        self._choice.divide_anew()
        peer.near = event.near
        board.set_mask(peer, mask)
        board.site.left(name)
        if event.near and counted:
            board.site.joined(name, mask, now)
        return ()

    def _span_received(self, peer: FetchPeer | None, bit: int, now: float) -> Iterable[FetchEffect]:
        size = self._board.sizes[bit]
        if peer is not None and bit in peer.asked:
            peer.pipe.came(bit, size, now)
            peer.forget(bit, size)
            peer.progressed(size, now)
            if not peer.near:
                self._board.came_from_outside += 1
                self._board.site.own_came(now)
        if not self._board.wanted >> bit & 1:
            return ()
        self._board.wanted &= ~(1 << bit)
        self._board.missing_bytes -= size
        return [
            *self._board.unwant(bit),
            *(
                CancelSpan(name, self._board.table.spans[bit])
                for name, other in sorted(self._board.peers.items())
                if other.forget(bit, size)
            ),
        ]

    def _span_picked(
        self, name: PeerName, peer: FetchPeer, number: int, bit: int, now: float
    ) -> Iterable[FetchEffect]:
        if number not in peer.offers:
            return ()
        board = self._board
        superfluous = not board.wanted >> bit & 1 or bit in peer.asked or board.comes(bit)
        if not superfluous:
            peer.ask(bit, self._board.sizes[bit], now, peer.offers[number])
        peer.end_offer(number)
        return [CancelOffer(name, number)] if superfluous else self._board.unwant(bit)

    def _offer_refused(
        self,
        name: PeerName,
        peer: FetchPeer | None,
        number: int,
        code: ErrorCode,
        now: float,
    ) -> Iterable[FetchEffect]:
        if peer is None or number not in peer.offers:
            return ()
        if code in OUT_CODES:
            self._board.remove(name)
            return [DropPeer(name, DropReason.REFUSES)]
        offer = peer.offers[number]
        # What it has announced since may have crossed the refusal.
        offered = offer.mask & offer.known
        peer.end_offer(number)
        if code in PATIENCE_CODES or (code is ErrorCode.CANCELLED and offered):
            peer.refused_busy(now)
        elif code is not ErrorCode.CANCELLED:
            self._board.lacks(peer, offered)
        return ()

    def _span_corrupt(
        self, name: PeerName, peer: FetchPeer, bit: int, now: float
    ) -> Iterable[FetchEffect]:
        if peer.forget(bit, self._board.sizes[bit]):
            peer.last_progress = now
            peer.stalled = False
        self._board.lacks(peer, 1 << bit)
        peer.corrupt_count += 1
        if peer.corrupt_count < MAX_CORRUPT:
            return ()
        self._board.remove(name)
        return [DropPeer(name, DropReason.CORRUPTS)]

    def _span_refused(
        self, name: PeerName, peer: FetchPeer, bit: int, code: ErrorCode, now: float
    ) -> Iterable[FetchEffect]:
        if code in OUT_CODES:
            self._board.remove(name)
            return [DropPeer(name, DropReason.REFUSES)]
        if peer.forget(bit, self._board.sizes[bit]):
            peer.last_progress = now
            peer.stalled = False
            if code in PATIENCE_CODES:
                peer.refused_busy(now)
            elif code is not ErrorCode.CANCELLED:
                self._board.lacks(peer, 1 << bit)
        return ()

    def _wake_effect(self, now: float) -> Iterable[FetchEffect]:
        times = list(wake_times(self._board, now))
        if self._choice.look_at is not None:
            times.append(self._choice.look_at)
        if not times:
            return ()
        at = min(times)
        if self._wake is not None and now < self._wake <= at:
            return ()  # an earlier wake is due; it will look again
        self._wake = at
        return (WakeAt(at),)
