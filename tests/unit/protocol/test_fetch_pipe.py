"""What is asked of one peer at a time follows bandwidth times delay, both measured."""

from __future__ import annotations

from protocol.fetch_pipe import FEW_SPANS, MOST_SPANS, REMEMBERED_S, Pipe

SPAN = 1 << 20


def play(pipe: Pipe, *, rate: float, delay_s: float, seconds: float, start: float = 0.0) -> int:
    """A server whose line takes spans one after the other; the window that comes of it."""
    free_at, now, bit = start, start, 0
    arriving: list[tuple[float, int]] = []
    while now < start + seconds:
        while len(arriving) < pipe.window(FEW_SPANS, SPAN):
            pipe.asked(bit, pipe.mark(now, len(arriving) + 1))
            free_at = max(free_at, now + delay_s / 2) + SPAN / rate
            arriving.append((free_at + delay_s / 2, bit))
            bit += 1
        now, came = arriving.pop(0)
        pipe.came(came, SPAN, now)
    for _, left in arriving:
        pipe.ended(left)
    return pipe.window(FEW_SPANS, SPAN)


def test_nothing_is_known_at_first() -> None:
    assert Pipe().window(2, SPAN) == 2


def test_a_long_fast_line_is_kept_full_and_not_much_more() -> None:
    pipe = Pipe()
    under_way = 125e6 * 0.1 / SPAN
    assert under_way <= play(pipe, rate=125e6, delay_s=0.1, seconds=5) <= 1.6 * under_way


def test_a_short_line_needs_no_more_than_the_least() -> None:
    assert play(Pipe(), rate=125e6, delay_s=0.001, seconds=5) == FEW_SPANS


def test_a_slow_long_line_needs_hardly_more_than_the_least() -> None:
    assert play(Pipe(), rate=1.25e6, delay_s=0.1, seconds=60) <= FEW_SPANS + 1


def test_it_shrinks_again_when_the_line_has_become_short() -> None:
    pipe = Pipe()
    assert play(pipe, rate=125e6, delay_s=0.1, seconds=5) > 2 * FEW_SPANS
    later = play(pipe, rate=125e6, delay_s=0.001, seconds=3 * REMEMBERED_S, start=6.0)
    assert later <= FEW_SPANS + 2


def test_it_never_takes_all_requests_of_a_connection() -> None:
    assert play(Pipe(), rate=1e9, delay_s=0.3, seconds=20) == MOST_SPANS


def test_what_never_came_is_not_measured() -> None:
    pipe = Pipe()
    pipe.asked(1, pipe.mark(0.0, 1))
    pipe.ended(1)
    pipe.came(1, SPAN, 5.0)
    assert pipe.window(2, SPAN) == 2
