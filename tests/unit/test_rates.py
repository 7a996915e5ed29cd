"""Rates are written in bits or bytes a second, and what could mean either is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archid.rates import MAX_RATE, MIN_RATE, NO_LIMITS, Rates, format_rate, parse_rate


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("20Mbit/s", 2_500_000),
        ("2MB/s", 2_000_000),
        ("2.5 MB/s", 2_500_000),
        ("1Gbit/s", 125_000_000),
        ("500kbit/s", 62_500),
        ("1MiB/s", 1_048_576),
        ("100kbit/s", MIN_RATE),
        ("20mbit/s", 2_500_000),
        ("unlimited", None),
        ("", None),
    ],
)
def test_a_rate_is_read(text: str, bytes_per_s: int | None) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("20Mb/s", "write '20Mbit/s' or '20MB/s'"),
        ("20Mbps", "write '20Mbit/s' or '20MB/s'"),
        ("20", "is not a rate"),
        ("20MB", "is not a rate"),
        ("-1MB/s", "is not a rate"),
        ("1e9MB/s", "is not a rate"),
        ("fast", "is not a rate"),
        ("0Mbit/s", "is less than 100kbit/s"),
        ("99kbit/s", "is less than 100kbit/s"),
        ("101Gbit/s", "write 'unlimited' for no limit"),
    ],
)
def test_what_is_no_rate_is_refused_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="'") as caught:
        parse_rate(text)
    assert words in str(caught.value)
    assert repr(text) in str(caught.value)


@settings(deadline=None)
@given(st.integers(MIN_RATE, MAX_RATE))
def test_a_rate_that_is_written_reads_back_as_the_same(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize(
    ("rate", "text"),
    [(2_500_000, "20Mbit/s"), (12_500, "100kbit/s"), (187_500, "1.5Mbit/s"), (None, "unlimited")],
)
def test_rates_are_shown_in_the_unit_that_fits(rate: int | None, text: str) -> None:
    assert format_rate(rate) == text


def test_one_limit_is_enough_not_to_be_unlimited() -> None:
    assert NO_LIMITS.unlimited
    assert not Rates(per_site_down=1).unlimited
