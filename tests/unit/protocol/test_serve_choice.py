"""What a server picks: what it has sent least, never what the peer has taken out."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import ManifestId
from protocol.serve_choice import GIVEN, MAX_UNWANTED, ServeChoice

FILM, LOOP = ManifestId(b"f" * 32), ManifestId(b"l" * 32)


def choice(**changes: int) -> ServeChoice:
    return ServeChoice(randrange=Random(7).randrange, **changes)


@given(rounds=st.integers(1, 4), count=st.integers(1, 30))
def test_everything_is_sent_once_before_anything_is_sent_twice(rounds: int, count: int) -> None:
    serving = choice()
    spans = list(range(count))
    for _ in range(rounds):
        assert sorted(serving.pick(FILM, spans, span_count=count) or 0 for _ in spans) == spans


def test_what_could_not_be_sent_does_not_count() -> None:
    serving = choice()
    assert serving.pick(FILM, [0], span_count=2) == 0
    assert serving.pick(FILM, [0, 1], span_count=2) == 1
    serving.not_sent(FILM, 1)
    assert serving.pick(FILM, [0, 1], span_count=2) == 1
    assert serving.pick(FILM, [], span_count=2) is None


def test_two_servers_do_not_pick_in_the_same_order() -> None:
    orders = []
    for seed in (1, 2):
        serving = ServeChoice(randrange=Random(seed).randrange)
        orders.append([serving.pick(FILM, range(50), span_count=50) for _ in range(50)])
    assert orders[0] != orders[1]


def test_unwanted_spans_are_left_out_of_the_requests_that_they_concern() -> None:
    serving = choice()
    serving.unwanted("peer", FILM, 1, up_to=5)
    assert serving.still_wanted("peer", FILM, [0, 1, 2], request=5) == [0, 2]
    assert serving.still_wanted("peer", LOOP, [0, 1, 2], request=5) == [0, 1, 2]
    assert serving.still_wanted("other", FILM, [0, 1, 2], request=5) == [0, 1, 2]
    # A later request may want it again: it was lost where it was asked for.
    assert serving.still_wanted("peer", FILM, [0, 1, 2], request=6) == [0, 1, 2]
    # To look at that one first takes nothing from those that came before it.
    assert serving.still_wanted("peer", FILM, [0, 1, 2], request=5) == [0, 2]


def test_what_concerns_only_requests_that_are_done_with_is_forgotten() -> None:
    serving = choice()
    serving.unwanted("peer", FILM, 1, up_to=5)
    serving.unwanted("peer", FILM, 2, up_to=6)
    serving.done_before("peer", 6)
    assert list(serving._unwanted["peer"]) == [(FILM, 2)]
    serving.done_before("other", 6)


def test_memory_is_bounded_whatever_peers_say() -> None:
    serving = choice(max_versions=2)
    for span in range(3 * MAX_UNWANTED):
        serving.unwanted("peer", FILM, span, up_to=1)
    left = serving.still_wanted("peer", FILM, range(3 * MAX_UNWANTED), request=1)
    assert left == list(range(2 * MAX_UNWANTED))
    serving.peer_lost("peer")
    assert not serving._unwanted
    for n in range(10):
        serving.pick(ManifestId(bytes([n]) * 32), [0], span_count=1)
    assert len(serving._sent) == 2


def test_a_peer_is_not_given_twice_what_its_requests_still_name() -> None:
    serving = choice()
    for span in (1, 2, 3):  # others were sent these before
        serving.pick(FILM, [span], span_count=4)
    assert serving.pick(FILM, [0, 1, 2, 3], span_count=4, peer="peer") == 0
    picked = [serving.pick(FILM, [0, 1, 2, 3], span_count=4, peer="peer") for _ in range(3)]
    assert sorted(one or 0 for one in picked) == [1, 2, 3]
    # Nothing else is left: it must have lost it.
    assert serving.pick(FILM, [0], span_count=4, peer="peer") == 0
    assert serving.pick(FILM, [0, 1], span_count=4, peer="other") in (0, 1)


def test_what_could_not_be_sent_to_a_peer_may_be_picked_for_it_again() -> None:
    serving = choice()
    serving.pick(FILM, [1], span_count=2)
    assert serving.pick(FILM, [0, 1], span_count=2, peer="peer") == 0
    serving.not_sent(FILM, 0, peer="peer")
    assert serving.pick(FILM, [0, 1], span_count=2, peer="peer") == 0


def test_few_of_the_picks_for_a_peer_are_remembered_and_none_of_one_that_is_gone() -> None:
    serving = choice()
    for _ in range(2):
        for span in range(3 * GIVEN):
            serving.pick(FILM, [span], span_count=3 * GIVEN, peer="peer")
    assert len(serving._given["peer"]) == GIVEN
    serving.peer_lost("peer")
    assert not serving._given
