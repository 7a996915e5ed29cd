"""Releases on a server: fetched, switched at their time, withdrawn, of one name, and remembered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing

from archid.identity import Identity
from archid.sync import deliveries as deliveries_module
from archid.sync.deliveries import Deliveries, Delivery, DeliveryState
from protocol.facts import LeafItem, ReleaseHeader
from tests.expected_errors import ErrorWatch
from tests.unit.protocol.signed_fleet import NOW_S
from tests.unit.store.trees import Version
from tests.unit.sync.sync_nodes import SyncFleet, SyncNode, entries, event, reel, release, running


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock of these tests is set by hand: look at it often."""
    monkeypatch.setattr(deliveries_module, "LONGEST_NAP_S", 0.02)
    monkeypatch.setattr(deliveries_module, "RETRY_S", 0.02)


@pytest.fixture
def fleet(tmp_path: Path) -> SyncFleet:
    return SyncFleet(tmp_path)


@pytest.fixture
def salle(fleet: SyncFleet) -> Identity:
    return fleet.enrol("salle")


@pytest.fixture
def film(fleet: SyncFleet) -> Version:
    return fleet.publish("film", reel(1))


@pytest.fixture
def newer(fleet: SyncFleet) -> Version:
    return fleet.publish("film", reel(2), version=2)


@pytest.fixture
def node(fleet: SyncFleet, salle: Identity, newer: Version, film: Version) -> Iterator[SyncNode]:
    fleet.sign()
    with fleet.node(salle) as node:
        for version in (film, newer):
            node.hold(version)
        yield node


def deliveries_of(node: SyncNode) -> Deliveries:
    return Deliveries(
        leaf=node.leaf,
        fetcher=node.fetcher,
        library=node.library,
        journal=node.journal,
        events=node.events,
        clock=node.clock,
    )


async def tell(node: SyncNode, *items: LeafItem) -> None:
    """Give the node a leaf with these releases."""
    node.fleet.give(node.identity, items)
    node.fleet.sign()
    await node.take_head()


def active(node: SyncNode, name: str = "Dune") -> Path | None:
    """The feature that a player finds under a release."""
    link = node.paths.scripts / "releases" / name / "feature"
    return link.resolve() if link.exists() else None


def states(deliveries: Deliveries) -> dict[str, DeliveryState]:
    return {one.header.release.decode().strip("."): one.state for one in deliveries.deliveries()}


def one(deliveries: Deliveries) -> Delivery:
    [found] = deliveries.deliveries()
    return found


async def test_a_release_that_has_begun_is_switched_to(node: SyncNode, film: Version) -> None:
    deliveries = deliveries_of(node)
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(release("Dune"), feature=film))
        await event(events, "release.activated", name="Dune", generation=1)
        assert active(node) == node.library.tree(film.manifest)
        assert states(deliveries) == {"Dune": DeliveryState.ACTIVE}
        assert one(deliveries).activated_s == NOW_S
        assert node.paths.scripts.joinpath("scripts/film").resolve() == active(node)


async def test_a_release_waits_for_its_start_and_for_nothing_else(
    node: SyncNode, film: Version
) -> None:
    deliveries = deliveries_of(node)
    start_s = NOW_S + 3600
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(release("Dune", start_s=start_s), feature=film))
        await event(events, "release.ready", name="Dune")
        node.clock.now = start_s - 1
        assert active(node) is None
        assert states(deliveries) == {"Dune": DeliveryState.READY}
        node.clock.now = start_s
        await event(events, "release.activated", name="Dune")
    assert active(node) == node.library.tree(film.manifest)
    assert one(deliveries).activated_s == start_s


async def test_only_withdrawn_takes_a_release_away(node: SyncNode, film: Version) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated")
        await tell(node)
        await tell(node, *entries(release("Other"), feature=film))
        await event(events, "release.activated", name="Other")
        assert active(node) == node.library.tree(film.manifest), "absence deletes nothing"
        gone = replace(dune, state="withdrawn", generation=2)
        await tell(node, gone)
        await event(events, "release.withdrawn", name="Dune")
        assert active(node) is None
        assert states(deliveries) == {"Dune": DeliveryState.WITHDRAWN}


async def test_a_newer_generation_is_switched_to_by_itself(
    node: SyncNode, film: Version, newer: Version
) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated", generation=1)
        node.clock.now += 60
        second = replace(dune, generation=2)
        await tell(node, *entries(second, feature=newer))
        await event(events, "release.activated", generation=2)
        assert active(node) == node.library.tree(newer.manifest)
        assert one(deliveries).activated_s == NOW_S + 60


async def test_a_generation_that_starts_later_leaves_the_present_one_in_its_place(
    node: SyncNode, film: Version, newer: Version
) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated", generation=1)
        later = replace(dune, generation=2, start_s=NOW_S + 100)
        await tell(node, *entries(later, feature=newer))
        await event(events, "release.ready", generation=2)
        assert active(node) == node.library.tree(film.manifest)
        node.clock.now = NOW_S + 100
        await event(events, "release.activated", generation=2)
    assert active(node) == node.library.tree(newer.manifest)


