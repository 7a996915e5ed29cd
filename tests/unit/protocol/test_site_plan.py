"""A site divides a version without a word, waits for siblings in reason, and divides anew."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from blake3 import blake3

from protocol.fetch import FetchPlan
from protocol.fetch_events import (
    COMPLETE,
    AskAny,
    AskSpan,
    FetchEffect,
    PeerHas,
    PeerJoined,
    PeerLost,
    SpanCorrupt,
    SpanKey,
    SpanPicked,
    SpanReceived,
    Tick,
    UnwantSpan,
)
from protocol.rendezvous import CONTEXT, Rendezvous
from protocol.site_plan import (
    FAST_IN_FLIGHT_SPANS,
    FIRST_PATIENCE_S,
    FIRST_STALL_S,
    IN_FLIGHT_SPANS,
    PATIENCE_S,
    Pace,
)

OWN, SIBLING, THIRD, OUTSIDE = b"own", b"sibling", b"third", b"outside"
TOPIC = bytes(32)
KEYS = [SpanKey(i // 30, i % 30) for i in range(60)]


def plan_of(own: bytes = OWN, **options: object) -> FetchPlan:
    return FetchPlan(KEYS, [1 << 20] * len(KEYS), seed=own, topic=TOPIC, log_limit=None, **options)  # type: ignore[arg-type]


def spans_of(plan: FetchPlan, mask: int) -> set[SpanKey]:
    table = plan._board.table
    return {span for span in KEYS if mask >> table.bit_of[span] & 1}


def offered(effects: list[FetchEffect]) -> set[SpanKey]:
    return {
        SpanKey(index, n)
        for effect in effects
        if isinstance(effect, AskAny)
        for index, bitmap in effect.wanted
        for n in range(8 * len(bitmap))
        if bitmap[n // 8] >> n % 8 & 1
    }


def asked(effects: list[FetchEffect], peer: bytes) -> set[SpanKey]:
    return {e.span for e in effects if isinstance(e, AskSpan) and e.peer == peer}


# Rendezvous hashing


def test_weights_are_the_extended_output_over_topic_and_name() -> None:
    rendezvous = Rendezvous(range(3), TOPIC)
    stream = blake3(TOPIC + OWN, derive_key_context=CONTEXT).digest(length=24)
    expected = tuple(int.from_bytes(stream[n : n + 8], "little") for n in (0, 8, 16))
    assert rendezvous.weights(OWN) == expected


def test_shares_are_disjoint_and_together_everything() -> None:
    shares = Rendezvous(range(1000), TOPIC).shares([OWN, SIBLING, THIRD])
    assert sum(share.bit_count() for share in shares.values()) == 1000
    assert shares[OWN] | shares[SIBLING] | shares[THIRD] == (1 << 1000) - 1
    assert sorted(share.bit_count() for share in shares.values()) == [333, 333, 334]


def test_a_span_goes_to_who_weighs_most_for_it_as_long_as_that_has_room() -> None:
    rendezvous = Rendezvous(range(1000), TOPIC)
    names = [OWN, SIBLING, THIRD]
    shares = rendezvous.shares(names)
    displaced = 0
    for number, row in enumerate(zip(*map(rendezvous.weights, names), strict=True)):
        heaviest = names[row.index(max(row))]
        if not shares[heaviest] >> number & 1:
            displaced += 1
            before = shares[heaviest] & (1 << number) - 1
            assert before.bit_count() >= 333, "there was room"
    assert 0 < displaced < 50


@pytest.mark.parametrize(("spans", "names"), [(33, 16), (21, 20), (5, 9), (64, 8), (1, 2)])
def test_no_share_is_larger_than_another_by_more_than_one(spans: int, names: int) -> None:
    shares = Rendezvous(range(spans), TOPIC).shares([b"%d" % n for n in range(names)])
    sizes = [share.bit_count() for share in shares.values()]
    assert sum(sizes) == spans
    assert max(sizes) - min(sizes) <= 1


def test_when_a_name_goes_its_spans_change_hands_and_few_others() -> None:
    rendezvous = Rendezvous(range(1000), TOPIC)
    before = rendezvous.shares([OWN, SIBLING, THIRD])
    after = rendezvous.shares([OWN, SIBLING])
    assert (before[OWN] & ~after[OWN]).bit_count() < 50
    assert (before[SIBLING] & ~after[SIBLING]).bit_count() < 50


def test_behind_the_share_comes_the_rest_by_how_many_weigh_more() -> None:
    rendezvous = Rendezvous(range(200), TOPIC)
    share = rendezvous.shares([OWN, SIBLING, THIRD])[OWN]
    ranks = rendezvous.ranks(OWN, [SIBLING, THIRD], share)
    assert ranks[0] == share
    assert ranks[0] | ranks[1] | ranks[2] == (1 << 200) - 1
    assert sum(rank.bit_count() for rank in ranks) == 200
    weights = list(zip(*map(rendezvous.weights, [OWN, SIBLING, THIRD]), strict=True))
    for number, (mine, *others) in enumerate(weights):
        more = sum(other > mine for other in others)
        assert share >> number & 1 or ranks[max(more, 1)] >> number & 1
    assert Rendezvous(range(9)).ranks(OWN, [], 511) == [511]


def test_another_version_is_divided_otherwise() -> None:
    one = Rendezvous(range(100), TOPIC).shares([OWN, SIBLING])
    assert one != Rendezvous(range(100), b"other").shares([OWN, SIBLING])


# The plan


def test_siblings_agree_on_who_fetches_what_and_outside_is_offered_the_own_share_alone() -> None:
    shares = []
    for own, other in ((OWN, SIBLING), (SIBLING, OWN)):
        plan = plan_of(own)
        plan.step(PeerJoined(other, frozenset(), near=True), now=0)
        effects = plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0)
        assert offered(effects) == spans_of(plan, plan.site.own)
        shares.append(offered(effects))
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(KEYS)


def test_what_was_offered_before_the_sibling_came_is_taken_back() -> None:
    plan = plan_of()
    before = offered(plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0))
    effects = plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=1)
    taken_back = {e.span for e in effects if isinstance(e, UnwantSpan)}
    assert before - taken_back == spans_of(plan, plan.site.own)


def test_what_a_sibling_has_is_asked_there_and_never_outside() -> None:
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan.step(PeerJoined(OUTSIDE, COMPLETE), now=0)
    theirs = min(set(KEYS) - spans_of(plan, plan.site.own))
    assert asked(plan.step(PeerHas(SIBLING, theirs), now=1), SIBLING) == {theirs}


def test_everything_comes_from_a_sibling_that_has_everything() -> None:
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, COMPLETE, picks=True, near=True), now=0)
    effects = plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0)
    assert not [e for e in effects if isinstance(e, AskAny | AskSpan)]


def test_a_sibling_that_is_gone_leaves_its_share() -> None:
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0)
    plan.step(PeerLost(SIBLING), now=1)
    assert spans_of(plan, plan.site.outside(plan._board.wanted, 1)) == set(KEYS)


def test_a_sibling_that_never_comes_forward_is_left_out() -> None:
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0)
    plan.step(Tick(), now=FIRST_STALL_S + 1)
    assert plan.site.siblings[SIBLING].left_out
    assert spans_of(plan, plan.site.outside(plan._board.wanted, 0)) == set(KEYS)


def test_one_that_was_left_out_counts_again_once_it_brings_something() -> None:
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan.step(Tick(), now=FIRST_STALL_S + 1)
    theirs = min(spans_of(plan, plan.site.siblings[SIBLING].share))
    plan.step(PeerHas(SIBLING, theirs), now=FIRST_STALL_S + 2)
    assert not plan.site.siblings[SIBLING].left_out


def fetch_own_share(
    plan: FetchPlan, now: float, *, every_s: float = 0.1, theirs: Sequence[SpanKey] = ()
) -> float:
    """Meanwhile the sibling says that it has these, the last of them at the end."""
    to_say = list(theirs)
    while own := sorted(spans_of(plan, plan._board.wanted & plan.site.own)):
        span = own[0]
        offers = plan.peers[OUTSIDE].offers
        assert offers, "it waits although its own share is not here"
        now += every_s
        plan.step(SpanPicked(OUTSIDE, min(offers), span), now=now)
        plan.step(SpanReceived(OUTSIDE, span), now=now)
        while len(to_say) >= len(own):
            plan.step(PeerHas(SIBLING, to_say.pop()), now=now)
    return now


def test_who_has_its_share_and_could_ask_takes_on_more_after_a_while() -> None:
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0)
    now = fetch_own_share(plan, 0)
    assert not plan.peers[OUTSIDE].offers
    assert plan.site.level == 0
    effects = plan.step(Tick(), now=now + PATIENCE_S)
    assert plan.site.level == 1
    assert offered(effects)


@pytest.mark.parametrize(
    ("every_s", "in_flight"), [(0.1, FAST_IN_FLIGHT_SPANS), (1.05, IN_FLIGHT_SPANS)]
)
@pytest.mark.parametrize("more", [0, 1])
def test_what_a_sibling_has_about_in_flight_is_left_to_it(
    every_s: float, in_flight: int, more: int
) -> None:
    """Less of it where spans come fast: there a copy costs less than waiting."""
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0)
    theirs = sorted(set(KEYS) - spans_of(plan, plan.site.own))
    now = fetch_own_share(plan, 0, every_s=every_s, theirs=theirs[: -in_flight - more])
    effects = plan.step(Tick(), now=now + max(PATIENCE_S, every_s) + 0.001)
    assert plan.site.level == 1
    assert bool(offered(effects)) == bool(more)


def test_who_holds_its_share_from_the_start_leaves_siblings_theirs_for_longer() -> None:
    before = plan_of()
    before.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan = plan_of(held=frozenset(spans_of(before, before.site.own)))
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0)
    assert not plan._board.wanted & plan.site.own
    plan.step(Tick(), now=FIRST_PATIENCE_S - 0.01)
    assert plan.site.level == 0
    plan.step(Tick(), now=FIRST_PATIENCE_S)
    assert plan.site.level == 1


def test_what_a_sibling_gave_wrong_is_not_awaited_from_others() -> None:
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    plan.step(PeerJoined(OUTSIDE, COMPLETE), now=0)
    theirs = min(set(KEYS) - spans_of(plan, plan.site.own))
    plan.step(PeerHas(SIBLING, theirs), now=1)
    plan.step(SpanCorrupt(SIBLING, theirs), now=2)
    assert theirs in spans_of(plan, plan.site.outside(plan._board.wanted, 2))


def test_a_slow_neighbour_that_has_everything_is_helped_out_from_outside() -> None:
    plan = plan_of()
    plan.step(PeerJoined(SIBLING, COMPLETE, near=True), now=0)
    plan.step(PeerJoined(OUTSIDE, COMPLETE), now=0)
    assert not plan.peers[OUTSIDE].asked
    slow = next(iter(plan.peers[SIBLING].asked))
    plan.step(SpanReceived(SIBLING, plan._board.table.spans[slow]), now=5)  # a MiB in 5 s
    assert plan.peers[OUTSIDE].asked


def test_a_node_without_a_name_divides_with_nobody() -> None:
    plan = plan_of(b"")
    plan.step(PeerJoined(SIBLING, frozenset(), near=True), now=0)
    assert not plan.site.siblings
    assert offered(plan.step(PeerJoined(OUTSIDE, COMPLETE, picks=True), now=0)) == set(KEYS)


def test_on_a_shared_line_requests_begin_with_one() -> None:
    plan = plan_of(shared_line=True)
    first = plan.step(PeerJoined(OUTSIDE, COMPLETE), now=0)
    assert len(asked(first, OUTSIDE)) == 1
    again = plan.step(SpanReceived(OUTSIDE, next(iter(asked(first, OUTSIDE)))), now=0.01)
    assert len(asked(again, OUTSIDE)) == 2


@pytest.mark.parametrize("times", [[1.0, 2.0, 3.0], [3.0, 3.0, 3.0]])
def test_the_pace_begins_as_the_mean(times: list[float]) -> None:
    pace = Pace(0.0)
    for now in times:
        pace.came(now)
    assert pace.interval_s == pytest.approx(1.0)
    assert pace.expected_s(4, 3.0) == pytest.approx(4.0)


# Several holders of everything


def test_holders_of_everything_are_offered_different_spans() -> None:
    plan = plan_of()
    plan.step(PeerJoined(b"repo-1", COMPLETE, picks=True), now=0)
    plan.step(PeerJoined(b"repo-2", COMPLETE, picks=True), now=0)
    one, two = (plan.peers[name].offered for name in (b"repo-1", b"repo-2"))
    assert not one & two
    assert spans_of(plan, one | two) == set(KEYS)


def test_who_has_sent_its_part_takes_over_half_of_what_another_has_not_begun() -> None:
    plan = plan_of()
    plan.step(PeerJoined(b"repo-1", COMPLETE, picks=True), now=0)
    plan.step(PeerJoined(b"repo-2", COMPLETE, picks=True), now=0)
    part = spans_of(plan, plan.peers[b"repo-1"].assigned)
    now = 0.0
    for span in sorted(part):
        now += 0.1
        plan.step(SpanPicked(b"repo-1", min(plan.peers[b"repo-1"].offers), span), now=now)
        plan.step(SpanReceived(b"repo-1", span), now=now)
    one, two = (plan.peers[name].offered for name in (b"repo-1", b"repo-2"))
    assert one
    assert two
    assert not one & two
