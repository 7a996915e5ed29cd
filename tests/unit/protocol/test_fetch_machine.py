"""The planner under any course of events: what must hold always, and that it always finishes."""

from __future__ import annotations

import functools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from protocol.fetch import FetchPlan
from protocol.fetch_events import (
    COMPLETE,
    AskAny,
    AskSpan,
    CancelOffer,
    CancelSpan,
    DropPeer,
    FetchEvent,
    Finished,
    OfferRefused,
    OneEvent,
    Paused,
    PeerHas,
    PeerJoined,
    PeerLost,
    SpanCorrupt,
    SpanKey,
    SpanPicked,
    SpanReceived,
    SpanRefused,
    Tick,
    Together,
    UnwantSpan,
    WakeAt,
)
from protocol.fetch_hedge import END_GAME_SPANS
from protocol.fetch_log import entry_line, read_log, recipe_line
from protocol.fetch_peer import FetchPeer
from protocol.fetch_pipe import MOST_SPANS
from protocol.fetch_replay import replay
from protocol.fetch_spans import bits
from protocol.messages import ErrorCode

PEERS = st.sampled_from([b"a", b"b", b"c", b"d"])
GOOD = b"good"
WINDOW_BYTES = 12_000
CODES = st.sampled_from(
    [
        ErrorCode.BUSY,
        ErrorCode.UNKNOWN_SPAN,
        ErrorCode.CHUNK_CORRUPT,
        ErrorCode.NOT_ENTITLED,
        ErrorCode.CANCELLED,
        ErrorCode.INTERNAL,
        ErrorCode.OTHER,
    ]
)
LATE_CODES = CODES.filter(lambda code: code is not ErrorCode.NOT_ENTITLED)


