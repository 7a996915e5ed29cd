"""Spans are sent in turn, few at a time: on simulated lines, in simulated time."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from random import Random

import pytest
import trio.testing
from trio.testing import MockClock

from archid.sync.upload_turns import UploadTurns
from protocol.serve_breadth import FIRST, LEVELS
from protocol.serve_turns import A_SITE, ServeTurns

SPAN = 1 << 20
STEP_S = 0.02


class Lines:
    """A sender's line, shared by all who are sent to, and a line for each of them."""

    def __init__(self, up: float, down: float) -> None:
        self.up, self.down = up, down
        self.sending = 0
        self.most = 0
        self.sent: Counter[int] = Counter()
        self.order: list[int] = []
        self._random = Random(1)  # spans of one size would all end together

    async def send(self, peer: int) -> None:
        self.order.append(peer)
        self.sending += 1
        self.most = max(self.most, self.sending)
        left = SPAN * self._random.uniform(0.8, 1.2)
        while left > 0:
            await trio.sleep(STEP_S)  # of simulated time
            left -= STEP_S * min(self.up / self.sending, self.down)
        self.sending -= 1
        self.sent[peer] += 1


async def take(
    turns: UploadTurns, lines: Lines, peer: int, *, site: int = 0, until_s: float = math.inf
) -> None:
    """A peer that has asked again as soon as it has something, whatever it lacks."""
    while trio.current_time() < until_s:
        async with turns.one(peer, lambda: 1, site=site) as turn:
            await turns.begin(turn)
            await lines.send(peer)
            turns.sent(turn, SPAN)


async def crowd(
    lines: Lines, clock: MockClock, *, peers: int, sites: int, seconds: float
) -> UploadTurns:
    turns = UploadTurns()
    ends = clock.current_time() + seconds
    async with trio.open_nursery() as nursery:
        for peer in range(peers):
            nursery.start_soon(partial(take, turns, lines, peer, site=peer % sites, until_s=ends))
    return turns


async def test_the_peers_of_a_site_are_sent_to_few_at_a_time(autojump_clock: MockClock) -> None:
    lines = Lines(up=12.5e6, down=125e6)
    await crowd(lines, autojump_clock, peers=8, sites=1, seconds=20)
    assert lines.most <= A_SITE
    assert lines.sent.total() * SPAN >= 0.8 * 20 * 12.5e6
    # Who of two that are ready goes first is trio's choice, by chance.
    assert min(lines.sent.values()) >= 0.6 * max(lines.sent.values())


async def test_sites_with_slow_lines_are_sent_to_all_together_by_a_fast_one(
    autojump_clock: MockClock,
) -> None:
    lines = Lines(up=1.25e9, down=1.25e6)
    turns = await crowd(lines, autojump_clock, peers=40, sites=20, seconds=60)
    assert turns.at_once >= 12
    assert lines.most >= 20  # every site has something
    assert lines.sent.total() * SPAN >= 0.6 * 60 * 40 * 1.25e6


@pytest.mark.parametrize("peers", [20, 40])
async def test_no_more_are_sent_to_than_fill_a_slow_line_and_every_site_gets_as_much(
    peers: int, autojump_clock: MockClock
) -> None:
    lines = Lines(up=12.5e6, down=6.25e6)
    turns = await crowd(lines, autojump_clock, peers=peers, sites=20, seconds=120)
    assert turns.at_once <= 6
    assert lines.sent.total() * SPAN >= 0.8 * 120 * 12.5e6
    assert len(lines.sent) == peers
    assert min(lines.sent.values()) >= 0.6 * max(lines.sent.values())


async def test_on_a_line_that_needs_seconds_for_a_span_nobody_is_thought_to_be_stuck(
    autojump_clock: MockClock,
) -> None:
    lines = Lines(up=0.3e6, down=125e6)
    turns = await crowd(lines, autojump_clock, peers=30, sites=30, seconds=340)
    # Twice as many are tried once, and half of that beyond it: not all thirty.
    assert lines.most <= 3 * LEVELS[FIRST]
    assert turns.at_once <= LEVELS[FIRST]


async def test_sites_that_take_slowly_do_not_hold_up_those_that_do_not(
    autojump_clock: MockClock,
) -> None:
    slow, fast = Lines(up=125e6, down=0.1e6), Lines(up=125e6, down=12.5e6)
    turns = UploadTurns()
    async with trio.open_nursery() as nursery:
        for peer in range(8):
            nursery.start_soon(partial(take, turns, slow, peer, site=peer, until_s=120))
        await trio.testing.wait_all_tasks_blocked()
        for peer in range(8, 16):
            nursery.start_soon(partial(take, turns, fast, peer, site=peer, until_s=120))
    assert fast.sent.total() >= 20 * slow.sent.total()
    assert autojump_clock.current_time() > 120


