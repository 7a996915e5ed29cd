"""`archid limits` as the daemon answers it: what is in force, what goes, and changing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from trio.testing import MockClock

from archid.config import LimitsSettings
from archid.control.connection import Exchange
from archid.control.credentials import Caller
from archid.control.journal_words import entry_json
from archid.control.limits_methods import Counted, LimitsMethods, Moved, actual_rates
from archid.control.schema import METHODS
from archid.control.validation import check
from archid.errors import UsageError
from archid.events import EventHub
from archid.identity import Identity
from archid.journal import MIGRATIONS, Journal
from archid.net.pacing import Pacing
from archid.store.database import Database
from archid.sync.limits import Limits
from archid.sync.upload_slots import UploadSlots
from protocol.ids import NodeId

ANNA = Caller(pid=1, uid=1, gid=1, user_name="anna", may_change=True)
NOBODY = cast("Exchange", None)
NOW_S = 1_796_000_000
FILE = {
    "outside_down": "8Mbit/s",
    "weekly": ["daily 00:00-24:00 outside_up=1Mbit/s"],
    "time_zone": "Europe/Paris",
}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    database = Database(tmp_path / "journal.db", MIGRATIONS)
    yield Journal(database, Identity.create(tmp_path / "identity"))
    database.close()


@pytest.fixture
async def methods(journal: Journal) -> LimitsMethods:
    limits = Limits(
        LimitsSettings.model_validate(FILE),
        pacing=Pacing(),
        slots=UploadSlots(),
        journal=journal,
        events=EventHub(),
        clock=lambda: NOW_S,
    )
    limits.apply()
    counted = iter([Counted(0, 0, {}), Counted(7_000, 50_000, {})])
    return LimitsMethods(limits, lambda: next(counted), own_site=lambda: "lyon")


async def call(methods: LimitsMethods, name: str, **params: Any) -> dict[str, Any]:
    check(params, METHODS[name].params)
    result = await methods.handlers()[name](ANNA, params, NOBODY)
    check(result, METHODS[name].result)
    return result


def row(result: dict[str, Any], key: str) -> dict[str, Any]:
    [found] = [one for one in result["limits"] if one["key"] == key]
    return cast("dict[str, Any]", found)


async def test_each_limit_is_shown_with_its_reason(
    methods: LimitsMethods, autojump_clock: MockClock
) -> None:
    began = autojump_clock.current_time()
    result = await call(methods, "limits.show")
    assert autojump_clock.current_time() == began + 1
    assert [one["key"] for one in result["limits"]][:3] == ["up", "down", "outside_up"]
    assert row(result, "up")["rate_bytes_per_s"] is None
    assert row(result, "up")["origin"] == "default"
    assert row(result, "outside_down")["rate_bytes_per_s"] == 1_000_000
    assert row(result, "outside_down")["origin"] == "file"
    assert row(result, "outside_up")["line"] == "daily 00:00-24:00 outside_up=1Mbit/s"
    assert result["time_zone"] == "Europe/Paris"
    assert row(result, "up")["actual_bytes_per_s"] == 7000
    # Under a limit of 1 Mbit/s no more than two get on.
    assert result["upload_slots"] == {"limit": 2, "in_use": 0, "waiting": 0, "refused": 0}


def test_what_really_goes_is_told_for_each_limit_and_whose_it_is() -> None:
    def node(number: int) -> NodeId:
        return NodeId(bytes([number]) * 32)

    places = [("salle", "lyon"), ("a", "paris"), ("b", "paris"), ("c", "nice"), ("new", "nice")]
    nodes = [Moved(name, site, 0, 10**9) for name, site in places]
    before = Counted(0, 10**10, {node(n): one for n, one in enumerate(nodes[:4])})
    after = Counted(
        0,
        10**10 + 20_400,
        {
            node(n): replace(one, received_bytes=one.received_bytes + size_bytes)
            for n, (one, size_bytes) in enumerate(
                zip(nodes[:4], (10_000, 2000, 3000, 4000), strict=True)
            )
        }
        | {node(4): Moved("new", "nice", 0, 1400)},
    )
    actual = actual_rates(before, after, own_site="lyon", passed_s=2.0)
    assert {key: one for key, one in actual.items() if key.endswith("down")} == {
        "down": (10_200, None),
        "outside_down": (5200, None),
        "per_site_down": (2700, "nice"),
        "per_peer_down": (5000, "salle"),
    }
    assert {one for key, one in actual.items() if key.endswith("up")} == {(0, None)}


async def test_a_limit_is_set_until_an_hour_and_the_journal_says_by_whom(
    methods: LimitsMethods, journal: Journal
) -> None:
    words = ["outside_down=2Mbit/s", "up=unlimited"]
    result = await call(methods, "limits.set", limits=words, until="2h")
    held = row(result, "outside_down")
    assert (held["rate_bytes_per_s"], held["origin"], held["by"]) == (250_000, "set", "anna")
    assert held["until_s"] == result["next_change_s"] == NOW_S + 7200
    assert result["next"] == [{"key": "outside_down", "rate_bytes_per_s": 1_000_000}]
    [entry] = journal.entries()
    sentence = entry_json(entry)["sentence"]
    assert sentence.startswith("anna limited up to unlimited, outside_down to 2Mbit/s until 20")


async def test_clearing_lets_the_file_count_again(methods: LimitsMethods, journal: Journal) -> None:
    await call(methods, "limits.set", limits=["outside_down=2Mbit/s", "up=1MB/s"], until=None)
    result = await call(methods, "limits.clear", keys=["outside_down"])
    assert row(result, "outside_down")["origin"] == "file"
    assert row(result, "up")["origin"] == "set"
    result = await call(methods, "limits.clear", keys=[])
    assert row(result, "up")["origin"] == "default"
    sentences = [entry_json(entry)["sentence"] for entry in journal.entries()]
    assert sentences[1:] == [
        "anna let the configuration limit outside_down again",
        "anna let the configuration limit up again",
    ]


@pytest.mark.parametrize(
    ("words", "until", "sentence"),
    [
        (["up=20Mb/s"], None, "may mean bits or bytes"),
        (["upp=20MB/s"], None, "There is no limit 'upp'; did you mean 'up'?"),
        (["20MB/s"], None, "is not a limit; write 'KEY=RATE'"),
        ([], None, "No limit was named"),
        (["up=1MB/s"], "yesterday", "'yesterday' is not a moment"),
        (["up=1MB/s"], "2020-01-01", "'2020-01-01' is in the past"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    methods: LimitsMethods, journal: Journal, words: list[str], until: str | None, sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        await call(methods, "limits.set", limits=words, until=until)
    assert sentence in caught.value.message
    assert caught.value.code == "bad_limit"
    assert list(journal.entries()) == []
    with pytest.raises(UsageError, match="There is no limit 'x'"):
        await call(methods, "limits.clear", keys=["x"])
