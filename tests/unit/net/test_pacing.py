"""Pacers hold peers to the limits they share, in equal parts, and cost nothing without a limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from archid.net.pacing import MAX_SLICE_BYTES, MIN_QUEUE_BYTES, Pacer, Pacing
from archid.rates import NO_LIMITS, Rates
from protocol.envelope import PublicKey
from protocol.facts import NodeFacts
from protocol.ids import NodeId

RATE = 1_000_000


def facts(number: int, site: str) -> NodeFacts:
    return NodeFacts(
        NodeId(bytes([number]) * 32), PublicKey(bytes([number]) * 32), "ice", f"n{number}", site
    )


@pytest.fixture
def pacing() -> Pacing:
    return Pacing(lambda: "lyon")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Sender:
    """Somebody with always something to send."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.sent_bytes = 0

    async def run(self) -> None:
        while True:
            size_bytes = self.pacer.slice_bytes
            await self.pacer.take(size_bytes)
            self.sent_bytes += size_bytes


async def send_for(clock: MockClock, seconds: float, *pacers: Pacer) -> list[int]:
    """What each gets through in this time, on trio's clock."""
    senders = [Sender(pacer) for pacer in pacers]
    async with trio.open_nursery() as nursery:
        for sender in senders:
            nursery.start_soon(sender.run)
        await trio.sleep_until(clock.current_time() + seconds)
        nursery.cancel_scope.cancel()
    return [sender.sent_bytes for sender in senders]


async def test_without_a_limit_nothing_waits_and_an_attribute_says_so(
    pacing: Pacing, stack: ExitStack, autojump_clock: MockClock
) -> None:
    out, into = stack.enter_context(pacing.peer(facts(1, "paris")))
    assert out.unlimited
    assert into.unlimited
    assert out.queue_bytes is None
    began = autojump_clock.current_time()
    await out.take(10**12)
    assert autojump_clock.current_time() == began


async def test_peers_get_equal_shares_of_what_they_share(
    pacing: Pacing, stack: ExitStack, autojump_clock: MockClock
) -> None:
    pacing.set_rates(Rates(up=RATE))
    pacers = [stack.enter_context(pacing.peer(facts(n, "paris")))[0] for n in range(4)]
    sent = await send_for(autojump_clock, 10.0, *pacers)
    assert sum(sent) == pytest.approx(10 * RATE, rel=0.05)
    assert max(sent) - min(sent) <= 2 * pacers[0].slice_bytes


async def test_a_peer_with_several_connections_gets_no_more_than_one_with_one(
    pacing: Pacing, stack: ExitStack, autojump_clock: MockClock
) -> None:
    pacing.set_rates(Rates(up=RATE))
    one = stack.enter_context(pacing.peer(facts(1, "paris")))[0]
    again = stack.enter_context(pacing.peer(facts(1, "paris")))[0]
    other = stack.enter_context(pacing.peer(facts(2, "paris")))[0]
    sent = await send_for(autojump_clock, 10.0, one, again, again, other)
    assert sum(sent[:3]) == pytest.approx(sent[3], rel=0.02)


async def test_each_limit_holds_those_that_it_is_for(
    pacing: Pacing, stack: ExitStack, autojump_clock: MockClock
) -> None:
    pacing.set_rates(
        Rates(outside_up=4 * RATE, per_site_up=3 * RATE, per_peer_up=2 * RATE, up=100 * RATE)
    )
    sites = ["lyon", "paris", "paris", "nice"]
    pacers = [stack.enter_context(pacing.peer(facts(n, site)))[0] for n, site in enumerate(sites)]
    sibling, paris_1, paris_2, nice = await send_for(autojump_clock, 10.0, *pacers)
    assert sibling == pytest.approx(20 * RATE, rel=0.05)
    assert paris_1 + paris_2 + nice == pytest.approx(40 * RATE, rel=0.05)
    assert paris_1 + paris_2 <= 30 * RATE * 1.05
    assert nice <= 20 * RATE * 1.05
    assert await send_for(autojump_clock, 10.0, *pacers[1:3]) == pytest.approx(
        [15 * RATE] * 2, rel=0.05
    )


