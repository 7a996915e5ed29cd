"""Figures that people read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archid.cli import figures


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (301_000_000, "301 MB"),
        (13_400_000_000, "13.4 GB"),
        (2**60, "1153 PB"),
    ],
)
def test_sizes_have_three_digits_and_a_decimal_unit(size_bytes: int, text: str) -> None:
    assert figures.size(size_bytes) == text


@given(st.integers(0, 10**15))
def test_a_size_is_right_within_half_a_percent(size_bytes: int) -> None:
    number, unit = figures.size(size_bytes).split()
    factor = 1000 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(unit)
    assert abs(float(number) * factor - size_bytes) <= size_bytes * 0.005 + 0.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3_600, "1 h"),
        (3_601, "1 h"),
        (100_800, "1 d 4 h"),
        (86_400 + 59, "1 d"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


def test_a_share_says_100_only_when_all_is_there() -> None:
    assert figures.share(999_999, 1_000_000) == "99 %"
    assert figures.share(1, 1) == "100 %"
    assert figures.share(0, 0) == "100 %"


def test_a_part_says_its_unit_once() -> None:
    assert figures.part(120_000_000, 301_000_000) == "120 of 301 MB"
    assert figures.part(12_000, 301_000_000) == "12.0 kB of 301 MB"


def test_a_moment_has_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Paris")
    time.tzset()
    assert figures.moment(1_790_000_000) == "2026-09-21 16:13 CEST"
    assert figures.moment(1_796_000_000) == "2026-11-30 01:53 CET"
    monkeypatch.undo()
    time.tzset()
    assert figures.moment(10**18) == "a time that no clock shows"
    assert figures.moment(None) == ""