def test_a_line_with_one_span_has_a_second_beyond_what_is_sent_at_a_time() -> None:
    turns = ServeTurns()
    waiting = [
        turns.wait((site, peer), lambda: 1, site=site, now=0.0)
        for site in range(6)
        for peer in range(3)
    ]
    turns.go_on(now=0.0)
    begun = Counter(turn.site for turn in waiting if turn.since is not None)
    assert turns.at_once == LEVELS[FIRST] == 6
    assert sorted(begun.values()) == [1] * 3 + [2] * 3


async def test_a_site_whose_line_is_taken_does_not_hold_up_another() -> None:
    turns = UploadTurns()
    begun: list[str] = []
    looked_at = trio.Event()

    async def once(name: str, site: int) -> None:
        async with turns.one(name, lambda: 1, site=site) as turn:
            await turns.begin(turn)
            begun.append(name)
            await looked_at.wait()

    async with trio.open_nursery() as nursery:
        for number in range(2 * A_SITE):
            nursery.start_soon(once, f"first {number}", 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(once, "second", 2)
        await trio.testing.wait_all_tasks_blocked()
        assert begun[A_SITE:] == ["second"]
        looked_at.set()


async def test_who_is_stuck_does_not_hold_the_others_up(autojump_clock: MockClock) -> None:
    lines = Lines(up=12.5e6, down=125e6)
    turns = UploadTurns()
    async with trio.open_nursery() as nursery:

        async def stuck(peer: int) -> None:
            async with turns.one(peer, lambda: 1, site=0) as turn:
                await turns.begin(turn)
                await trio.sleep_forever()

        for peer in (100, 101, 102):
            nursery.start_soon(stuck, peer)
        await trio.testing.wait_all_tasks_blocked()
        ends = autojump_clock.current_time() + 40
        async with trio.open_nursery() as others:
            for peer in range(4):
                others.start_soon(partial(take, turns, lines, peer, until_s=ends))
        nursery.cancel_scope.cancel()
    assert lines.sent.total() * SPAN >= 0.5 * 40 * 12.5e6
    assert turns.sending == 0


async def test_of_those_who_wait_the_one_that_lacks_most_is_next(autojump_clock: MockClock) -> None:
    lines = Lines(up=12.5e6, down=125e6)
    turns = UploadTurns()
    lacks = {1: 5, 2: 9, 3: 7, 4: 9}

    async def once(peer: int) -> None:
        async with turns.one(peer, lambda: lacks[peer], site=0) as turn:
            await turns.begin(turn)
            await lines.send(peer)
            turns.sent(turn, SPAN)

    async with trio.open_nursery() as nursery:
        for busy in range(11, 12 + A_SITE):  # one of them is told what comes next
            lacks[busy] = 1
            nursery.start_soon(once, busy)
        await trio.testing.wait_all_tasks_blocked()
        for peer in (1, 2, 3, 4):
            nursery.start_soon(once, peer)
            await trio.testing.wait_all_tasks_blocked()
    begun = [peer for peer in lines.order if peer < 10]
    assert [set(begun[:2]), *begun[2:]] == [{2, 4}, 3, 1]
    assert autojump_clock.current_time() > 0


async def test_who_lacks_little_gets_something_beside_many_who_lack_much(
    autojump_clock: MockClock,
) -> None:
    lines = Lines(up=12.5e6, down=125e6)
    turns = UploadTurns()
    lacks = {1: 5} | dict.fromkeys(range(2, 12), 300)

    async def ask(peer: int) -> None:
        while trio.current_time() < 60:
            async with turns.one(peer, lambda: lacks[peer], site=0) as turn:
                await turns.begin(turn)
                await lines.send(peer)
                turns.sent(turn, SPAN)

    async with trio.open_nursery() as nursery:
        for peer in lacks:
            nursery.start_soon(ask, peer)
    assert lines.sent[1] >= 15
    assert min(lines.sent.values()) == lines.sent[1]
    assert autojump_clock.current_time() >= 60


@pytest.mark.parametrize("count", [1, 20])
async def test_one_peer_alone_waits_for_nothing(count: int, autojump_clock: MockClock) -> None:
    turns = UploadTurns()
    for _ in range(count):
        async with turns.one("only", lambda: 1, site=0) as turn:
            await turns.begin(turn)
    assert not turns.crowded("only")
    assert turns.crowded("another")
    assert autojump_clock.current_time() == 0.0