async def test_directions_are_limited_apart(
    pacing: Pacing, stack: ExitStack, autojump_clock: MockClock
) -> None:
    pacing.set_rates(Rates(down=RATE))
    out, into = stack.enter_context(pacing.peer(facts(1, "paris")))
    assert out.unlimited
    assert not into.unlimited
    assert await send_for(autojump_clock, 10.0, into) == pytest.approx([10 * RATE], rel=0.05)


async def test_a_limit_that_changes_counts_at_once_for_who_waits(
    pacing: Pacing, stack: ExitStack, autojump_clock: MockClock
) -> None:
    pacing.set_rates(Rates(up=12_500))
    out, _ = stack.enter_context(pacing.peer(facts(1, "paris")))
    sender = Sender(out)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        began = autojump_clock.current_time()
        await trio.sleep_until(began + 10)
        slow = sender.sent_bytes
        pacing.set_rates(Rates(up=RATE))
        await trio.sleep_until(began + 20)
        nursery.cancel_scope.cancel()
    assert slow == pytest.approx(125_000, rel=0.05)
    assert sender.sent_bytes - slow == pytest.approx(10 * RATE, rel=0.05)


async def test_who_waits_goes_at_once_when_the_limit_is_lifted(
    pacing: Pacing, stack: ExitStack, autojump_clock: MockClock
) -> None:
    pacing.set_rates(Rates(up=12_500))
    out, _ = stack.enter_context(pacing.peer(facts(1, "paris")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out.take, 12_500_000)
        await wait_all_tasks_blocked()
        assert out.waiting == 1
        lifted_at = autojump_clock.current_time()
        pacing.set_rates(NO_LIMITS)
    assert autojump_clock.current_time() == lifted_at
    assert out.waiting == 0


async def test_a_peer_that_goes_while_it_waits_leaves_its_turn_to_others(
    pacing: Pacing, stack: ExitStack, autojump_clock: MockClock
) -> None:
    pacing.set_rates(Rates(up=RATE))
    pacers = [stack.enter_context(pacing.peer(facts(n, "paris")))[0] for n in range(101)]
    async with trio.open_nursery() as nursery:
        for pacer in pacers[:100]:
            nursery.start_soon(pacer.take, pacer.slice_bytes)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    began = autojump_clock.current_time()
    await pacers[100].take(pacers[100].slice_bytes)
    assert autojump_clock.current_time() - began <= pacers[100].slice_bytes / RATE


async def test_slices_are_small_where_the_line_is_slow_and_large_where_it_is_fast(
    pacing: Pacing, stack: ExitStack
) -> None:
    out, _ = stack.enter_context(pacing.peer(facts(1, "paris")))
    pacing.set_rates(Rates(up=125_000))
    assert out.slice_bytes == 4096
    assert out.queue_bytes == MIN_QUEUE_BYTES
    pacing.set_rates(Rates(up=50_000_000))
    assert out.slice_bytes == MAX_SLICE_BYTES
    assert out.queue_bytes == 12_500_000


async def test_a_node_without_a_site_is_outside_and_so_is_everybody_to_it(
    stack: ExitStack,
) -> None:
    placeless = Pacing(lambda: "")
    placeless.set_rates(Rates(outside_up=RATE))
    assert not stack.enter_context(placeless.peer(facts(1, "")))[0].unlimited
    placed = Pacing(lambda: "lyon")
    placed.set_rates(Rates(outside_up=RATE))
    assert not stack.enter_context(placed.peer(facts(1, "")))[0].unlimited
    assert stack.enter_context(placed.peer(facts(2, "lyon")))[0].unlimited
