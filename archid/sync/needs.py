"""What a node must hold by its role, when that is certain; otherwise why it is not.

Removing goes by this. It is certain only under a head that has not expired, with everything here
that the head says of this node.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from archid.errors import Conflict
from archid.store.collecting import Needs
from archid.sync.granted import Granted
from archid.sync.listings import Listings
from archid.sync.own_leaf import OwnLeaf
from archid.sync.trust_keeper import TrustKeeper
from protocol.head import Head
from protocol.ids import ListId, ManifestId, ReleaseId

Ask = Callable[[], Needs]
"""Says what is needed; raises NotCertain."""

SHORTEST_S: Final = 24 * 3600.0
"""How long a node that holds everything keeps what the Catalogue does not list, at least.

What is being published is listed only with the next head.
"""


class NotCertain(Conflict):
    """What must be held is not known well enough to remove anything."""

    code = "needs_unknown"


def needs_by_role(
    keeper: TrustKeeper,
    leaf: OwnLeaf,
    granted: Granted | None,
    listings: Listings,
    *,
    keep_s: Callable[[], float],
    clock: Callable[[], float] = time.time,
) -> tuple[Callable[[], float], Ask]:
    """For how long things stay that are not needed, and what is; `granted` on a server."""
    if granted is not None:
        return keep_s, lambda: server_needs(granted, leaf, keeper, keep_s, clock())
    return lambda: max(keep_s(), SHORTEST_S), lambda: holder_needs(listings, keeper, clock())


def server_needs(
    granted: Granted, leaf: OwnLeaf, keeper: TrustKeeper, keep_s: Callable[[], float], now: float
) -> Needs:
    """What the leaf grants; a release that ended long ago needs nothing any more."""
    head = _fresh_head(keeper, now)
    if not leaf.is_newest:
        raise NotCertain(
            "What the newest head grants to this server has not come yet, so nothing is removed",
            remedy="Wait until it reaches central, a REPO or a neighbour; archid status shows it",
        )
    releases: dict[ManifestId, set[ReleaseId]] = {}
    over: set[ReleaseId] = set()
    for header in granted.headers():
        if header.withdrawn or header.end_s + keep_s() <= head.issued_s:
            over.add(header.release)
            continue
        for entry in granted.entries(header):
            releases.setdefault(entry.manifest, set()).add(header.release)
    return Needs(
        granted={manifest: frozenset(of) for manifest, of in releases.items()},
        withdrawn=frozenset(over),
        lists=frozenset(),
        issued_s=head.issued_s,
    )


def holder_needs(listings: Listings, keeper: TrustKeeper, now: float) -> Needs:
    """All that the Catalogue lists, and the lists themselves."""
    head = _fresh_head(keeper, now)
    if not listings.is_complete:
        raise NotCertain(
            "Not all lists of the newest head are here yet, so nothing is removed",
            remedy="Wait until this node has them; archid status shows which peers it reaches",
        )
    lists: set[ListId] = {head.catalogue, head.roster}
    for grants_root in head.grants_roots:
        if (grants := keeper.trust.grants(grants_root)) is not None:
            lists.add(grants.index)
    return Needs(
        granted={row.manifest: frozenset() for row in listings.catalogue},
        withdrawn=frozenset(),
        lists=frozenset(lists),
        issued_s=head.issued_s,
    )


def _fresh_head(keeper: TrustKeeper, now: float) -> Head:
    head = keeper.trust.head
    if head is None or keeper.trust.head_expired(now):
        raise NotCertain(
            "The newest state of the fleet that is known here has expired, so nothing is removed",
            remedy="Check that central runs and that this node reaches it or a REPO",
            code="head_expired",
        )
    return head