class PlannerMachine(RuleBasedStateMachine):
    """A model of what every peer holds and owes, beside the plan."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.have: dict[bytes, set[SpanKey]] = {}
        self.owed: dict[bytes, list[SpanKey]] = {}
        self.offered: dict[bytes, dict[int, set[SpanKey]]] = {}
        self.said: dict[tuple[bytes, int], set[SpanKey]] = {}
        """What a peer was known to hold when it was made an offer."""
        self.held: set[SpanKey] = set()
        self.wake: float | None = None
        self.finished = 0

    @initialize(
        count=st.integers(1, 40),
        window=st.integers(1, 5),
        seed=st.binary(max_size=2),
        urgent=st.sets(st.integers(0, 39), max_size=5),
        held=st.sets(st.integers(0, 39), max_size=10),
        partly=st.sets(st.integers(0, 39), max_size=5),
        offers=st.integers(1, 4),
        shared_line=st.booleans(),
    )
    def begin(
        self,
        count: int,
        window: int,
        seed: bytes,
        urgent: set[int],
        held: set[int],
        partly: set[int],
        offers: int,
        shared_line: bool,
    ) -> None:
        self.near: set[bytes] = set()
        self.spans = [SpanKey(i // 7, i % 7) for i in range(count)]
        self.window = window
        self.offers = offers
        self.seed = seed
        self.by_name = {self.spans[i] for i in partly if i < count}
        self.held = {self.spans[i] for i in held if i < count}
        self.plan = FetchPlan(
            self.spans,
            [1000 * (i % 5 + 1) for i in range(count)],
            frozenset(self.held),
            window=window,
            window_bytes=WINDOW_BYTES,
            seed=seed,
            offers=offers,
            by_name=self.by_name,
            shared_line=shared_line,
            priorities={self.spans[i]: -1 for i in urgent if i < count},
            log_limit=None,
        )
        self.step(Tick())

    def step(self, event: FetchEvent) -> None:
        for effect in self.plan.step(event, now=self.now):
            if isinstance(effect, AskSpan):
                self.asked(effect.peer, effect.span)
            elif isinstance(effect, CancelSpan):
                self.owed[effect.peer].remove(effect.span)
            elif isinstance(effect, AskAny):
                self.offer_made(effect)
            elif isinstance(effect, UnwantSpan):
                offers = self.offered[effect.peer].values()
                assert any(effect.span in offer for offer in offers), "told for nothing"
                for offer in offers:
                    offer.discard(effect.span)
            elif isinstance(effect, CancelOffer):
                self.offered[effect.peer].pop(effect.offer, None)
            elif isinstance(effect, DropPeer):
                del self.have[effect.peer], self.owed[effect.peer], self.offered[effect.peer]
            elif isinstance(effect, WakeAt):
                assert effect.at > self.now, "a wake in the past would spin"
                self.wake = effect.at
            elif isinstance(effect, Finished):
                self.finished += 1

    def asked(self, peer: bytes, span: SpanKey) -> None:
        assert span in self.have[peer], "asked from a peer that lacks it"
        self.may_be_asked(peer, {span})
        assert span not in self.held, "asked for what is held"
        assert span not in self.owed[peer], "asked twice from one peer"
        others = [name for name, owed in self.owed.items() if span in owed]
        if any(not self.plan.peers[name].stalled for name in others):
            assert len(self.spans) - len(self.held) <= END_GAME_SPANS
            assert len(others) == 1, "three copies"
        self.owed[peer].append(span)
        assert len(self.owed[peer]) <= MOST_SPANS

    def may_be_asked(self, peer: bytes, spans: set[SpanKey]) -> None:
        """Nothing is asked outside that a sibling is awaited for."""
        site, table = self.plan.site, self.plan._board.table
        hedged = len(self.spans) - len(self.held) <= END_GAME_SPANS
        if peer in self.near or site.level or hedged or not self.seed:
            return
        mask = table.mask_of(spans)
        for name, sibling in site.siblings.items():
            assert name in self.near
            awaited = sibling.share & ~sibling.mask & ~site.own
            assert sibling.left_out or not mask & awaited, "asked outside before its time"

    def offer_made(self, effect: AskAny) -> None:
        spans = {
            SpanKey(index, n)
            for index, bitmap in effect.wanted
            for n in range(8 * len(bitmap))
            if bitmap[n // 8] >> n % 8 & 1
        }
        assert spans
        known = spans & self.have[effect.peer]
        assert known, "offered to a peer that lacks all of it"
        if not self.plan.peers[effect.peer].counted:
            assert spans == known, "offered to a peer that lacks it"
        self.said[effect.peer, effect.offer] = known
        assert not spans & self.held, "offered what is held"
        assert not spans & self.by_name, "offered what has to be asked for by name"
        self.may_be_asked(effect.peer, spans)
        for name, offers in self.offered.items():
            one, other = self.plan.peers[effect.peer], self.plan.peers[name]
            whole = other.picks and not one.counted and not other.counted and not other.stalled
            if one is not other and one.near == other.near and whole:
                assert not spans & set().union(*offers.values()), "offered to two"
        for name, owed in self.owed.items():
            if not self.plan.peers[name].stalled:
                assert not spans & set(owed), "offered what is in flight"
        self.offered[effect.peer][effect.offer] = spans
        assert len(self.offered[effect.peer]) + len(self.owed[effect.peer]) <= MOST_SPANS

    def open_offers(self) -> list[tuple[bytes, int]]:
        if self.plan.finished:
            return []  # whoever runs the plan ends them all
        return [(peer, n) for peer, offers in sorted(self.offered.items()) for n in offers]

    def pick(self, peer: bytes, offer: int, span: SpanKey) -> None:
        del self.offered[peer][offer]
        comes = span in self.owed[peer] or any(
            span in owed and not self.plan.peers[name].stalled for name, owed in self.owed.items()
        )
        if span not in self.held and not comes:
            self.owed[peer].append(span)
        before = len(self.plan.log)
        self.step(SpanPicked(peer, offer, span))
        _, _, effects = self.plan.log[before]
        taken_back = CancelOffer(peer, offer) in effects
        assert taken_back == (comes or span in self.held), "sent twice"

    def choices(self) -> list[tuple[bytes, int, SpanKey]]:
        return [
            (peer, offer, span)
            for peer, offer in self.open_offers()
            for span in sorted(self.offered[peer][offer] & self.have[peer])
        ]

    @precondition(lambda self: self.choices())
    @rule(data=st.data())
    def a_span_is_picked(self, data: st.DataObject) -> None:
        self.pick(*data.draw(st.sampled_from(self.choices())))

    @precondition(lambda self: self.open_offers())
    @rule(data=st.data())
    def a_span_is_picked_too_late(self, data: st.DataObject) -> None:
        """What is held or in flight by now: the word of it has crossed the choice."""
        peer, offer = data.draw(st.sampled_from(self.open_offers()))
        gone = sorted(self.have[peer] - self.offered[peer][offer] - self.by_name)
        if gone:
            self.pick(peer, offer, data.draw(st.sampled_from(gone)))

    @precondition(lambda self: self.open_offers())
    @rule(data=st.data(), code=CODES)
    def an_offer_is_refused(self, data: st.DataObject, code: ErrorCode) -> None:
        peer, offer = data.draw(st.sampled_from(self.open_offers()))
        spans = self.offered[peer].pop(offer)
        if code in (ErrorCode.UNKNOWN_SPAN, ErrorCode.CHUNK_CORRUPT, ErrorCode.OTHER):
            self.have[peer] -= spans & self.said[peer, offer]
        self.step(OfferRefused(peer, offer, code))

    def owing(self) -> list[tuple[bytes, SpanKey]]:
        return [(peer, span) for peer, owed in sorted(self.owed.items()) for span in owed]

    @rule(
        peer=PEERS,
        have=st.none() | st.sets(st.integers(0, 39)),
        picks=st.booleans(),
        near=st.booleans(),
    )
    def peer_joins(self, peer: bytes, have: set[int] | None, picks: bool, near: bool) -> None:
        known = self.spans if have is None else [self.spans[i] for i in have if i < len(self.spans)]
        if self.plan.finished:
            return
        self.have[peer] = set(known)
        self.owed.setdefault(peer, [])
        self.offered.setdefault(peer, {})
        (self.near.add if near else self.near.discard)(peer)
        self.step(PeerJoined(peer, COMPLETE if have is None else frozenset(known), picks, near))

    @rule(peer=PEERS)
    def peer_goes(self, peer: bytes) -> None:
        self.have.pop(peer, None)
        self.owed.pop(peer, None)
        self.offered.pop(peer, None)
        self.step(PeerLost(peer))

    @rule(peer=PEERS, index=st.integers(0, 39))
    def peer_has_more(self, peer: bytes, index: int) -> None:
        if peer in self.have and index < len(self.spans):
            self.have[peer].add(self.spans[index])
            self.step(PeerHas(peer, self.spans[index]))

    def receive(self, peer: bytes, span: SpanKey) -> None:
        self.owed[peer].remove(span)
        self.held.add(span)
        self.step(SpanReceived(peer, span))

    @precondition(lambda self: self.owing())
    @rule(data=st.data())
    def span_comes(self, data: st.DataObject) -> None:
        self.receive(*data.draw(st.sampled_from(self.owing())))

    @rule(
        data=st.data(),
        news=st.lists(st.tuples(PEERS, st.integers(0, 39)), max_size=4),
        count=st.integers(0, 3),
    )
    def several_things_happen_together(
        self, data: st.DataObject, news: list[tuple[bytes, int]], count: int
    ) -> None:
        events: list[OneEvent] = []
        for peer, index in news:
            if peer in self.have and index < len(self.spans):
                self.have[peer].add(self.spans[index])
                events.append(PeerHas(peer, self.spans[index]))
        for _ in range(count):
            owing = [(peer, span) for peer, span in self.owing() if span not in self.held]
            if owing:
                peer, span = data.draw(st.sampled_from(owing))
                self.owed[peer].remove(span)
                self.held.add(span)
                events.append(SpanReceived(peer, span))
        self.step(Together(tuple(data.draw(st.permutations(events)))))

    @precondition(lambda self: self.owing())
    @rule(data=st.data())
    def wrong_bytes_come(self, data: st.DataObject) -> None:
        peer, span = data.draw(st.sampled_from(self.owing()))
        self.owed[peer].remove(span)
        self.have[peer].discard(span)
        self.step(SpanCorrupt(peer, span))

    @precondition(lambda self: self.owing())
    @rule(data=st.data(), code=CODES)
    def span_is_refused(self, data: st.DataObject, code: ErrorCode) -> None:
        peer, span = data.draw(st.sampled_from(self.owing()))
        self.owed[peer].remove(span)
        if code in (ErrorCode.UNKNOWN_SPAN, ErrorCode.CHUNK_CORRUPT, ErrorCode.OTHER):
            self.have[peer].discard(span)
        self.step(SpanRefused(peer, span, code))

    @rule(
        peer=PEERS,
        index=st.integers(0, 39),
        code=CODES.filter(lambda c: c is not ErrorCode.NOT_ENTITLED),
    )
    def something_late_arrives(self, peer: bytes, index: int, code: ErrorCode) -> None:
        span = self.spans[index % len(self.spans)]
        if span not in self.owed.get(peer, []):
            self.step(SpanRefused(peer, span, code))

    @rule(paused=st.booleans())
    def the_line_is_anothers(self, paused: bool) -> None:
        self.step(Paused(paused))

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.step(Tick())

    @invariant()
    def the_plan_knows_what_is_owed(self) -> None:
        if not hasattr(self, "plan") or self.plan.finished:
            return
        table = self.plan._board.table
        assert set(self.plan.peers) == set(self.have)
        for name, peer in self.plan.peers.items():
            assert [table.spans[bit] for bit in peer.asked] == self.owed[name]
            assert peer.mask == table.mask_of(self.have[name])
            assert all(self.plan.holds(name, span) for span in self.have[name])
            assert {
                number: {table.spans[bit] for bit in bits(offer.mask)}
                for number, offer in peer.offers.items()
            } == self.offered[name]
            assert peer.outstanding_bytes == sum(table.sizes[bit] for bit in peer.asked)
            self.what_is_kept_is_bounded(peer)
        assert self.plan.site.siblings.keys() <= self.plan.peers.keys()
        names = self.plan._board.rendezvous._weights.keys()
        assert names <= {self.seed, *self.plan.peers}, "weights of a peer that is gone are kept"
        assert len(table._rarity) <= len(self.plan.peers) + 1
        assert self.plan.missing_spans == len(self.spans) - len(self.held)
        counted = [peer.mask for peer in self.plan.peers.values() if peer.counted]
        assert self.plan._board.partly_held == functools.reduce(int.__or__, counted, 0)
        for bit in range(len(self.spans)):
            assert table.holders(bit) == sum(mask >> bit & 1 for mask in counted)
            givers = [one for one in self.plan.peers.values() if one.gives >> bit & 1]
            assert len(givers) == (table.holders(bit) > 0), "one of those who hold it gives it"
            assert all(one.counted and one.mask >> bit & 1 for one in givers)

    def what_is_kept_is_bounded(self, peer: FetchPeer) -> None:
        largest = max(self.plan._board.sizes)
        assert peer.owes <= MOST_SPANS
        assert peer.outstanding_bytes <= MOST_SPANS * largest
        assert peer.pipe._marks.keys() == peer.asked.keys()

    def teardown(self) -> None:
        """With one peer that has everything and answers, it finishes, whatever went before."""
        if not hasattr(self, "plan"):
            return
        if not self.plan.finished:
            self.step(Paused(False))
            self.have[GOOD], self.owed[GOOD], self.offered[GOOD] = set(self.spans), [], {}
            self.step(PeerJoined(GOOD, COMPLETE, picks=len(self.spans) % 2 == 0))
        for _ in range(20 * len(self.spans) + 200):
            if self.plan.finished:
                break
            if self.offered[GOOD]:
                self.now += 0.01
                number, spans = next(iter(self.offered[GOOD].items()))
                if spans:
                    self.pick(GOOD, number, min(spans))
                else:
                    del self.offered[GOOD][number]
                    self.step(OfferRefused(GOOD, number, ErrorCode.CANCELLED))
            elif self.owed[GOOD]:
                self.now += 0.01
                self.receive(GOOD, self.owed[GOOD][0])
            else:
                assert self.wake is not None, "nothing is owed and nothing will wake the plan"
                self.now = max(self.now + 0.01, self.wake)
                self.step(Tick())
        assert self.plan.finished
        assert self.finished == 1
        assert self.held == set(self.spans)
        assert replay(self.plan.recipe, self.plan.log) is None
        recipe, log = read_log(
            [recipe_line(self.plan.recipe), *(entry_line(entry) for entry in self.plan.log)]
        )
        assert recipe == self.plan.recipe
        assert list(log) == list(self.plan.log)


PlannerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPlanner = PlannerMachine.TestCase
