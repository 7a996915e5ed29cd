"""What is removed from a node, when, and what never is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from archid.identity import Identity
from archid.store.bundles import KEEP_S
from archid.store.collecting import GRACE_S, Found, Needs
from archid.sync.collector import Collected, Collector
from archid.sync.deliveries import Deliveries
from archid.sync.needs import NotCertain, holder_needs, server_needs
from archid.sync.pins import Pins
from protocol.facts import LeafItem, ReleaseHeader
from tests.unit.protocol.signed_fleet import NOW_S
from tests.unit.store.trees import Version
from tests.unit.sync.sync_nodes import (
    SyncFleet,
    SyncNode,
    entries,
    event,
    reel,
    release,
    running,
    until,
)

DAY_S = 86400
KEPT_S = 7.0 * DAY_S


@dataclass
class Stage:
    """A server with two versions, its deliveries, and its collector."""

    node: SyncNode
    deliveries: Deliveries
    collector: Collector
    issued_s: int = NOW_S

    async def tell(self, *items: LeafItem, later_s: int = 0) -> None:
        """Grant these by a head that is signed so much later; the clock goes with it."""
        self.issued_s += later_s
        self.node.clock.now += later_s
        self.node.fleet.give(self.node.identity, items)
        self.node.fleet.sign(issued_s=self.issued_s)
        await self.node.take_head()

    async def activate(self, header: ReleaseHeader, **versions: Version) -> None:
        async with self.node.events.subscribe() as events, running(self.deliveries.run):
            await self.tell(*entries(header, **versions))
            await event(events, "release.activated", generation=header.generation)

    def age_bundles(self, seconds: float = KEEP_S + 1) -> None:
        """As if they had been made and switched away from so long ago."""
        then = self.node.clock.now - seconds
        for bundle in self.node.library.bundles.bundles():
            os.utime(self.node.library.bundles.path(bundle.id), (then, then))


def trees(found: Found | Collected) -> set[str]:
    going = found.going if isinstance(found, Found) else found.gone
    return {one.id for one in going if one.kind == "tree"}


async def caught_up(node: SyncNode) -> None:
    """Return when everything under the newest head is here."""
    async with running(node.listings.run):
        await until(lambda: node.listings.is_complete, node.listings.changed)


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
def stage(fleet: SyncFleet, salle: Identity, film: Version, newer: Version) -> Iterator[Stage]:
    fleet.sign(issued_s=NOW_S)
    with fleet.node(salle) as node:
        for version in (film, newer):
            node.hold(version)
        deliveries = Deliveries(
            leaf=node.leaf,
            fetcher=node.fetcher,
            library=node.library,
            journal=node.journal,
            events=node.events,
            clock=node.clock,
        )

        def needs() -> Needs:
            granted = deliveries.granted
            return server_needs(granted, node.leaf, node.keeper, lambda: KEPT_S, node.clock())

        collector = Collector(
            library=node.library,
            absences=node.absences,
            pins=Pins(node.journal),
            needs=needs,
            changed=(node.leaf.changed,),
            keep_s=lambda: KEPT_S,
            journal=node.journal,
            events=node.events,
            switching=deliveries.switcher.lock,
            clock=node.clock,
        )
        yield Stage(node, deliveries, collector)


def lasting(name: str) -> ReleaseHeader:
    return release(name, end_s=NOW_S + 1000 * DAY_S)


async def test_what_is_merely_absent_stays_for_days_of_fresh_heads(
    stage: Stage, film: Version
) -> None:
    await stage.tell(*entries(lasting("Dune"), feature=film))
    await stage.collector.survey()
    for _ in range(6):
        await stage.tell(*entries(lasting("Dune"), feature=film), later_s=DAY_S)
        assert (await stage.collector.survey()).going == ()
    # Time that passes without a head counts for nothing.
    stage.node.clock.now += 3 * DAY_S
    waiting = (await stage.collector.survey()).waiting
    assert "6.0 days" in waiting[0].why
    await stage.tell(*entries(lasting("Dune"), feature=film), later_s=DAY_S)
    assert trees(await stage.collector.survey()) == {
        one.hex() for one in stage.node.library.held() if one != film.manifest
    }


async def test_what_is_granted_again_starts_its_days_anew(
    stage: Stage, film: Version, newer: Version
) -> None:
    both = [*entries(lasting("Dune"), feature=film), *entries(lasting("Next"), feature=newer)]
    await stage.tell(*entries(lasting("Dune"), feature=film))
    await stage.collector.survey()
    await stage.tell(*both, later_s=6 * DAY_S)
    await stage.collector.survey()
    await stage.tell(*entries(lasting("Dune"), feature=film), later_s=2 * DAY_S)
    assert trees(await stage.collector.survey()) == set()


async def test_a_withdrawn_release_goes_with_its_bundle_and_a_dry_run_tells_it(
    stage: Stage, film: Version, newer: Version
) -> None:
    dune, library = lasting("Dune"), stage.node.library
    await stage.activate(dune, feature=film)
    await stage.collector.survey()
    async with stage.node.events.subscribe() as events, running(stage.deliveries.run):
        gone = replace(dune, state="withdrawn", generation=2)
        await stage.tell(gone, *entries(lasting("Next"), feature=newer))
        await event(events, "release.withdrawn")
    stage.age_bundles(KEEP_S - 1)
    assert (await stage.collector.survey()).going == (), "players may still have it open"
    stage.age_bundles()
    told = await stage.collector.survey()
    kinds = [one.kind for one in told.going]
    assert kinds == ["bundle", "tree", "manifest", "pieces"]
    assert told.size_bytes > 100_000
    assert library.holds(film.manifest), "a dry run removes nothing"
    done = await stage.collector.collect()
    assert done.gone == told.going
    assert not library.holds(film.manifest)
    assert not library.tree(film.manifest).exists()
    assert not library.documents.has_manifest(film.manifest)
    assert library.bundles.linked_script("film") == newer.manifest
    assert library.holds(newer.manifest)
    assert library.documents.missing_pieces([ref.id for ref in newer.root.pieces]) == []
    assert (await stage.collector.collect()).gone == ()


async def test_a_player_that_holds_a_lock_keeps_its_files(stage: Stage, film: Version) -> None:
    dune, library = lasting("Dune"), stage.node.library
    await stage.activate(dune, feature=film)
    await stage.collector.survey()
    player = os.open(stage.node.paths.release_links / "Dune", os.O_RDONLY)
    fcntl.flock(player, fcntl.LOCK_SH)
    async with stage.node.events.subscribe() as events, running(stage.deliveries.run):
        await stage.tell(replace(dune, state="withdrawn", generation=2))
        await event(events, "release.withdrawn")
    stage.age_bundles()
    done = await stage.collector.collect()
    assert film.manifest.hex() not in trees(done)
    assert [(one.kind, one.why) for one in done.waiting if one.kind == "bundle"] == [
        ("bundle", "a player holds a lock on it")
    ]
    reel_fd = os.open("feature/reel.bin", os.O_RDONLY, dir_fd=player)
    assert os.read(reel_fd, 10) == reel(1)["reel.bin"].data[:10]
    os.close(reel_fd)
    os.close(player)
    assert film.manifest.hex() in trees(await stage.collector.collect())
    assert not library.holds(film.manifest)


async def test_what_a_rollback_needs_stays(stage: Stage, film: Version, newer: Version) -> None:
    dune = lasting("Dune")
    await stage.activate(dune, feature=film)
    await stage.activate(replace(dune, generation=2), feature=newer)
    stage.age_bundles()
    for _ in range(2):
        await stage.tell(*entries(replace(dune, generation=2), feature=newer), later_s=30 * DAY_S)
        assert trees(await stage.collector.collect()) == set()
    await stage.deliveries.switcher.roll_back("Dune", "")
    stage.age_bundles()
    assert trees(await stage.collector.collect()) == set()
    assert (stage.node.paths.release_links / "Dune" / "feature").resolve() == (
        stage.node.library.tree(film.manifest)
    )


async def test_a_pin_keeps_a_version_and_survives_a_restart(
    stage: Stage, film: Version, newer: Version
) -> None:
    pins = stage.collector.pins
    pins.pin([newer.manifest], name="film", by="root")
    again = Pins(stage.node.journal)
    again.load()
    assert [pin.manifest for pin in again.pins()] == [newer.manifest]
    await stage.tell(*entries(lasting("Dune"), feature=film))
    await stage.collector.survey()
    await stage.tell(*entries(lasting("Dune"), feature=film), later_s=30 * DAY_S)
    assert trees(await stage.collector.collect()) == set()
    assert [pin.name for pin in pins.unpin([newer.manifest])] == ["film"]
    assert trees(await stage.collector.collect()) == {newer.manifest.hex()}


async def test_nothing_is_removed_under_a_head_that_has_expired(
    stage: Stage, film: Version
) -> None:
    await stage.tell(*entries(lasting("Dune"), feature=film))
    await stage.collector.survey()
    await stage.tell(*entries(lasting("Dune"), feature=film), later_s=30 * DAY_S)
    stage.node.clock.now += 8 * DAY_S
    with pytest.raises(NotCertain, match="expired"):
        await stage.collector.collect()
    assert len(stage.node.library.held()) == 2


async def test_an_older_leaf_than_the_heads_is_no_ground_for_removing(
    stage: Stage, film: Version
) -> None:
    node = stage.node
    await stage.tell(*entries(lasting("Dune"), feature=film))
    node.fleet.give(node.identity)
    node.fleet.sign(issued_s=stage.issued_s + 60)
    await node.keeper.accept_head(node.fleet.head_bytes, node.fleet.grants_bytes)
    with pytest.raises(NotCertain, match="has not come yet"):
        await stage.collector.survey()


async def test_staging_and_documents_of_nobody_go(stage: Stage, film: Version) -> None:
    node = stage.node
    stray = node.fleet.publish("stray", reel(7))
    node.hold_documents(stray)
    node.library.end_staging(node.library.stage(stray.layout))
    await stage.tell(*entries(lasting("Dune"), feature=film))
    await stage.collector.survey()
    await stage.tell(*entries(lasting("Dune"), feature=film), later_s=30 * DAY_S)
    stage.collector.pins.pin(node.library.held(), name="all", by="root")
    open_again = node.library.stage(stray.layout)
    assert (await stage.collector.collect()).gone == (), "it is being fetched"
    node.library.end_staging(open_again)
    done = await stage.collector.collect()
    assert [one.kind for one in done.gone] == ["staging", "manifest", "pieces"]
    assert node.library.staged() == []


async def test_a_repo_keeps_what_the_catalogue_lists_and_the_lists_of_the_head(
    fleet: SyncFleet, film: Version, newer: Version
) -> None:
    repo = fleet.enrol("repo-1", role="repo")
    listed, unlisted = list(fleet.catalogue), fleet.publish("stray", reel(7))
    fleet.catalogue = listed
    fleet.sign(issued_s=NOW_S)
    with fleet.node(repo) as node:
        for version in (film, newer, unlisted):
            node.hold(version)
        node.hold_lists()
        await node.take_head()
        await caught_up(node)
        collector = Collector(
            library=node.library,
            absences=node.absences,
            pins=Pins(node.journal),
            needs=lambda: holder_needs(node.listings, node.keeper, node.clock()),
            changed=(node.listings.changed,),
            keep_s=lambda: KEPT_S,
            journal=node.journal,
            events=node.events,
            clock=node.clock,
        )
        assert (await collector.survey()).going == ()
        old = node.documents.put_page(b"a page of a list that nobody names")
        node.clock.now += 30 * DAY_S
        fleet.sign(issued_s=NOW_S + 30 * DAY_S)
        node.hold_lists()
        await node.take_head()
        await caught_up(node)
        done = await collector.collect()
        assert trees(done) == {unlisted.manifest.hex()}
        assert GRACE_S < 30 * DAY_S
        assert not node.documents.has_page(old)
        assert node.library.held() == sorted([film.manifest, newer.manifest])
        for list_id in holder_needs(node.listings, node.keeper, node.clock()).lists:
            assert node.documents.has_list(list_id)
