"""What the next head accepts and denies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.accepted import (
    DAY_S,
    DAYS_KEPT,
    NEWEST_KEPT,
    AcceptedGrants,
    carry_denials,
    make_room,
    next_accepted,
)
from protocol.errors import LimitExceeded
from protocol.head import Denial
from protocol.ids import DocumentId
from protocol.limits import MAX_ACCEPTED_GRANTS, MAX_DENIED

START_S = 20_000 * DAY_S


def root(number: int, issued_s: int = START_S) -> AcceptedGrants:
    return AcceptedGrants(DocumentId.of(str(number).encode()), issued_s)


def denial(number: int, covered: AcceptedGrants) -> Denial:
    return Denial("node", str(number).encode(), covered.id)


def issue(steps_s: list[int]) -> tuple[list[AcceptedGrants], tuple[AcceptedGrants, ...]]:
    """Sign Grants at these distances: everything ever signed, and what is accepted at the end."""
    now_s, signed = START_S, []
    accepted: tuple[AcceptedGrants, ...] = ()
    for number, step_s in enumerate(steps_s):
        now_s += step_s
        signed.append(root(number, now_s))
        accepted = next_accepted(accepted, signed[-1], now_s=now_s)
    return signed, accepted


@given(st.lists(st.sampled_from([1, 60, 3600, DAY_S // 3, DAY_S, 5 * DAY_S]), max_size=120))
def test_the_newest_16_and_the_last_of_each_day_for_30_days_are_accepted(steps: list[int]) -> None:
    signed, accepted = issue(steps)
    assert len(accepted) <= MAX_ACCEPTED_GRANTS
    assert list(accepted[:NEWEST_KEPT]) == signed[::-1][:NEWEST_KEPT]
    assert [one.issued_s for one in accepted] == sorted(
        (one.issued_s for one in accepted), reverse=True
    )
    if not signed:
        return
    now_s = signed[-1].issued_s
    last_of_day = {one.issued_s // DAY_S: one for one in signed}
    for one in last_of_day.values():
        assert (one in accepted) or one.issued_s < now_s - DAYS_KEPT * DAY_S
    for one in accepted[NEWEST_KEPT:]:
        assert last_of_day[one.issued_s // DAY_S] == one


def test_nothing_new_changes_nothing_and_grants_are_not_listed_twice() -> None:
    signed, accepted = issue([3600] * 60)
    now_s = signed[-1].issued_s
    assert next_accepted(accepted, None, now_s=now_s) == accepted
    assert next_accepted(accepted, accepted[0], now_s=now_s) == accepted


def test_grants_that_stay_in_force_for_months_stay_accepted() -> None:
    only = next_accepted((), root(1), now_s=START_S)
    assert next_accepted(only, None, now_s=START_S + 300 * DAY_S) == only


def test_a_denial_moves_to_the_newest_accepted_root_that_it_covers() -> None:
    one, two, three, four = (root(number) for number in range(4))
    before = (four, three, two, one)
    denials = (denial(1, three), denial(2, one))
    assert carry_denials(denials, before, before) == denials
    assert carry_denials(denials, before, (four, two, one)) == (denial(1, two), denial(2, one))
    assert carry_denials(denials, before, (four, three)) == (denial(1, three),)
    assert carry_denials(denials, before, (four,)) == ()


def test_a_denial_under_an_unlisted_root_is_kept_for_all() -> None:
    one, two = root(1), root(2)
    assert carry_denials([denial(1, root(9))], (two, one), (two, one)) == (denial(1, two),)


def test_old_roots_go_first_when_the_denials_do_not_fit() -> None:
    newest, middle, oldest = root(3), root(2), root(1)
    denials = [denial(n, oldest) for n in range(10)]
    denials += [denial(100 + n, middle) for n in range(MAX_DENIED)]
    roots, fitting = make_room((newest, middle, oldest), denials)
    assert roots == (newest, middle)
    assert fitting == tuple(denials[10:])
    assert make_room((newest, middle), fitting) == ((newest, middle), fitting)


def test_denials_under_the_newest_root_are_never_dropped() -> None:
    denials = [denial(n, root(2)) for n in range(MAX_DENIED + 1)]
    with pytest.raises(LimitExceeded, match="sign new Grants"):
        make_room((root(2), root(1)), denials)
