"""Whose turn it is: urgency, dates, failures, places given up, wants replaced while running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from archid.sync import fetcher as fetcher_module
from archid.sync import sources as sources_module
from archid.sync.fetch_progress import FetchState
from archid.sync.fetcher import Want
from protocol.ids import ManifestId
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import Version
from tests.unit.sync.sync_nodes import (
    SyncFleet,
    SyncNode,
    connect,
    entries,
    event,
    reel,
    release,
    running,
    until,
)

NOWHERE = [ManifestId.of(b"nowhere %d" % number) for number in range(2)]


@dataclass
class Stage:
    films: list[Version]
    salle: SyncNode
    repo: SyncNode

    def state(self, film: Version) -> tuple[str, bool]:
        """How its fetch stands, and whether there is a reason to show."""
        progress = self.salle.fetcher.progress[film.manifest]
        return progress.state.value, progress.reason is not None

    async def held(self, film: Version) -> None:
        fetcher, library = self.salle.fetcher, self.salle.library
        await until(lambda: library.holds(film.manifest), fetcher.placed)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(sources_module, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(fetcher_module, "FIRST_RETRY_S", 0.02)
    fleet = SyncFleet(tmp_path)
    films = [fleet.publish(f"film {number}", reel(number)) for number in range(3)]
    salle, repo = fleet.enrol("salle"), fleet.enrol("repo", "repo", "")
    given = zip(("a", "b", "c"), films, strict=True)
    items = [item for name, film in given for item in entries(release(name), feature=film)]
    fleet.give(salle, items)
    fleet.sign()
    with ExitStack() as stack:
        one = stack.enter_context(fleet.node(salle))
        two = stack.enter_context(fleet.node(repo))
        for film in films:
            two.hold(film)
        yield Stage(films, one, two)


async def test_the_most_urgent_comes_first(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher_module, "CONCURRENT_JOBS", 1)
    urgencies = [2, 3, 1]
    wants = [
        Want(film.manifest, urgency) for film, urgency in zip(stage.films, urgencies, strict=True)
    ]
    stage.salle.fetcher.want(wants)
    order = []
    async with (
        stage.salle.events.subscribe(prefixes=["tree.placed"]) as events,
        running(stage.salle.fetcher.run) as nursery,
    ):
        await connect(nursery, stage.salle, stage.repo)
        order = [(await event(events, "tree.placed"))["manifest"] for _ in wants]
    assert order == [stage.films[n].manifest.hex() for n in (2, 0, 1)]


async def test_nothing_is_fetched_before_its_date(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "LONGEST_NAP_S", 0.02)
    early, late = stage.films[:2]
    due_s = int(stage.salle.clock.now) + 1000
    stage.salle.fetcher.want([Want(late.manifest, 0, due_s), Want(early.manifest, 1)])
    async with running(stage.salle.fetcher.run) as nursery:
        await connect(nursery, stage.salle, stage.repo)
        await stage.held(early)
        assert stage.salle.fetcher.progress[late.manifest].received_bytes == 0
        assert not stage.salle.library.holds(late.manifest)
        # The wall clock is set; nothing else wakes the fetcher.
        stage.salle.clock.now += 1000
        await stage.held(late)


async def test_what_is_no_longer_wanted_is_stopped_and_forgotten(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "CONCURRENT_JOBS", 1)
    fetcher = stage.salle.fetcher
    film, other = stage.films[:2]
    fetcher.want([Want(film.manifest, 0)])
    async with running(fetcher.run) as nursery:
        while stage.state(film) != ("waiting", True):
            await trio.testing.wait_all_tasks_blocked()
        fetcher.want([Want(other.manifest, 0)])
        assert list(fetcher.progress) == [other.manifest]
        await connect(nursery, stage.salle, stage.repo)
        await stage.held(other)
        assert not stage.salle.library.holds(film.manifest)
        # Wanted again, while and after the first job winds up.
        fetcher.want([])
        fetcher.want([Want(film.manifest, 0)])
        await stage.held(film)
        assert fetcher.progress[film.manifest].state is FetchState.HELD


async def test_a_failure_is_said_and_tried_again(stage: Stage, expected_errors: ErrorWatch) -> None:
    expected_errors.expect("fetch_failed")
    film, library = stage.films[0], stage.salle.library
    library.keep_free_bytes = 1 << 60
    stage.salle.fetcher.want([Want(film.manifest, 0)])
    async with (
        stage.salle.events.subscribe(prefixes=["fetch.failed"]) as events,
        running(stage.salle.fetcher.run) as nursery,
    ):
        await connect(nursery, stage.salle, stage.repo)
        for _ in range(2):
            await event(events, "fetch.failed", manifest=film.manifest.hex())
        assert stage.state(film) == ("failed", True)
        library.keep_free_bytes = 0
        await stage.held(film)
        assert stage.state(film) == ("held", False)


async def test_versions_that_nobody_has_do_not_keep_the_others_waiting(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "PATIENCE_S", 0.05)
    film = stage.films[0]
    wants = [Want(one, 0) for one in NOWHERE]
    assert len(wants) == fetcher_module.CONCURRENT_JOBS, "they take every place"
    stage.salle.fetcher.want([*wants, Want(film.manifest, 9)])
    async with running(stage.salle.fetcher.run) as nursery:
        await connect(nursery, stage.salle, stage.repo)
        await stage.held(film)
    assert not any(stage.salle.library.holds(one) for one in NOWHERE)


async def test_a_journal_that_takes_no_entry_ends_nothing(
    stage: Stage, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("journal_not_written")
    film, other = stage.films[:2]
    stage.salle.journal._database.transact(
        lambda connection: connection.execute("DROP TABLE entry")
    )
    stage.salle.fetcher.want([Want(film.manifest, 0), Want(other.manifest, 0)])
    async with running(stage.salle.fetcher.run) as nursery:
        await connect(nursery, stage.salle, stage.repo)
        await stage.held(film)
        await stage.held(other)
        await trio.testing.wait_all_tasks_blocked(0.1)


async def test_what_was_placed_is_in_the_journal(stage: Stage) -> None:
    film = stage.films[0]
    stage.salle.fetcher.want([Want(film.manifest, 0)])
    async with (
        stage.salle.events.subscribe() as events,
        running(stage.salle.fetcher.run) as nursery,
    ):
        await connect(nursery, stage.salle, stage.repo)
        finished = await event(events, "fetch.finished")
        assert finished["received_bytes"] == film.root.size_bytes
        while not stage.salle.journal.tail(1):
            await trio.testing.wait_all_tasks_blocked()
    [entry] = stage.salle.journal.tail(10)
    assert entry.kind == "tree_placed"
    assert entry.fields["manifest"] == film.manifest.hex()


async def test_what_starts_sooner_needs_not_wait_for_a_place(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "PATIENCE_S", float("inf"))
    fetcher = stage.salle.fetcher
    endless = [Want(manifest, urgency=10) for manifest in NOWHERE]
    later, sooner, _ = stage.films
    fetcher.want(endless)
    async with running(fetcher.run) as nursery:
        await connect(nursery, stage.salle, stage.repo)
        fetcher.want([*endless, Want(later.manifest, urgency=10), Want(sooner.manifest, urgency=1)])
        await stage.held(sooner)
        assert not stage.salle.library.holds(later.manifest)
        assert fetcher._running.keys() == set(NOWHERE)


async def nobody_to_ask(stage: Stage) -> None:
    """Both jobs run and have found out that there is nobody."""
    progress = stage.salle.fetcher.progress
    while not all(progress[manifest].reason for manifest in NOWHERE):
        await trio.testing.wait_all_tasks_blocked()


async def test_what_starts_sooner_has_the_line_while_it_gets_something(stage: Stage) -> None:
    fetcher = stage.salle.fetcher
    sooner, later = NOWHERE
    fetcher.want([Want(sooner, urgency=1), Want(later, urgency=5)])
    async with running(fetcher.run):
        await nobody_to_ask(stage)
        pausing = fetcher._running[later].sources
        progress = fetcher.progress[sooner]
        progress.fetching(("repo",))
        progress.received(1000, now=trio.current_time())
        fetcher.look_again()
        await until(lambda: pausing.paused, pausing.changed)
        assert not fetcher._running[sooner].sources.paused
        progress.waiting("nobody is there any more")
        fetcher.look_again()
        await until(lambda: not pausing.paused, pausing.changed)


async def test_versions_of_one_start_share_the_line(stage: Stage) -> None:
    fetcher = stage.salle.fetcher
    fetcher.want([Want(manifest, urgency=1) for manifest in NOWHERE])
    async with running(fetcher.run):
        await nobody_to_ask(stage)
        for manifest in NOWHERE:
            fetcher.progress[manifest].fetching(("repo",))
            fetcher.progress[manifest].received(1000, now=trio.current_time())
        fetcher._share_line()
        assert not any(job.sources.paused for job in fetcher._running.values())
