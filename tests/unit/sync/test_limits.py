"""The file, its hours and what a person set: which counts when, and that it outlives a restart."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from archid.config import LimitsSettings
from archid.events import EventHub
from archid.identity import Identity
from archid.journal import MIGRATIONS, Journal
from archid.net.pacing import Pacing
from archid.rates import Rates
from archid.store.database import Database
from archid.sync.limits import LOOK_AGAIN_S, Limits
from archid.sync.upload_slots import UploadSlots

PARIS = ZoneInfo("Europe/Paris")
BEFORE = "2026-11-30T13:59:30"  # a Monday
SHOW_TIME = "2026-11-30T20:00:00"
FILE = LimitsSettings.model_validate(
    {
        "outside_down": "8Mbit/s",
        "up": "80Mbit/s",
        "weekly": ["mon-fri 14:00-23:30 outside_down=2Mbit/s"],
        "time_zone": "Europe/Paris",
    }
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=PARIS).timestamp()


class Wall:
    """A clock on the wall that goes with trio's."""

    def __init__(self, text: str) -> None:
        self.start = at(text)
        self.began: float | None = None

    def __call__(self) -> float:
        if self.began is None:
            return self.start
        return self.start + trio.current_time() - self.began


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    database = Database(tmp_path / "journal.db", MIGRATIONS)
    yield Journal(database, Identity.create(tmp_path / "identity"))
    database.close()


def limits_of(
    journal: Journal, wall: Wall, settings: LimitsSettings = FILE
) -> tuple[Limits, Pacing]:
    pacing = Pacing()
    limits = Limits(
        settings,
        pacing=pacing,
        slots=UploadSlots(),
        journal=journal,
        events=EventHub(),
        clock=wall,
    )
    limits.load()
    limits.apply()
    return limits, pacing


async def test_the_file_counts_outside_its_hours_and_the_line_within(journal: Journal) -> None:
    limits, pacing = limits_of(journal, Wall(BEFORE))
    assert pacing.rates == Rates(outside_down=1_000_000, up=10_000_000)
    assert limits.held()["outside_down"].origin == "file"
    assert limits.held()["down"].origin == "default"
    assert limits.next_change_s() == at("2026-11-30T14:00")
    limits, pacing = limits_of(journal, Wall(SHOW_TIME))
    assert pacing.rates == Rates(outside_down=250_000, up=10_000_000)
    held = limits.held()["outside_down"]
    assert (held.origin, held.line) == ("weekly", "mon-fri 14:00-23:30 outside_down=2Mbit/s")
    assert limits.next_change_s() == at("2026-11-30T23:30")


async def test_the_hours_are_followed_while_the_node_runs(
    journal: Journal, autojump_clock: MockClock
) -> None:
    wall = Wall(BEFORE)
    wall.began = autojump_clock.current_time()
    limits, pacing = limits_of(journal, wall)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run)
        for moment, rate in (
            ("2026-11-30T13:59:59", 1_000_000),
            ("2026-11-30T14:00:01", 250_000),
            ("2026-11-30T23:29:59", 250_000),
            ("2026-11-30T23:30:01", 1_000_000),
            ("2026-12-01T14:00:01", 250_000),
        ):
            await trio.sleep(at(moment) - wall())
            assert pacing.rates.outside_down == rate, moment
        nursery.cancel_scope.cancel()


async def test_a_clock_that_is_set_is_noticed_within_a_minute(
    journal: Journal, autojump_clock: MockClock
) -> None:
    wall = Wall("2026-11-30T08:00")
    wall.began = autojump_clock.current_time()
    limits, pacing = limits_of(journal, wall)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run)
        await wait_all_tasks_blocked()
        wall.start += 8 * 3600
        await trio.sleep(LOOK_AGAIN_S + 1)
        assert pacing.rates.outside_down == 250_000
        nursery.cancel_scope.cancel()


async def test_without_hours_nothing_is_waited_for(
    journal: Journal, autojump_clock: MockClock
) -> None:
    limits, _ = limits_of(journal, Wall(BEFORE), LimitsSettings())
    assert limits.next_change_s() is None
    looked: list[float] = []

    def clock() -> float:
        looked.append(autojump_clock.current_time())
        return 0.0

    limits._clock = clock
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run)
        await wait_all_tasks_blocked()
        looked.clear()
        await trio.sleep(80_000)
        assert looked == []
        nursery.cancel_scope.cancel()


async def test_what_is_set_counts_before_the_line_of_the_week_until_its_time_is_over(
    journal: Journal, autojump_clock: MockClock
) -> None:
    wall = Wall(SHOW_TIME)
    wall.began = autojump_clock.current_time()
    limits, pacing = limits_of(journal, wall)
    until_s = int(at("2026-11-30T21:00"))
    await limits.set({"outside_down": None, "down": 50_000}, by="anna", until_s=until_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run)
        await wait_all_tasks_blocked()
        assert pacing.rates == Rates(outside_down=None, down=50_000, up=10_000_000)
        held = limits.held()["outside_down"]
        assert (held.origin, held.by, held.until_s) == ("set", "anna", until_s)
        assert limits.next_change_s() == until_s
        await trio.sleep(3601)
        assert pacing.rates == Rates(outside_down=250_000, up=10_000_000)
        nursery.cancel_scope.cancel()


async def test_what_is_set_survives_a_restart_and_a_clearing_does_too(journal: Journal) -> None:
    wall = Wall(BEFORE)
    limits, _ = limits_of(journal, wall)
    await limits.set({"up": None, "per_peer_up": 20_000}, by="anna")
    await limits.set({"per_peer_up": 40_000}, by="ben")
    again, pacing = limits_of(journal, wall)
    assert pacing.rates == Rates(up=None, per_peer_up=40_000, outside_down=1_000_000)
    assert again.held()["per_peer_up"].by == "ben"
    assert await again.clear(["per_peer_up", "down"], by="anna") == ["per_peer_up"]
    assert pacing.rates == Rates(up=None, outside_down=1_000_000)
    _, pacing = limits_of(journal, wall)
    assert pacing.rates == Rates(up=None, outside_down=1_000_000)


async def test_what_is_over_does_not_come_back_with_a_restart(journal: Journal) -> None:
    wall = Wall(BEFORE)
    limits, _ = limits_of(journal, wall)
    await limits.set({"up": 50_000}, by="anna", until_s=int(wall()) + 10)
    wall.start += 11
    _, pacing = limits_of(journal, wall)
    assert pacing.rates.up == 10_000_000


async def test_another_file_counts_at_once_but_not_before_what_is_set(journal: Journal) -> None:
    limits, pacing = limits_of(journal, Wall(BEFORE))
    await limits.set({"up": 50_000}, by="anna")
    limits.take_up(
        LimitsSettings.model_validate({"up": "1Gbit/s", "down": "1MB/s", "upload_slots": 7})
    )
    assert pacing.rates == Rates(up=50_000, down=1_000_000)
    await limits.clear(["up"], by="anna")
    assert pacing.rates == Rates(up=125_000_000, down=1_000_000)
    assert limits.slots.limit == 7