async def test_a_name_that_is_used_again_belongs_to_its_new_release(
    node: SyncNode, film: Version, newer: Version
) -> None:
    deliveries = deliveries_of(node)
    first = release("first", name="Dune")
    second = release("second", name="Dune", start_s=NOW_S + 100)
    withdrawn = replace(first, state="withdrawn", generation=2)
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(first, feature=film))
        await event(events, "release.activated")
        # Withdrawn at once, though another one of this name is on its way.
        await tell(node, withdrawn, *entries(second, feature=newer))
        await event(events, "release.withdrawn")
        assert active(node) is None
        node.clock.now = NOW_S + 100
        await event(events, "release.activated")
        assert active(node) == node.library.tree(newer.manifest)
    # And it stays: also after a restart, which knows what is whose by the journal.
    again = deliveries_of(node)
    async with node.events.subscribe() as events, running(again.run):
        await event(events, "release.ready")
        await tell(node, withdrawn, *entries(release("Other"), feature=film))
        await event(events, "release.activated", name="Other")
        assert active(node) == node.library.tree(newer.manifest)


async def test_two_releases_of_one_name_do_not_take_turns(
    node: SyncNode, film: Version, newer: Version
) -> None:
    deliveries = deliveries_of(node)
    old = release("old", name="Dune", start_s=NOW_S - 200)
    new = release("new", name="Dune", start_s=NOW_S - 100)
    other = release("Other", start_s=NOW_S + 1)
    items = [*entries(old, feature=film), *entries(new, feature=newer)]
    async with node.events.subscribe(prefixes=["release.activated"]) as events:
        async with running(deliveries.run):
            await tell(node, *items, *entries(other, feature=film))
            told = await event(events, "release.activated", name="Dune")
            assert told["release"] == new.release.hex()
            node.clock.now += 1
            # The next thing that is switched is the other name, not the first one again.
            assert (await anext(events))["name"] == "Other"
        assert active(node) == node.library.tree(newer.manifest)


async def test_since_when_a_release_plays_survives_a_restart(node: SyncNode, film: Version) -> None:
    async with node.events.subscribe() as events, running(deliveries_of(node).run):
        await tell(node, *entries(release("Dune"), feature=film))
        await event(events, "release.activated")
    node.clock.now += 5000
    again = deliveries_of(node)
    async with node.events.subscribe() as events, running(again.run):
        await event(events, "release.ready")
        assert one(again).state is DeliveryState.ACTIVE
        assert one(again).activated_s == NOW_S
    assert [e.kind for e in node.journal.tail(10)] == ["release_activated"]


async def test_what_has_ended_is_neither_fetched_nor_switched_to(
    node: SyncNode, film: Version
) -> None:
    deliveries = deliveries_of(node)
    ended = release("Dune", end_s=NOW_S)
    missing = node.fleet.publish("missing", reel(9))
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(
            node,
            *entries(ended, feature=film),
            *entries(release("Past", end_s=NOW_S), feature=missing),
            *entries(release("Other"), feature=film),
        )
        await event(events, "release.activated", name="Other")
        assert active(node) is None
        assert states(deliveries)["Dune"] is DeliveryState.ENDED
        assert missing.manifest not in node.fetcher.progress


async def test_a_release_that_cannot_be_switched_says_why_and_is_tried_again(
    node: SyncNode, film: Version, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("release_not_switched")
    deliveries = deliveries_of(node)
    blocked = node.paths.scripts / "releases" / "Dune"
    blocked.mkdir(parents=True)
    (blocked / "somebody's file").touch()
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(release("Dune"), feature=film))
        await event(events, "release.ready")
        while one(deliveries).state is not DeliveryState.FAILED:
            await trio.testing.wait_all_tasks_blocked()
        assert "folder" in (one(deliveries).reason or "")
        (blocked / "somebody's file").unlink()
        blocked.rmdir()
        await event(events, "release.activated")
        assert one(deliveries).state is DeliveryState.ACTIVE


async def test_what_a_server_waits_for_is_said(node: SyncNode) -> None:
    missing = node.fleet.publish("missing", reel(9))
    deliveries = deliveries_of(node)
    soon: ReleaseHeader = release("Soon", prefetch_s=NOW_S + 10, start_s=NOW_S + 20)
    await tell(node, *entries(release("Now"), feature=missing), *entries(soon, feature=missing))
    async with running(deliveries.run, node.fetcher.run):
        while node.fetcher.progress.get(missing.manifest) is None or not (
            node.fetcher.progress[missing.manifest].reason
        ):
            await trio.testing.wait_all_tasks_blocked()
        found = {one.header.name: one for one in deliveries.deliveries()}
    assert found["Now"].state is DeliveryState.FETCHING
    assert found["Now"].reason == "no peer that holds it is connected"
    assert found["Soon"].state is DeliveryState.PLANNED
    assert sorted(deliveries.releases_of(missing.manifest)) == ["Now", "Soon"]
