"""Planning a fetch: whom to ask for which span, as a pure machine.

`FetchPlan.step` is given what happened and answers what to do. It knows spans by number, their
sizes and who holds them; it never sees a byte of content, a socket or a clock. Rules: rarest
first among what a peer holds, except that who holds everything may pick, knowing best what
others lack; a small window a peer, so that choices are made late; what a
silent peer owes is asked elsewhere long before the connection is given up; the last few spans
are asked twice where that pays; wrong bytes are counted and end in `DropPeer`. Everything is
deterministic: the same events give the same effects, which `replay` checks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from protocol.fetch_events import (
    COMPLETE,
    AskAny,
    AskSpan,
    CancelOffer,
    CancelSpan,
    DropPeer,
    DropReason,
    FetchEffect,
    FetchEvent,
    Finished,
    Have,
    OfferRefused,
    PeerHas,
    PeerJoined,
    PeerLost,
    PeerName,
    SpanCorrupt,
    SpanKey,
    SpanPicked,
    SpanReceived,
    Tick,
    UnwantSpan,
    WakeAt,
)
from protocol.fetch_habits import (
    MAX_CORRUPT,
    OFFER_S,
    OFFERS,
    OUT_CODES,
    PATIENCE_CODES,
    WINDOW_BYTES,
    WINDOW_SPANS,
)
from protocol.fetch_hedge import END_GAME_SPANS, hedge
from protocol.fetch_log import LogEntry, Recipe
from protocol.fetch_offers import OfferTable
from protocol.fetch_peer import FetchPeer
from protocol.fetch_spans import SpanTable
from protocol.messages.codes import ErrorCode


class FetchPlan:
    """The plan for one manifest.

    `spans` and `sizes` (bytes to be moved for each) go together; `held` need no fetching. Lower
    `priorities` come first, 0 where nothing is said. Spans in `by_name` are never offered: they
    are partly held, so that the request has to say which chunks to leave out. With a `seed` (the
    node's id, say) equally rare spans are taken in an order of this node's own, so that a swarm
    does not ask everybody for the same; without one in the order given. `log` keeps the last
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
        )
        self.log: deque[LogEntry] = deque(maxlen=log_limit)
        self.finished = False
        self._table = SpanTable(spans, sizes, ranks, seed)
        self._sizes = self._table.sizes
        self._offers = OfferTable(spans, self._table.bit_of)
        self._offer_number = 0
        self._by_name = self._table.mask_of(by_name)
        self._largest = max(self._sizes, default=0)
        self._wanted = self._table.all & ~self._table.mask_of(held)
        self._missing_bytes = sum(
            size for span, size in zip(spans, sizes, strict=True) if span not in held
        )
        self._peers: dict[PeerName, FetchPeer] = {}
        self._wake: float | None = None
        self._hedge_at: float | None = None

    # What the owner may want to know

    @property
    def missing_spans(self) -> int:
        return self._wanted.bit_count()

    @property
    def missing_bytes(self) -> int:
        return self._missing_bytes

    @property
    def unobtainable_spans(self) -> int:
        """How many missing spans no peer at hand holds."""
        offered = 0
        for peer in self._peers.values():
            offered |= peer.mask
        return (self._wanted & ~offered).bit_count()

    @property
    def peers(self) -> Mapping[PeerName, FetchPeer]:
        """Every peer and its state; to look at only."""
        return self._peers

    # The machine

    def step(self, event: FetchEvent, *, now: float) -> list[FetchEffect]:
        """Take one event and say what to do. Events about unknown peers or spans, and ones that
        crossed a cancellation, are harmless."""
        effects: list[FetchEffect] = []
        if not self.finished:
            effects += self._handle(event, now)
            if self._wanted:
                effects += self._watch(now)
                effects += self._fill(now)
                effects += self._wake_effect(now)
            else:
                self.finished = True
                self._peers.clear()
                effects.append(Finished())
        self.log.append((now, event, tuple(effects)))
        return effects

    def _handle(self, event: FetchEvent, now: float) -> Iterable[FetchEffect]:
        if isinstance(event, Tick):
            return ()
        if isinstance(event, PeerJoined):
            return self._peer_joined(event.peer, event.have, picks=event.picks)
        if isinstance(event, PeerLost):
            self._remove(event.peer)
            return ()
        peer = self._peers.get(event.peer) if event.peer is not None else None
        if isinstance(event, OfferRefused):
            return self._offer_refused(event.peer, peer, event.offer, event.code, now)
        bit = self._table.bit_of.get(event.span)
        if bit is None:
            return ()
        if isinstance(event, SpanReceived):
            return self._span_received(peer, bit, now)
        if peer is None or event.peer is None:
            return ()
        if isinstance(event, PeerHas):
            self._set_mask(peer, peer.mask | 1 << bit)
            return ()
        if isinstance(event, SpanPicked):
            return self._span_picked(event.peer, peer, event.offer, bit, now)
        if isinstance(event, SpanCorrupt):
            return self._span_corrupt(event.peer, peer, bit, now)
        return self._span_refused(event.peer, peer, bit, event.code, now)

    def _peer_joined(self, name: PeerName, have: Have, *, picks: bool) -> Iterable[FetchEffect]:
        counted = have is not COMPLETE
        mask = self._table.all if have is COMPLETE else self._table.mask_of(have)
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = FetchPeer(0, counted, self._table.rank(name))
        else:
            self._set_mask(peer, 0)
            peer.counted = counted
        peer.picks = picks and not counted
        self._set_mask(peer, mask)
        return ()

    def _span_received(self, peer: FetchPeer | None, bit: int, now: float) -> Iterable[FetchEffect]:
        size = self._sizes[bit]
        if peer is not None and peer.forget(bit, size):
            peer.progressed(size, now)
        if not self._wanted >> bit & 1:
            return ()
        self._wanted &= ~(1 << bit)
        self._missing_bytes -= size
        return [
            *self._unwant(bit),
            *(
                CancelSpan(name, self._table.spans[bit])
                for name, other in sorted(self._peers.items())
                if other.forget(bit, size)
            ),
        ]

    def _span_picked(
        self, name: PeerName, peer: FetchPeer, number: int, bit: int, now: float
    ) -> Iterable[FetchEffect]:
        if number not in peer.offers:
            return ()
        superfluous = bit in peer.asked or not self._wanted >> bit & 1
        if not superfluous:
            peer.ask(bit, self._sizes[bit], now)
        peer.end_offer(number)
        return [CancelOffer(name, number)] if superfluous else self._unwant(bit)

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
            self._remove(name)
            return [DropPeer(name, DropReason.REFUSES)]
        offered = peer.offers[number].mask
        peer.end_offer(number)
        if code in PATIENCE_CODES or (code is ErrorCode.CANCELLED and offered):
            peer.refused_busy(now)
        elif code is not ErrorCode.CANCELLED:
            self._set_mask(peer, peer.mask & ~offered)
        return ()

    def _unwant(self, bit: int) -> list[FetchEffect]:
        """A span is in flight or held: take it out of whatever it is still offered in."""
        effects: list[FetchEffect] = []
        for name, peer in sorted(self._peers.items()):
            offered = [offer for offer in peer.offers.values() if offer.mask >> bit & 1]
            for offer in offered:
                offer.mask &= ~(1 << bit)
            if offered:
                effects.append(UnwantSpan(name, self._table.spans[bit]))
        return effects

    def _span_corrupt(
        self, name: PeerName, peer: FetchPeer, bit: int, now: float
    ) -> Iterable[FetchEffect]:
        if peer.forget(bit, self._sizes[bit]):
            peer.last_progress = now
            peer.stalled = False
        self._set_mask(peer, peer.mask & ~(1 << bit))
        peer.corrupt_count += 1
        if peer.corrupt_count < MAX_CORRUPT:
            return ()
        self._remove(name)
        return [DropPeer(name, DropReason.CORRUPTS)]

    def _span_refused(
        self, name: PeerName, peer: FetchPeer, bit: int, code: ErrorCode, now: float
    ) -> Iterable[FetchEffect]:
        if code in OUT_CODES:
            self._remove(name)
            return [DropPeer(name, DropReason.REFUSES)]
        if peer.forget(bit, self._sizes[bit]):
            peer.last_progress = now
            peer.stalled = False
            if code in PATIENCE_CODES:
                peer.refused_busy(now)
            elif code is not ErrorCode.CANCELLED:
                self._set_mask(peer, peer.mask & ~(1 << bit))
        return ()

    def _remove(self, name: PeerName) -> None:
        peer = self._peers.pop(name, None)
        if peer is not None:
            self._set_mask(peer, 0)

    def _set_mask(self, peer: FetchPeer, mask: int) -> None:
        if peer.counted:
            self._table.count(before=peer.mask, after=mask)
        peer.mask = mask

    # Silence

    def _watch(self, now: float) -> Iterable[FetchEffect]:
        effects: list[FetchEffect] = []
        for name, peer in sorted(self._peers.items()):
            if peer.owes and now >= peer.give_up_at:
                self._remove(name)
                effects.append(DropPeer(name, DropReason.SILENT))
                continue
            if peer.owes and now >= self._stall_at(peer):
                peer.stalled = True
            for number, offer in list(peer.offers.items()):
                if now >= offer.asked_at + OFFER_S:
                    peer.silent = True
                    peer.end_offer(number)
                    effects.append(CancelOffer(name, number))
        return effects

    def _stall_at(self, peer: FetchPeer) -> float:
        return peer.stall_at(self._sizes[next(iter(peer.asked))] if peer.asked else self._largest)

    def _wake_effect(self, now: float) -> Iterable[FetchEffect]:
        times = [] if self._hedge_at is None else [self._hedge_at]
        for peer in self._peers.values():
            if peer.offers:
                times.append(min(offer.asked_at for offer in peer.offers.values()) + OFFER_S)
            if peer.owes:
                stall_at = self._stall_at(peer)
                # One that was silent before may be past it as soon as it is asked again.
                times.append(stall_at if now < stall_at and not peer.stalled else peer.give_up_at)
            if peer.busy_until > now and self._wanted & peer.mask:
                times.append(peer.busy_until)
        if not times:
            return ()
        at = min(times)
        if self._wake is not None and now < self._wake <= at:
            return ()  # an earlier wake is due; it will look again
        self._wake = at
        return (WakeAt(at),)

    # Choosing

    def _fill(self, now: float) -> Iterable[FetchEffect]:
        """Ask every peer with room, one span each in turn, partial holders first."""
        effects: list[FetchEffect] = []
        self._hedge_at = None
        covered = stalled = offers = 0
        for peer in self._peers.values():
            if peer.stalled:
                stalled |= peer.asked_mask
            else:
                covered |= peer.asked_mask
                offers += len(peer.offers)
        turn = sorted(
            self._peers.items(), key=lambda item: (not item[1].counted, item[1].owes, item[1].rank)
        )
        while turn:
            again = []
            for name, peer in turn:
                if not self._has_room(peer, now):
                    continue
                free = self._wanted & ~covered & peer.mask & ~peer.asked_mask
                if peer.picks and (open_to_all := free & ~self._by_name):
                    if open_to_all.bit_count() > offers:
                        effects.append(self._offer(name, peer, open_to_all, now))
                        offers += 1
                        again.append((name, peer))
                        continue
                    free &= self._by_name  # the rest is as good as picked
                bit = self._table.rarest(free & ~stalled)
                if bit is None:
                    bit = self._table.rarest(free)
                if bit is None and not self._wanted & ~covered & ~stalled:
                    bit = self._hedge(peer, now)
                if bit is None:
                    continue
                peer.ask(bit, self._sizes[bit], now)
                covered |= 1 << bit
                effects.append(AskSpan(name, self._table.spans[bit]))
                effects += self._unwant(bit)
                again.append((name, peer))
            turn = again
        return effects

    def _has_room(self, peer: FetchPeer, now: float) -> bool:
        return (
            not peer.stalled
            and peer.busy_until <= now
            and peer.owes < (self.recipe.offers if peer.picks else self.recipe.window)
            and (not peer.asked or peer.outstanding_bytes < self.recipe.window_bytes)
        )

    def _hedge(self, peer: FetchPeer, now: float) -> int | None:
        if self.missing_spans > END_GAME_SPANS:
            return None
        bit, look_at = hedge(self._peers.values(), self._sizes, self._wanted, peer, now)
        if look_at is not None:
            self._hedge_at = min(look_at, self._hedge_at or look_at)
        return bit

    def _offer(self, name: PeerName, peer: FetchPeer, free: int, now: float) -> AskAny:
        """Let a peer pick from what is free and most urgent."""
        self._offer_number += 1
        mask, wanted = self._offers.offer(self._table.most_urgent(free), self._wanted)
        peer.offer(self._offer_number, mask, now)
        return AskAny(name, self._offer_number, wanted)
