"""Releases on a server: fetched, switched at their time, withdrawn, of one name, and remembered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing

from archid.errors import Conflict, NotFound
from archid.identity import Identity
from archid.sync import deliveries as deliveries_module
from archid.sync.deliveries import Deliveries, Delivery, DeliveryState
from protocol.facts import LeafItem, ReleaseHeader
from tests.expected_errors import ErrorWatch
from tests.unit.protocol.signed_fleet import NOW_S
from tests.unit.store.disks import as_root, read_only
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


async def test_what_is_no_longer_granted_when_its_turn_comes_is_not_switched_to(
    node: SyncNode, film: Version
) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated", name="Dune")
        await tell(node, *entries(release("Other"), feature=film))
        await event(events, "release.activated", name="Other")
        await deliveries.switcher.switch(dune)  # as from a look at the leaf before
        assert active(node) == node.library.tree(film.manifest)


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


async def test_a_withdrawn_release_plays_until_it_is_taken_away(
    node: SyncNode, film: Version
) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated")
        async with deliveries.switcher.lock:
            await tell(node, replace(dune, state="withdrawn", generation=2))
            await trio.testing.wait_all_tasks_blocked()
            assert active(node) is not None
            assert one(deliveries).state is DeliveryState.ACTIVE
        await event(events, "release.withdrawn")
        assert one(deliveries).state is DeliveryState.WITHDRAWN


@as_root
async def test_a_withdrawn_release_that_cannot_be_taken_away_says_why_and_is_tried_again(
    node: SyncNode, film: Version, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("release_not_taken_away")
    deliveries = deliveries_of(node)
    dune = release("Dune")
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated")
        with read_only(node.paths.scripts / "releases"):
            await tell(node, replace(dune, state="withdrawn", generation=2))
            while one(deliveries).state is not DeliveryState.FAILED:
                await trio.testing.wait_all_tasks_blocked()
            assert "read-only" in (one(deliveries).reason or "").lower()
            assert active(node) is not None
        await event(events, "release.withdrawn")
        assert active(node) is None
        assert one(deliveries).state is DeliveryState.WITHDRAWN


async def test_a_withdrawn_release_that_somebody_took_away_is_withdrawn(
    node: SyncNode, film: Version
) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated")
        async with deliveries.switcher.lock:
            (node.paths.scripts / "releases" / "Dune").unlink()
            await tell(node, replace(dune, state="withdrawn", generation=2))
        await event(events, "release.withdrawn")
        assert one(deliveries).state is DeliveryState.WITHDRAWN
    [last] = node.journal.tail(1)
    assert last.kind == "release_withdrawn"


async def test_a_withdrawn_release_whose_folder_cannot_be_looked_at_still_has_its_name(
    node: SyncNode, film: Version
) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    releases = node.paths.scripts / "releases"
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated")
        async with deliveries.switcher.lock:
            releases.rename(node.paths.scripts / "away")  # as a disk that is not mounted yet
            await tell(node, replace(dune, state="withdrawn", generation=2))
        await deliveries.switcher.withdraw(one(deliveries).header)
        assert one(deliveries).state is DeliveryState.ACTIVE
        (node.paths.scripts / "away").rename(releases)
        await event(events, "release.withdrawn")
        assert active(node) is None


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


async def test_a_rollback_holds_across_a_restart_and_yields_to_a_newer_generation(
    node: SyncNode, film: Version, newer: Version
) -> None:
    dune = release("Dune")
    second, third = replace(dune, generation=2), replace(dune, generation=3)
    first = deliveries_of(node)
    async with node.events.subscribe() as events, running(first.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated", generation=1)
        await tell(node, *entries(second, feature=newer))
        await event(events, "release.activated", generation=2)
        hold = await first.switcher.roll_back("Dune", "the left wall is dark")
        assert hold.generation == 2
        assert active(node) == node.library.tree(film.manifest)
        assert states(first) == {"Dune": DeliveryState.ROLLED_BACK}
        assert "the left wall is dark" in (one(first).reason or "")
    again = deliveries_of(node)
    await again.load()
    assert states(again)["Dune"] is DeliveryState.ROLLED_BACK, "before it works"
    async with node.events.subscribe() as events, running(again.run):
        await tell(node, *entries(second, feature=newer), *entries(release("Next"), feature=film))
        await event(events, "release.activated", name="Next")
        assert states(again)["Dune"] is DeliveryState.ROLLED_BACK
        assert active(node) == node.library.tree(film.manifest)
        with pytest.raises(Conflict, match="rolled back already"):
            await again.switcher.roll_back("Dune", "")
        await tell(node, *entries(third, feature=newer))
        await event(events, "release.activated", generation=3)
        assert active(node) == node.library.tree(newer.manifest)
        assert states(again) == {"Dune": DeliveryState.ACTIVE}


async def test_activating_by_hand_ends_a_rollback(
    node: SyncNode, film: Version, newer: Version
) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated", generation=1)
        await tell(node, *entries(replace(dune, generation=2), feature=newer))
        await event(events, "release.activated", generation=2)
        await deliveries.switcher.roll_back("Dune", "")
        header, changed = await deliveries.switcher.activate("Dune", early=False)
        assert (header.generation, changed) == (2, True)
        assert active(node) == node.library.tree(newer.manifest)
        assert await deliveries.switcher.activate("Dune", early=False) == (header, False)
    again = deliveries_of(node)
    async with node.events.subscribe() as events, running(again.run):
        await event(events, "release.ready")
        assert states(again) == {"Dune": DeliveryState.ACTIVE}


async def test_a_link_that_somebody_moved_goes_back_to_what_was_rolled_back_to(
    node: SyncNode, film: Version, newer: Version
) -> None:
    deliveries = deliveries_of(node)
    dune = release("Dune")
    second = replace(dune, generation=2)
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *entries(dune, feature=film))
        await event(events, "release.activated", generation=1)
        await tell(node, *entries(second, feature=newer))
        await event(events, "release.activated", generation=2)
        await deliveries.switcher.roll_back("Dune", "")
        (node.paths.scripts / "releases" / "Dune").unlink()
        await tell(node, *entries(second, feature=newer), *entries(release("Next"), feature=film))
        await event(events, "release.rolled_back")
        await event(events, "release.rolled_back")
    assert active(node) == node.library.tree(film.manifest)


async def test_what_cannot_be_rolled_back_or_activated_is_refused_by_name(
    node: SyncNode, film: Version
) -> None:
    deliveries = deliveries_of(node)
    missing = node.fleet.publish("missing", reel(9))
    soon = release("Soon", start_s=NOW_S + 100)
    withdrawn = replace(release("Gone"), state="withdrawn", generation=2)
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(
            node,
            *entries(release("Absent"), feature=film, sas=missing),
            *entries(soon, feature=film),
            *entries(release("Past", end_s=NOW_S), feature=film),
            *entries(release("Dune"), feature=film),
            withdrawn,
        )
        await event(events, "release.activated", name="Dune")
        switcher = deliveries.switcher
        with pytest.raises(NotFound, match="no release 'Mars'"):
            await switcher.roll_back("Mars", "")
        with pytest.raises(Conflict, match="no earlier bundle"):
            await switcher.roll_back("Dune", "")
        with pytest.raises(Conflict, match="has not been switched to"):
            await switcher.roll_back("Soon", "")
        with pytest.raises(NotFound, match="no release 'Mars'"):
            await switcher.activate("Mars", early=True)
        with pytest.raises(Conflict, match="sas of 2 scripts missing"):
            await switcher.activate("Absent", early=True)
        for name in ("Past", "Gone"):
            with pytest.raises(Conflict, match="not switched to any more"):
                await switcher.activate(name, early=True)
        with pytest.raises(Conflict, match="starts at") as refused:
            await switcher.activate("Soon", early=False)
        assert refused.value.code == "before_start"
        assert active(node, "Soon") is None
        await switcher.activate("Soon", early=True)
        assert active(node, "Soon") == node.library.tree(film.manifest)
        assert states(deliveries)["Soon"] is DeliveryState.ACTIVE


async def test_a_release_that_a_person_activated_early_keeps_a_shared_name(
    node: SyncNode, film: Version, newer: Version
) -> None:
    deliveries = deliveries_of(node)
    old = release("old", name="Dune", start_s=NOW_S - 200)
    new = release("new", name="Dune", start_s=NOW_S + 100)
    items = [*entries(old, feature=film), *entries(new, feature=newer)]
    async with node.events.subscribe() as events, running(deliveries.run):
        await tell(node, *items)
        await event(events, "release.activated", release=old.release.hex())
        await deliveries.switcher.activate(new.release.hex(), early=True)
        await tell(node, *items, *entries(release("Next"), feature=film))
        await event(events, "release.activated", name="Next")
        assert active(node) == node.library.tree(newer.manifest)


async def test_what_is_asked_for_by_hand_is_fetched_before_its_date(node: SyncNode) -> None:
    missing = node.fleet.publish("missing", reel(9))
    other = node.fleet.publish("other", reel(8))
    deliveries = deliveries_of(node)
    soon = release("Soon", prefetch_s=NOW_S + 10, start_s=NOW_S + 20)
    late = release("Late", prefetch_s=NOW_S + 10, start_s=NOW_S + 20)
    await tell(node, *entries(soon, feature=missing), *entries(late, feature=other))
    async with running(deliveries.run, node.fetcher.run):
        with pytest.raises(NotFound, match="no release or script 'Mars'"):
            deliveries.fetch_now("Mars")
        assert deliveries.fetch_now("Soon") == [missing.manifest]
        while node.fetcher.progress[missing.manifest].reason is None:
            await trio.testing.wait_all_tasks_blocked()
        assert states(deliveries)["Late"] is DeliveryState.PLANNED
        assert node.fetcher.progress[other.manifest].reason is None
