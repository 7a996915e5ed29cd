"""The hours of the week are those on the wall, in every zone and in the nights clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archid.local_time import find_zone, machine_zone, zone_name
from archid.rates import NO_LIMITS, RATE_KEYS, Rates
from archid.weekly_grid import (
    DAYS,
    GridLine,
    boundaries,
    parse_grid_line,
    parse_until,
    rates_at,
)

PARIS = ZoneInfo("Europe/Paris")
ZONES = [
    ZoneInfo(name)
    for name in (
        "UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe",
        "America/Sao_Paulo", "Africa/Casablanca", "Pacific/Apia",
    )
]  # fmt: skip


def at(text: str, zone: ZoneInfo = PARIS, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def up_at(line: str | list[str], moment: float, base: Rates = NO_LIMITS) -> int | None:
    lines = [parse_grid_line(one) for one in ([line] if isinstance(line, str) else line)]
    return rates_at(base, lines, moment, PARIS)[0].up


# 2026-11-30 is a Monday; Paris goes to summer time on 2026-03-29 and back on 2026-10-25.


@pytest.mark.parametrize(
    ("moment", "limited"),
    [
        ("2026-11-30T13:59", False),
        ("2026-11-30T14:00", True),
        ("2026-12-04T23:29", True),
        ("2026-12-04T23:30", False),
        ("2026-12-05T15:00", False),
    ],
)
def test_a_line_holds_from_its_first_minute_to_the_one_before_its_last(
    moment: str, limited: bool
) -> None:
    assert (up_at("mon-fri 14:00-23:30 up=1MB/s", at(moment)) == 1_000_000) is limited


@pytest.mark.parametrize(
    ("moment", "limited"),
    [
        ("2026-12-04T21:59", False),
        ("2026-12-04T22:00", True),
        ("2026-12-05T05:59", True),
        ("2026-12-05T06:00", False),
        ("2026-12-05T23:00", False),
        ("2026-12-04T03:00", False),
    ],
)
def test_a_line_that_goes_past_midnight_belongs_to_the_day_on_which_it_begins(
    moment: str, limited: bool
) -> None:
    assert (up_at("fri 22:00-06:00 up=1MB/s", at(moment)) == 1_000_000) is limited


def test_days_may_wrap_around_the_week_be_listed_and_be_all() -> None:
    assert parse_grid_line("fri-mon up=1MB/s").days == {4, 5, 6, 0}
    assert parse_grid_line("Sat,sun,wed up=1MB/s").days == {2, 5, 6}
    assert parse_grid_line("daily 00:00-24:00 up=1MB/s").days == set(range(7))
    assert up_at("sun up=1MB/s", at("2026-12-06T00:00")) == 1_000_000
    assert up_at("sun up=1MB/s", at("2026-12-06T23:59")) == 1_000_000
    assert up_at("sun up=1MB/s", at("2026-12-07T00:00")) is None


def test_the_later_of_two_lines_counts_and_each_limit_for_itself() -> None:
    lines = [
        parse_grid_line("daily up=1MB/s down=3MB/s"),
        parse_grid_line("mon 10:00-12:00 up=unlimited"),
    ]
    rates, sources = rates_at(Rates(up=7, per_peer_up=9), lines, at("2026-11-30T11:00"), PARIS)
    assert rates == Rates(up=None, down=3_000_000, per_peer_up=9)
    assert sources == {"up": lines[1], "down": lines[0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a line of the week"),
        ("mon-fri 14:00-23:00", "is not a line of the week"),
        ("mon-frý 14:00-23:00 up=1MB/s", "are no days"),
        ("mon-fri 14-23 up=1MB/s", "are no hours"),
        ("mon-fri 14:00-25:00 up=1MB/s", "is not between 00:00 and 24:00"),
        ("mon-fri 14:60-23:00 up=1MB/s", "is not between 00:00 and 24:00"),
        ("mon-fri 24:00-23:00 up=1MB/s", "is not between 00:00 and 24:00"),
        ("mon 14:00-14:00 up=1MB/s", "for a whole day leave the hours out"),
        ("mon 14:00-15:00 5Mbit/s", "is not a limit"),
        ("mon 14:00-15:00 outside_dwn=5Mbit/s", "did you mean 'outside_down'?"),
        ("mon 14:00-15:00 up=5Mb/s", "may mean bits or bytes"),
        ("mon 14:00-15:00 up=5MB/s up=6MB/s", "'up' is set twice"),
    ],
)
def test_a_line_with_a_mistake_is_refused_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_grid_line(text)
    assert words in str(caught.value)


def test_an_hour_that_is_left_out_never_comes() -> None:
    line = "sun 02:00-03:00 up=1MB/s"
    assert up_at(line, at("2026-03-29T01:59:59")) is None
    assert up_at(line, at("2026-03-29T03:00")) is None
    assert at("2026-03-29T03:00") - at("2026-03-29T01:59:59") == 1


def test_a_line_that_begins_in_the_hour_left_out_begins_after_it() -> None:
    line = "sun 02:30-05:00 up=1MB/s"
    assert up_at(line, at("2026-03-29T01:59:59")) is None
    assert up_at(line, at("2026-03-29T03:00")) == 1_000_000


def test_an_hour_that_comes_twice_counts_twice() -> None:
    line = "sun 02:00-02:30 up=1MB/s"
    seen = [
        up_at(line, at(f"2026-10-25T02:{minute}", fold=fold))
        for fold in (0, 1)
        for minute in ("15", "45")
    ]
    assert seen == [1_000_000, None, 1_000_000, None]


rate_words = st.sampled_from(["100kbit/s", "1MB/s", "20Mbit/s", "unlimited"])
clock = st.integers(0, 47).map(lambda half: f"{half // 2:02}:{half % 2 * 30:02}")
texts = st.builds(
    lambda days, start, end, key, rate: f"{','.join(sorted(days))} {start}-{end} {key}={rate}",
    st.sets(st.sampled_from(DAYS), min_size=1),
    clock,
    clock,
    st.sampled_from(RATE_KEYS[:3]),
    rate_words,
).filter(lambda text: len(set(text.split()[1].split("-"))) == 2)
lines_of = st.lists(texts.map(parse_grid_line), max_size=4)
moments = st.integers(1_767_225_600, 1_830_297_600)  # 2026 and 2027


@settings(max_examples=60, deadline=None)
@given(lines=lines_of, moment=moments, zone=st.sampled_from(ZONES))
def test_between_two_boundaries_nothing_changes(
    lines: list[GridLine], moment: int, zone: ZoneInfo
) -> None:
    def rates(at_s: float) -> Rates:
        return rates_at(NO_LIMITS, lines, at_s, zone)[0]

    edges = boundaries(lines, moment, zone)
    known = iter([*edges, moment + 10 * 86_400])
    edge, held = next(known), rates(moment)
    for at_s in range(moment, moment + 8 * 86_400, 600):
        while at_s >= edge:
            held, edge = rates(edge), next(known)
        assert rates(at_s) == held, datetime.fromtimestamp(at_s, zone)


@settings(max_examples=60, deadline=None)
@given(line=texts.map(parse_grid_line), moment=moments, zone=st.sampled_from(ZONES))
def test_a_line_is_in_force_just_when_the_wall_says_so(
    line: GridLine, moment: int, zone: ZoneInfo
) -> None:
    shown = datetime.fromtimestamp(moment, zone).replace(tzinfo=None)
    inside = False
    for n in range(-2, 1):
        midnight = datetime(shown.year, shown.month, shown.day) + timedelta(days=n)  # noqa: DTZ001
        begins = midnight + timedelta(minutes=line.start_minute)
        ends = midnight + timedelta(minutes=line.end_minute)
        inside |= midnight.weekday() in line.days and begins <= shown < ends
    assert line.covers(datetime.fromtimestamp(moment, zone)) is inside


def test_without_lines_there_is_nothing_to_wait_for() -> None:
    assert boundaries([], 0.0, PARIS) == []


def test_a_boundary_is_found_in_the_week_after_one_that_the_clocks_swallow() -> None:
    lines = [parse_grid_line("sun 02:00-03:00 up=1MB/s")]
    after = [
        one
        for one in boundaries(lines, at("2026-03-23T00:00"), PARIS)
        if rates_at(NO_LIMITS, lines, one, PARIS)[0].up
    ]
    assert after[0] == at("2026-04-05T02:00")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("23:30", "2026-11-30T23:30"),
        ("8:00", "2026-12-01T08:00"),
        ("12:00", "2026-12-01T12:00"),
        ("2026-12-24T18:00", "2026-12-24T18:00"),
        ("2026-12-24", "2026-12-24T00:00"),
    ],
)
def test_a_moment_is_the_next_that_the_clock_shows_or_the_date_that_is_named(
    text: str, moment: str
) -> None:
    assert parse_until(text, at("2026-11-30T12:00"), PARIS) == at(moment)


def test_a_moment_may_name_its_own_offset() -> None:
    moment = datetime(2026, 12, 1, 8, tzinfo=UTC).timestamp()
    assert parse_until("2026-12-01T08:00+00:00", at("2026-11-30T12:00"), PARIS) == moment


@pytest.mark.parametrize(
    ("text", "words"),
    [("25:00", "is not a moment"), ("soon", "is not a moment"), ("2026-11-29", "is in the past")],
)
def test_what_is_no_moment_to_come_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_until(text, at("2026-11-30T12:00"), PARIS)


def test_zones_are_found_by_name_and_unknown_ones_refused_with_an_example() -> None:
    assert find_zone("Europe/Paris") is not None
    for name in ("Europe/Lyon", "Europe", "../etc/passwd", "/etc/passwd", "a\0b"):
        with pytest.raises(ValueError, match="is not a time zone"):
            find_zone(name)


def test_the_machine_has_a_zone_and_tz_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    assert machine_zone() == ZoneInfo("Asia/Kolkata")
    assert zone_name(machine_zone()) == "Asia/Kolkata"
    monkeypatch.setenv("TZ", "CET-1CEST")
    assert zone_name(machine_zone())
    monkeypatch.delenv("TZ")
    assert find_zone("") is not None
