"""Puts together, by role, what moves and removes the content of a node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from archid.control.delivery_methods import FetchMethods, SwitchMethods
from archid.control.server import Handler
from archid.daemon.opening import OpenState
from archid.events import EventHub
from archid.store.library import Library
from archid.sync.collector import Collector
from archid.sync.deliveries import Deliveries
from archid.sync.fetcher import Fetcher
from archid.sync.listings import Listings
from archid.sync.needs import needs_by_role
from archid.sync.own_leaf import OwnLeaf
from archid.sync.pins import Pins
from archid.sync.replicator import Replicator
from archid.sync.trust_keeper import TrustKeeper


def make_collector(
    state: OpenState,
    *,
    keeper: TrustKeeper,
    leaf: OwnLeaf,
    listings: Listings,
    fetcher: Fetcher,
    deliveries: Deliveries | None,
    events: EventHub,
    keep_ungranted: Callable[[], timedelta],
) -> Collector:
    """What removes, also when a fetch does not fit.

    `deliveries` on a server, where releases switch under the same lock.
    """
    keep_s, needs = needs_by_role(
        keeper,
        leaf,
        deliveries.granted if deliveries else None,
        listings,
        keep_s=lambda: keep_ungranted().total_seconds(),
    )
    collector = Collector(
        library=state.library,
        absences=state.absences,
        pins=Pins(state.journal),
        needs=needs,
        changed=(keeper.changed, leaf.changed, listings.changed, fetcher.placed),
        keep_s=keep_s,
        journal=state.journal,
        events=events,
        switching=deliveries.switcher.lock if deliveries else None,
    )
    fetcher.make_room = collector.make_room
    return collector


def moving_handlers(
    library: Library, fetcher: Fetcher, deliveries: Deliveries | None, replicator: Replicator
) -> Mapping[str, Handler]:
    """The control methods with which a person moves content: fetch, activate, roll back."""
    fetch_now = deliveries.fetch_now if deliveries else replicator.fetch_now
    fetching = FetchMethods(library=library, fetcher=fetcher, fetch_now=fetch_now)
    if deliveries is None:
        return fetching.handlers()
    return {**fetching.handlers(), **SwitchMethods(library, deliveries.switcher).handlers()}
