"""The planner's rules one by one, then on a small simulated set of peers."""

from __future__ import annotations

import heapq
import itertools
import sys

import pytest

from protocol.errors import FormatError
from protocol.fetch import FetchPlan
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
    OfferRefused,
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
from protocol.fetch_habits import OFFERS
from protocol.fetch_log import read_log, recipe_line
from protocol.fetch_offers import OfferTable, without
from protocol.fetch_peer import GIVE_UP_S
from protocol.fetch_replay import replay
from protocol.fetch_spans import bits
from protocol.limits import MAX_ANY_PIECES
from protocol.messages import ErrorCode

A, B, C = b"a", b"b", b"c"
SPAN_BYTES = 1 << 20


def keys(count: int) -> list[SpanKey]:
    return [SpanKey(i // 27, i % 27) for i in range(count)]


def plan_of(count: int, **options: object) -> FetchPlan:
    return FetchPlan(keys(count), [SPAN_BYTES] * count, log_limit=None, **options)  # type: ignore[arg-type]


def asks(effects: list[FetchEffect], peer: bytes | None = None) -> list[SpanKey]:
    return [e.span for e in effects if isinstance(e, AskSpan) and peer in (None, e.peer)]


def wakes(effects: list[FetchEffect]) -> list[float]:
    return [effect.at for effect in effects if isinstance(effect, WakeAt)]


def test_one_peer_is_asked_within_its_window_and_in_order() -> None:
    plan = plan_of(5, window=2)
    first = plan.step(PeerJoined(A, COMPLETE), now=0)
    assert asks(first) == keys(5)[:2]
    assert asks(plan.step(SpanReceived(A, keys(5)[0]), now=1)) == [keys(5)[2]]
    assert plan.missing_spans == 4
    assert plan.missing_bytes == 4 * SPAN_BYTES


def test_the_window_counts_bytes_too() -> None:
    plan = plan_of(5, window=4, window_bytes=2 * SPAN_BYTES)
    assert len(asks(plan.step(PeerJoined(A, COMPLETE), now=0))) == 2
    tiny = plan_of(5, window=4, window_bytes=1)
    assert len(asks(tiny.step(PeerJoined(A, COMPLETE), now=0))) == 1


def test_it_says_finished_once() -> None:
    plan = plan_of(1)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    assert plan.step(SpanReceived(A, keys(1)[0]), now=1) == [Finished()]
    assert plan.finished
    assert plan.step(Tick(), now=2) == []


def test_what_is_held_is_never_asked_for() -> None:
    plan = plan_of(3, held=frozenset(keys(3)[:2]))
    assert asks(plan.step(PeerJoined(A, COMPLETE), now=0)) == [keys(3)[2]]
    nothing = plan_of(3, held=frozenset(keys(3)))
    assert nothing.step(Tick(), now=0) == [Finished()]


def test_the_rarest_span_of_partial_holders_comes_first() -> None:
    plan = plan_of(4, window=1)
    one, two, three, four = keys(4)
    plan.step(PeerJoined(A, frozenset({one})), now=0)  # asked for one
    plan.step(PeerJoined(B, frozenset({two, three})), now=0)  # asked for two
    plan.step(PeerJoined(C, frozenset({one, two, three, four})), now=0)
    assert list(plan.peers[C].asked) == [plan._board.table.bit_of[four]]


def test_a_holder_of_everything_is_asked_for_what_nobody_else_has() -> None:
    plan = plan_of(3, window=1)
    plan.step(PeerJoined(A, frozenset(keys(3)[:2])), now=0)
    assert asks(plan.step(PeerJoined(B, COMPLETE), now=0)) == [keys(3)[2]]


def test_priorities_come_before_rarity() -> None:
    spans = keys(3)
    plan = plan_of(3, window=1, priorities={spans[0]: 2, spans[1]: 1, spans[2]: 0})
    assert asks(plan.step(PeerJoined(A, COMPLETE), now=0)) == [spans[2]]
    assert asks(plan.step(SpanReceived(A, spans[2]), now=1)) == [spans[1]]


def test_seeds_give_every_node_an_order_of_its_own() -> None:
    def order(seed: bytes) -> list[SpanKey]:
        return asks(plan_of(20, window=20, seed=seed).step(PeerJoined(A, COMPLETE), now=0))

    assert order(b"one") == order(b"one")
    assert order(b"one") != order(b"two")
    assert set(order(b"one")) <= set(keys(20))


def test_a_span_that_turns_up_is_asked_for_at_once() -> None:
    plan = plan_of(2)
    plan.step(PeerJoined(A, frozenset()), now=0)
    assert plan.unobtainable_spans == 2
    assert asks(plan.step(PeerHas(A, keys(2)[1]), now=1)) == [keys(2)[1]]
    assert plan.unobtainable_spans == 1


def test_what_a_lost_peer_owed_is_asked_elsewhere() -> None:
    plan = plan_of(20, window=2)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    plan.step(PeerJoined(B, COMPLETE), now=0)
    plan.step(PeerLost(A), now=1)
    effects = plan.step(SpanReceived(B, keys(20)[2]), now=2)
    assert asks(effects, B) == [keys(20)[0]]


def test_a_silent_peers_spans_go_elsewhere_long_before_it_is_given_up() -> None:
    plan = plan_of(2, window=2)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    first = plan.step(PeerJoined(B, COMPLETE), now=0)
    asked: dict[float, list[SpanKey]] = {}
    (now,) = wakes(plan.step(Tick(), now=0)) or wakes(first) or [1.0]
    while len(asked) < 1:
        effects = plan.step(Tick(), now=now)
        if asks(effects, B):
            asked[now] = asks(effects, B)
        now = wakes(effects)[0] if wakes(effects) else now + 1
    assert min(asked) < GIVE_UP_S / 10
    effects = plan.step(SpanReceived(B, keys(2)[0]), now=now)
    assert CancelSpan(A, keys(2)[0]) in effects


def test_a_stalled_peer_gets_nothing_new_until_it_speaks() -> None:
    plan = plan_of(30, window=2)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    assert asks(plan.step(Tick(), now=15)) == []
    assert plan.peers[A].stalled
    assert asks(plan.step(SpanReceived(A, keys(30)[0]), now=16), A) == [keys(30)[2]]
    assert not plan.peers[A].stalled


def test_a_peer_that_stays_silent_is_dropped() -> None:
    plan = plan_of(3)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    effects = plan.step(Tick(), now=GIVE_UP_S)
    assert effects == [DropPeer(A, DropReason.SILENT)]
    assert asks(plan.step(PeerJoined(A, COMPLETE), now=GIVE_UP_S)) == keys(3)


def test_wrong_bytes_are_not_asked_of_the_same_peer_again_and_end_in_a_drop() -> None:
    plan = plan_of(4, window=1)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    seen = []
    for turn in range(3):
        span = keys(4)[turn]
        effects = plan.step(SpanCorrupt(A, span), now=turn)
        seen += asks(effects)
    assert seen == keys(4)[1:3]
    assert DropPeer(A, DropReason.CORRUPTS) in effects
    assert plan.unobtainable_spans == 4


@pytest.mark.parametrize("code", [ErrorCode.NOT_ENTITLED, ErrorCode.UNKNOWN_MANIFEST])
def test_a_refusal_of_the_whole_manifest_puts_the_peer_out(code: ErrorCode) -> None:
    plan = plan_of(3)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    effects = plan.step(SpanRefused(A, keys(3)[0], code), now=1)
    assert effects == [DropPeer(A, DropReason.REFUSES)]
    assert plan.step(SpanRefused(A, keys(3)[1], code), now=1) == []


@pytest.mark.parametrize("code", [ErrorCode.UNKNOWN_SPAN, ErrorCode.CHUNK_CORRUPT])
def test_a_span_that_a_peer_lacks_is_not_asked_of_it_again(code: ErrorCode) -> None:
    plan = plan_of(2, window=1)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    assert asks(plan.step(SpanRefused(A, keys(2)[0], code), now=1)) == [keys(2)[1]]
    plan.step(SpanReceived(A, keys(2)[1]), now=2)
    assert plan.unobtainable_spans == 1


def test_a_busy_peer_is_left_alone_for_longer_and_longer() -> None:
    plan = plan_of(3, window=2)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    now, waits = 0.0, []
    for _ in range(4):
        owed = [plan._board.table.spans[bit] for bit in plan.peers[A].asked]
        assert owed
        for span in owed:
            effects = plan.step(SpanRefused(A, span, ErrorCode.BUSY), now=now)
            assert not asks(effects)
        until = plan.peers[A].busy_until
        waits.append(until - now)
        assert asks(plan.step(Tick(), now=until - 0.01)) == []
        assert asks(plan.step(Tick(), now=until))
        now = until
    assert waits == [0.5, 1.0, 2.0, 4.0]


def test_the_last_spans_are_asked_twice_when_the_other_peer_is_much_slower() -> None:
    plan = plan_of(6, window=2)
    plan.step(PeerJoined(A, COMPLETE), now=0)  # 0 1
    plan.step(PeerJoined(B, COMPLETE), now=0)  # 2 3
    plan.step(SpanReceived(A, keys(6)[0]), now=10)  # slow: asked 4
    plan.step(SpanReceived(B, keys(6)[2]), now=10.1)
    plan.step(SpanReceived(B, keys(6)[3]), now=10.2)
    effects = plan.step(SpanReceived(B, keys(6)[5]), now=10.3)
    effects += plan.step(Tick(), now=10.4)
    assert set(asks(effects, B)) <= {keys(6)[1], keys(6)[4]}
    assert asks(effects, B)
    span = asks(effects, B)[0]
    assert CancelSpan(A, span) in plan.step(SpanReceived(B, span), now=10.5)


def test_events_that_crossed_a_cancellation_are_harmless() -> None:
    plan = plan_of(2)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    plan.step(SpanReceived(None, keys(2)[0]), now=0)
    for event in (
        SpanReceived(A, keys(2)[0]),
        SpanReceived(b"nobody", keys(2)[0]),
        SpanRefused(A, keys(2)[0], ErrorCode.CANCELLED),
        SpanRefused(b"nobody", keys(2)[0], ErrorCode.NOT_ENTITLED),
        SpanCorrupt(b"nobody", keys(2)[0]),
        PeerLost(b"nobody"),
        PeerHas(A, SpanKey(99, 99)),
        SpanReceived(A, SpanKey(99, 99)),
    ):
        plan.step(event, now=1)
    assert plan.missing_spans == 1


def test_a_span_found_locally_is_cancelled_where_it_was_asked() -> None:
    plan = plan_of(2)
    plan.step(PeerJoined(A, COMPLETE), now=0)
    assert CancelSpan(A, keys(2)[0]) in plan.step(SpanReceived(None, keys(2)[0]), now=0)


def test_the_log_replays_and_a_changed_one_does_not() -> None:
    plan = plan_of(9, seed=b"node", window=2)
    simulate(plan, {A: 1e6, B: 2e6})
    assert replay(plan.recipe, plan.log) is None
    log = list(plan.log)
    now, event, effects = log[1]
    log[1] = (now, event, (*effects, Finished()))
    assert replay(plan.recipe, log) == 1


def test_the_log_is_bounded() -> None:
    plan = FetchPlan(keys(3), [1, 1, 1], log_limit=10)
    for n in range(100):
        plan.step(Tick(), now=n)
    assert len(plan.log) == 10


def test_spans_and_sizes_must_go_together() -> None:
    with pytest.raises(ValueError, match="sizes"):
        FetchPlan(keys(2), [1])
    with pytest.raises(ValueError, match="twice"):
        FetchPlan([SpanKey(0, 0), SpanKey(0, 0)], [1, 1])


def simulate(plan: FetchPlan, rates: dict[bytes, float]) -> tuple[float, int]:
    """Peers that hold everything and send one span after the other; (seconds, spans sent)."""
    queue: list[tuple[float, int, bytes, SpanKey]] = []
    free = dict.fromkeys(rates, 0.0)
    cancelled: set[tuple[bytes, SpanKey]] = set()
    wake, number, sent, now = None, 0, 0, 0.0
    effects: list[FetchEffect] = []
    for peer in rates:
        effects += plan.step(PeerJoined(peer, COMPLETE), now=now)
    while not plan.finished:
        for effect in effects:
            if isinstance(effect, AskSpan):
                begin = max(now, free[effect.peer])
                free[effect.peer] = begin + SPAN_BYTES / rates[effect.peer]
                number += 1
                heapq.heappush(queue, (free[effect.peer], number, effect.peer, effect.span))
            elif isinstance(effect, CancelSpan):
                cancelled.add((effect.peer, effect.span))
            elif isinstance(effect, WakeAt):
                wake = effect.at
        if wake is not None and (not queue or wake < queue[0][0]):
            now, wake = wake, None
            effects = plan.step(Tick(), now=now)
            continue
        now, _, peer, span = heapq.heappop(queue)
        effects = []
        if (peer, span) not in cancelled:
            sent += 1
            effects = plan.step(SpanReceived(peer, span), now=now)
    return now, sent


@pytest.mark.parametrize(
    "rates", [{A: 1e7}, {A: 1e7, B: 1e7}, {A: 1e7, B: 3e6, C: 2e5}, {A: 1e8, B: 2e4}]
)
def test_unequal_peers_together_come_close_to_the_sum_of_their_rates(
    rates: dict[bytes, float],
) -> None:
    count = 200
    seconds, sent = simulate(plan_of(count), rates)
    bound = count * SPAN_BYTES / sum(rates.values())
    assert seconds <= 1.2 * bound + 0.5
    assert sent <= count + 4


def test_a_choice_among_a_hundred_thousand_spans_does_not_look_at_each() -> None:
    count = 100_000
    plan = FetchPlan(keys(count), [SPAN_BYTES] * count, seed=b"node")
    plan.step(PeerJoined(A, COMPLETE), now=0)
    for n in range(4):
        plan.step(PeerJoined(bytes([n]), frozenset(keys(count)[n::5])), now=0)
    calls = 0

    def count_call(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count_call)
    try:
        for n in range(300):
            span = plan._board.table.spans[next(iter(plan.peers[A].asked))]
            plan.step(SpanReceived(A, span), now=n / 10)
    finally:
        sys.setprofile(None)
    assert calls < 300 * 2000, "a step does not look at every span"


def test_offers_stay_small_and_leave_out_what_must_be_named() -> None:
    spans = [SpanKey(piece, n) for piece in range(40) for n in range(80)]
    plan = FetchPlan(
        spans, [1] * len(spans), frozenset(spans[:160]), seed=b"me", offers=1, by_name={spans[200]}
    )
    [named, *_] = plan.step(PeerJoined(A, COMPLETE, picks=True), now=0)
    assert isinstance(named, AskAny)
    assert [piece for piece, _ in named.wanted] == [2, 3, 4]
    assert sum(bitmap.count(0xFF) for _, bitmap in named.wanted) == 3 * 10 - 1
    assert dict(named.wanted)[2][5] == 0xFE  # span 40 of piece 2 is partly held


def test_offers_follow_the_manifest_as_spans_come_in_and_name_few_pieces() -> None:
    spans = [SpanKey(piece, n) for piece in range(40) for n in range(3)]
    table = OfferTable(spans, {span: bit for bit, span in enumerate(spans)})
    missing = (1 << len(spans)) - 1
    mask, wanted = table.offer(missing, missing)
    assert [piece for piece, _ in wanted] == list(range(MAX_ANY_PIECES))
    assert mask == (1 << 3 * MAX_ANY_PIECES) - 1
    # The first piece has come; of the second one span is asked for elsewhere.
    missing &= ~0b111
    mask, wanted = table.offer(missing & ~0b1000, missing)
    assert [piece for piece, _ in wanted] == list(range(1, MAX_ANY_PIECES + 1))
    assert dict(wanted)[1] == bytes([0b110])
    assert not mask & 0b1111
    # What was asked for elsewhere is free again; the last spans of all are left.
    assert table.offer(0b1000, missing)[1] == ((1, bytes([0b001])),)
    last = 0b100 << 3 * 39
    assert table.offer(last, last)[1] == ((39, bytes([0b100])),)
    assert table.offer(0, last) == (0, ())


def test_an_only_holder_is_offered_as_much_as_fills_a_line_and_several_one_each() -> None:
    plan = plan_of(9)
    alone = plan.step(PeerJoined(A, COMPLETE, picks=True), now=0)
    assert len([one for one in alone if isinstance(one, AskAny)]) == OFFERS
    several = plan_of(9)
    joined = several.step(
        Together((PeerJoined(A, COMPLETE, picks=True), PeerJoined(B, COMPLETE, picks=True))), now=0
    )
    assert sorted(one.peer for one in joined if isinstance(one, AskAny)) == [A, B]


def test_what_one_server_picks_the_others_are_told_to_leave() -> None:
    plan = plan_of(9, offers=1)
    offers = {}
    for peer in (A, B):
        for effect in plan.step(PeerJoined(peer, COMPLETE, picks=True), now=0):
            if isinstance(effect, AskAny):
                offers[effect.peer] = effect.offer
    span = keys(9)[4]
    assert UnwantSpan(B, span) in plan.step(SpanPicked(A, offers[A], span), now=1)
    # Its word crossed ours: what it has picked too is taken back before it is sent.
    assert CancelOffer(B, offers[B]) in plan.step(SpanPicked(B, offers[B], span), now=1)
    assert span not in asks(plan.step(Tick(), now=1.1))
    plan.step(SpanReceived(A, span), now=2)
    assert plan.missing_spans == 8


def partial(*numbers: int) -> frozenset[SpanKey]:
    return frozenset(keys(9)[n] for n in numbers)


def offers_in(effects: list[FetchEffect]) -> dict[bytes, set[SpanKey]]:
    return {
        e.peer: {
            SpanKey(piece, n)
            for piece, bitmap in e.wanted
            for n in range(8 * len(bitmap))
            if bitmap[n // 8] >> n % 8 & 1
        }
        for e in effects
        if isinstance(e, AskAny)
    }


def test_a_partial_holder_may_pick_from_all_that_is_missing_once_it_holds_any_of_it() -> None:
    plan = plan_of(9, offers=1)
    plan.step(PeerJoined(B, COMPLETE, picks=True), now=0)
    plan.step(PeerJoined(A, partial(), picks=True), now=0)
    effects = plan.step(PeerHas(A, keys(9)[3]), now=1)
    assert offers_in(effects) == {A: set(keys(9))}


def test_a_partial_holder_that_holds_none_of_it_any_more_is_not_asked_before_it_says_so() -> None:
    plan = plan_of(9, offers=1)
    plan.step(PeerJoined(B, COMPLETE, picks=True), now=0)
    effects = plan.step(PeerJoined(A, partial(3), picks=True), now=0.5)
    [offer] = [e.offer for e in effects if isinstance(e, AskAny)]
    plan.step(PeerHas(A, keys(9)[4]), now=1)  # which crosses the refusal
    effects = plan.step(OfferRefused(A, offer, ErrorCode.UNKNOWN_SPAN), now=2)
    assert offers_in(effects) == {A: set(keys(9))}, "it has announced another one since"
    [offer] = [e.offer for e in effects if isinstance(e, AskAny)]
    effects = plan.step(OfferRefused(A, offer, ErrorCode.UNKNOWN_SPAN), now=3)
    assert not offers_in(effects)


def test_where_spans_come_as_fast_as_messages_a_partial_holder_is_asked_by_name() -> None:
    plan = plan_of(9, window=1)
    plan.step(PeerJoined(A, partial(3, 4, 5), picks=True), now=0)
    [first] = [plan._board.table.spans[bit] for bit in plan.peers[A].asked]
    assert asks(plan.step(SpanReceived(A, first), now=0.01), A)
    slow = plan_of(9, window=1, offers=1)
    slow.step(PeerJoined(A, partial(3, 4, 5), picks=True), now=0)
    effects = slow.step(SpanReceived(A, first), now=0.1)
    assert not asks(effects)
    assert offers_in(effects) == {A: set(keys(9)) - {first}}


def swarm_of(
    *have: tuple[bytes, frozenset[SpanKey]],
) -> tuple[FetchPlan, dict[bytes, set[SpanKey]]]:
    """A plan over lines on which spans take a second, and what it offers its partial holders."""
    plan = plan_of(9)
    plan.step(PeerJoined(b"seed", COMPLETE), now=0)
    joined = tuple(PeerJoined(peer, spans, picks=True) for peer, spans in have)
    return plan, offers_in(plan.step(Together(joined), now=1))


def test_of_what_two_partial_holders_hold_each_is_offered_what_it_was_the_first_to_hold() -> None:
    _, offered = swarm_of((A, partial(4, 5)), (B, partial(5, 6)))
    nobody_holds = {keys(9)[7], keys(9)[8]}
    assert offered[A] & partial(4, 5, 6) == partial(4, 5)
    assert offered[B] & partial(4, 5, 6) == partial(6)
    assert offered[A] >= nobody_holds
    assert offered[B] >= nobody_holds


def test_a_partial_holder_with_nothing_of_its_own_to_give_is_offered_what_others_give() -> None:
    _, offered = swarm_of((A, partial(4, 5)), (B, partial(4, 5)))
    assert offered[B] >= partial(4, 5)


def test_what_one_that_is_gone_gave_another_gives() -> None:
    plan, _ = swarm_of((A, partial(4, 5)), (B, partial(5, 6)))
    plan.step(PeerLost(A), now=1)
    table = plan._board.table
    assert plan.peers[B].gives == table.mask_of(partial(5, 6))
    plan.step(PeerJoined(C, partial(4, 6), picks=True), now=1)
    assert plan.peers[C].gives == table.mask_of(partial(4))


@pytest.mark.parametrize(("count", "each"), [(1, 4), (2, 2), (3, 2), (4, 1), (6, 1)])
def test_partial_holders_share_the_requests_that_one_of_them_would_have(
    count: int, each: int
) -> None:
    plan = plan_of(200)
    names = [b"%d" % n for n in range(count)]
    shares = [keys(200)[n::count] for n in range(count)]
    plan.step(PeerJoined(b"seed", COMPLETE), now=0)  # which is slow
    for name, share in zip(names, shares, strict=True):
        plan.step(PeerJoined(name, frozenset(share), picks=True), now=1)
    now = 1.0
    for _ in range(6):  # one more for each that came
        for name in names:
            plan.step(Tick(), now=now)
            peer = plan.peers[name]
            number = min(peer.offers)
            [bit, *_] = bits(peer.offers[number].mask & peer.mask)
            span = plan._board.table.spans[bit]
            plan.step(SpanPicked(name, number, span), now=now)
            now += 1 / count
            plan.step(SpanReceived(name, span), now=now)
    assert {plan.peers[name].owes for name in names} == {each}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_partial_holders_far_away_are_asked_for_as_much_as_a_line_holds(count: int) -> None:
    """A gigabit a second from each, 100 ms there and back: 12 spans are under way."""
    plan = plan_of(300, held=frozenset(keys(300)[:1]))
    queue: list[tuple[float, int, FetchEvent]] = []
    numbers = itertools.count()
    names = [b"%d" % n for n in range(count)]
    for name in names:
        joined = PeerJoined(name, frozenset(keys(300)[1:]), picks=True)
        heapq.heappush(queue, (0, next(numbers), joined))
    free_at = dict.fromkeys(names, 0.0)
    sent = {name: set[SpanKey]() for name in names}
    now = 0.0
    while not plan.finished:
        now, _, event = heapq.heappop(queue)
        for effect in plan.step(event, now=now):
            if isinstance(effect, WakeAt):
                heapq.heappush(queue, (effect.at, next(numbers), Tick()))
            if not isinstance(effect, AskAny | AskSpan):
                continue
            name = effect.peer
            named = {effect.span} if isinstance(effect, AskSpan) else offers_in([effect])[name]
            span = min(named - sent[name])
            sent[name].add(span)
            begins = max(now + 0.05, free_at[name])
            free_at[name] = begins + SPAN_BYTES / 125e6
            if isinstance(effect, AskAny):
                picked = SpanPicked(name, effect.offer, span)
                heapq.heappush(queue, (begins + 0.05, next(numbers), picked))
            came = SpanReceived(name, span)
            heapq.heappush(queue, (free_at[name] + 0.05, next(numbers), came))
    assert now <= 1.5 * 299 * SPAN_BYTES / 125e6


def test_what_somebody_outside_gives_a_neighbour_is_offered_all_the_same() -> None:
    plan = plan_of(9)
    plan.step(PeerJoined(b"seed", COMPLETE), now=0)
    far = PeerJoined(A, partial(4, 5), picks=True)
    near = PeerJoined(B, partial(4, 5, 6), picks=True, near=True)
    offered = offers_in(plan.step(Together((far, near)), now=1))
    assert offered[B] >= partial(4, 5, 6)


def test_what_a_busy_holder_gives_others_are_offered_meanwhile() -> None:
    plan, _ = swarm_of((A, partial(4, 5, 6)))
    [offer] = plan.peers[A].offers
    plan.step(OfferRefused(A, offer, ErrorCode.BUSY), now=1)
    effects = plan.step(PeerJoined(B, partial(4, 5, 6, 7), picks=True), now=1.1)
    assert offers_in(effects)[B] >= partial(4, 5, 6, 7)


def test_an_offer_of_which_a_partial_holder_holds_nothing_more_makes_room_for_another() -> None:
    plan, offered = swarm_of((A, partial(4, 5)), (B, partial(4, 5, 6)))
    assert offered[B] & partial(4, 5, 6) == partial(6)
    [number] = plan.peers[B].offers
    effects = plan.step(SpanReceived(b"seed", keys(9)[6]), now=2)
    assert CancelOffer(B, number) in effects
    assert offers_in(effects)[B] >= partial(4, 5)


def test_what_a_holder_of_everything_lacks_after_all_is_taken_over() -> None:
    plan = plan_of(9, offers=1)
    effects = plan.step(PeerJoined(A, COMPLETE, picks=True), now=0)
    [offer] = [e.offer for e in effects if isinstance(e, AskAny)]
    plan.step(PeerJoined(B, COMPLETE, picks=True), now=1)
    plan.step(OfferRefused(A, offer, ErrorCode.UNKNOWN_SPAN), now=2)
    offered = offers_in([e for entry in plan.log for e in entry[2]])[B]
    now = 3.0
    while plan.missing_spans and now < 60:
        plan.step(Tick(), now=now)
        if not plan.peers[B].offers:  # the other one, silent as it is, was offered some of its part
            now += 1
            continue
        number, open_offer = next(iter(plan.peers[B].offers.items()))
        bit = (open_offer.mask & -open_offer.mask).bit_length() - 1
        span = plan._board.table.spans[bit]
        plan.step(SpanPicked(B, number, span), now=now)
        plan.step(SpanReceived(B, span), now=now + 0.5)
        now += 1
    assert offered
    assert plan.finished


def test_who_says_again_that_it_holds_everything_is_still_asked() -> None:
    plan = plan_of(9, offers=1)
    effects = plan.step(PeerJoined(A, COMPLETE, picks=True, near=True), now=0)
    [offer] = [e.offer for e in effects if isinstance(e, AskAny)]
    plan.step(OfferRefused(A, offer, ErrorCode.BUSY), now=0)
    plan.step(PeerJoined(A, COMPLETE, picks=True, near=True), now=0.1)
    plan.step(PeerJoined(B, COMPLETE), now=0.2)
    assert offers_in(plan.step(Tick(), now=1)) == {A: set(keys(9))}


def test_on_a_long_line_as_much_is_asked_as_is_under_way_and_less_when_it_is_short_again() -> None:
    plan = plan_of(4000, offers=4)
    now, line_free_at = 0.0, 0.0

    def play(rounds: int, delay_s: float) -> int:
        """A server that picks in turn and whose line takes a span in 8 ms."""
        nonlocal now, line_free_at
        for _ in range(rounds):
            due, event = queue.pop(0)
            now = max(now, due)
            for effect in plan.step(event, now=now):
                if isinstance(effect, AskAny):
                    span = names.pop()
                    line_free_at = max(line_free_at, now + delay_s / 2) + 0.008
                    queue.append((line_free_at, SpanPicked(A, effect.offer, span)))
                    queue.append((line_free_at + delay_s / 2, SpanReceived(A, span)))
            queue.sort(key=lambda one: one[0])
        return plan.peers[A].owes

    names = keys(4000)[::-1]
    queue: list[tuple[float, FetchEvent]] = [(0.0, PeerJoined(A, COMPLETE, picks=True))]
    assert 12 <= play(200, 0.1) <= 20
    play(2 * 3000, 0.001)  # some 24 s
    assert plan.peers[A].owes <= 6


def test_an_offer_that_is_not_answered_is_made_anew_and_the_silent_peer_dropped() -> None:
    plan = plan_of(9, offers=1)
    plan.step(PeerJoined(A, COMPLETE, picks=True), now=0)
    cancelled, dropped, now = 0, False, 0.0
    while not dropped:
        now += 5.0
        assert now < 400
        for effect in plan.step(Tick(), now=now):
            cancelled += isinstance(effect, CancelOffer)
            dropped = dropped or isinstance(effect, DropPeer)
            assert not isinstance(effect, WakeAt) or effect.at > now
    assert cancelled >= 4


def test_what_was_taken_back_is_left_out_of_an_offer() -> None:
    wanted = ((0, b"\x06\x01"), (3, b"\x01"))
    assert without(wanted, set()) == wanted
    left_out = {SpanKey(0, 8), SpanKey(3, 0), SpanKey(3, 99), SpanKey(7, 1)}
    assert without(wanted, left_out) == ((0, b"\x06"),)
    assert without(wanted, {SpanKey(0, 1), SpanKey(0, 2), SpanKey(0, 8), SpanKey(3, 0)}) == ()


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["{}"],
        ["[1, 2"],
        ['["archid fetch plan 2"]'],
        ['["archid fetch plan 1", 1]'],
        [recipe_line(FetchPlan(keys(1), [1]).recipe), "[0]"],
        [recipe_line(FetchPlan(keys(1), [1]).recipe), '[0, ["Nothing"], []]'],
    ],
)
def test_what_is_no_log_is_refused(lines: list[str]) -> None:
    with pytest.raises(FormatError):
        list(read_log(lines)[1])


@pytest.mark.parametrize("picks", [True, False])
def test_while_paused_nothing_is_asked_and_what_comes_counts(picks: bool) -> None:
    plan = plan_of(9)
    plan.step(PeerJoined(A, COMPLETE, picks), now=0)
    first = keys(9)[0]
    if picks:
        plan.step(SpanPicked(A, 1, first), now=0)
    open_offers = plan.peers[A].offered.bit_count()
    effects = plan.step(Paused(True), now=1)
    assert len([e for e in effects if isinstance(e, UnwantSpan)]) == open_offers
    assert not [e for e in effects if isinstance(e, AskSpan | AskAny)]
    effects = plan.step(SpanReceived(A, first), now=2)
    assert not [e for e in effects if isinstance(e, AskSpan | AskAny)]
    assert plan.missing_spans == 8
    effects = plan.step(Paused(False), now=3)
    assert [e for e in effects if isinstance(e, AskSpan | AskAny)]
