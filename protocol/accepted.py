"""Which Grants roots and denials the next Head carries; for whoever signs heads.

Nodes that were away prove themselves with old Grants, so heads accept the last 16 roots and one
a day for 30 days. What must no longer hold under one of those is denied by name, for as long as
an accepted root contains it. Pure functions: central keeps the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from protocol.errors import LimitExceeded
from protocol.head import Denial
from protocol.ids import DocumentId
from protocol.limits import MAX_ACCEPTED_GRANTS, MAX_DENIED

NEWEST_KEPT: Final = 16
DAYS_KEPT: Final = 30
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class AcceptedGrants:
    """A Grants root and when it was signed."""

    id: DocumentId
    issued_s: int


def next_accepted(
    previous: Sequence[AcceptedGrants], new: AcceptedGrants | None, *, now_s: int
) -> tuple[AcceptedGrants, ...]:
    """The roots that the next Head accepts, newest first, with `new` in front if it is new.

    `previous` is the last Head's list, newest first. Kept are the newest 16, and of the others
    the last one of each UTC day for 30 days. Applying it again with nothing new drops only what
    has become too old.
    """
    roots = list(previous)
    if new is not None and all(root.id != new.id for root in roots):
        roots.insert(0, new)
    kept = roots[:NEWEST_KEPT]
    days = {root.issued_s // DAY_S for root in kept}
    for root in roots[NEWEST_KEPT:]:
        day = root.issued_s // DAY_S
        if day not in days and root.issued_s >= now_s - DAYS_KEPT * DAY_S:
            days.add(day)
            kept.append(root)
    return tuple(kept[:MAX_ACCEPTED_GRANTS])


def carry_denials(
    denied: Sequence[Denial],
    previous: Sequence[AcceptedGrants],
    accepted: Sequence[AcceptedGrants],
) -> tuple[Denial, ...]:
    """The denials that are still needed once `accepted` has replaced `previous`.

    A denial covers the root that it names and all older ones. When that root is no longer
    accepted, the newest older one that still is takes its place; when none is, the denial goes.
    """
    order = [root.id for root in previous]
    still = {root.id for root in accepted}
    carried = []
    for denial in denied:
        start = order.index(denial.grants_root) if denial.grants_root in order else 0
        covered = next((root for root in order[start:] if root in still), None)
        if covered is not None:
            carried.append(replace(denial, grants_root=covered))
    return tuple(carried)


def make_room(
    accepted: Sequence[AcceptedGrants], denied: Sequence[Denial]
) -> tuple[tuple[AcceptedGrants, ...], tuple[Denial, ...]]:
    """Let old roots go, oldest first, until the denials fit into a Head.

    Nodes that hold nothing newer then have to fetch their leaf again, which a denial left out
    would not forgive. Raises LimitExceeded when only the newest root is left and the denials
    still do not fit: sign Grants without what is denied first.
    """
    roots = tuple(accepted)
    denials = tuple(denied)
    while len(denials) > MAX_DENIED:
        if len(roots) <= 1:
            raise LimitExceeded(
                f"{len(denials)} denials under the newest Grants, over {MAX_DENIED}; "
                "sign new Grants without what is denied"
            )
        fewer = roots[:-1]
        denials = carry_denials(denials, roots, fewer)
        roots = fewer
    return roots, denials
