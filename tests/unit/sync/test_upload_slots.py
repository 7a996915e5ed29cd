"""Slots are as many as configured, go round between peers, and who waits too long is told so."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from archid.net.errors import Refusal
from archid.sync.upload_slots import LONGEST_WAIT_S, SLOT_RATE, UploadSlots
from protocol.messages import ErrorCode


class Holders:
    """Requests that hold a slot until they are let go, by name."""

    def __init__(self, slots: UploadSlots, nursery: trio.Nursery) -> None:
        self._slots = slots
        self._nursery = nursery
        self._ends: dict[str, trio.Event] = {}
        self.order: list[str] = []
        self.refused: list[tuple[str, ErrorCode]] = []

    async def ask(self, peer: str, name: str) -> None:
        self._ends[name] = trio.Event()
        self._nursery.start_soon(self._hold, peer, name)
        await wait_all_tasks_blocked()

    async def _hold(self, peer: str, name: str) -> None:
        try:
            async with self._slots.one(peer):
                self.order.append(name)
                await self._ends[name].wait()
        except Refusal as refusal:
            self.refused.append((name, refusal.reason))

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await wait_all_tasks_blocked()


async def test_no_more_are_held_than_there_are() -> None:
    slots = UploadSlots(2)
    async with trio.open_nursery() as nursery:
        holders = Holders(slots, nursery)
        for name in ("a1", "a2", "a3"):
            await holders.ask("a", name)
        assert holders.order == ["a1", "a2"]
        assert (slots.in_use, slots.waiting) == (2, 1)
        await holders.end("a1")
        assert holders.order == ["a1", "a2", "a3"]
        nursery.cancel_scope.cancel()
    assert (slots.in_use, slots.waiting) == (0, 0)


async def test_a_free_slot_goes_to_the_peer_that_holds_fewest() -> None:
    slots = UploadSlots(3)
    async with trio.open_nursery() as nursery:
        holders = Holders(slots, nursery)
        for name in ("a1", "a2", "a3", "a4", "a5"):
            await holders.ask("a", name)
        await holders.ask("b", "b1")
        await holders.ask("b", "b2")
        await holders.ask("c", "c1")
        for name in ("a1", "a2", "a3"):
            await holders.end(name)
        # One each, and only then a second one of the peer that asked most.
        assert holders.order == ["a1", "a2", "a3", "b1", "c1", "a4"]
        nursery.cancel_scope.cancel()


async def test_who_waits_too_long_is_told_that_this_node_is_busy(
    autojump_clock: MockClock,
) -> None:
    slots = UploadSlots(1)
    async with trio.open_nursery() as nursery:
        holders = Holders(slots, nursery)
        await holders.ask("a", "a1")
        asked_at = autojump_clock.current_time()
        await holders.ask("b", "b1")
        with trio.move_on_at(asked_at + LONGEST_WAIT_S + 0.1):
            await trio.sleep_forever()
        assert holders.refused == [("b1", ErrorCode.BUSY)]
        assert slots.refused == 1
        assert slots.waiting == 0
        nursery.cancel_scope.cancel()


async def test_who_goes_while_it_waits_leaves_its_place() -> None:
    slots = UploadSlots(1)
    async with trio.open_nursery() as outer:
        holders = Holders(slots, outer)
        await holders.ask("a", "a1")
        async with trio.open_nursery() as nursery:
            await Holders(slots, nursery).ask("b", "b1")
            nursery.cancel_scope.cancel()
        assert slots.waiting == 0
        await holders.ask("c", "c1")
        await holders.end("a1")
        assert holders.order == ["a1", "c1"]
        outer.cancel_scope.cancel()


async def test_more_slots_are_there_at_once_and_fewer_as_they_come_free() -> None:
    slots = UploadSlots(1)
    async with trio.open_nursery() as nursery:
        holders = Holders(slots, nursery)
        for name in ("a1", "a2", "a3"):
            await holders.ask("a", name)
        slots.set_limit(2)
        await wait_all_tasks_blocked()
        assert holders.order == ["a1", "a2"]
        slots.set_limit(1)
        await holders.end("a1")
        assert holders.order == ["a1", "a2"]
        await holders.end("a2")
        assert holders.order == ["a1", "a2", "a3"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("slots", "rate", "limit"),
    [
        (200, None, 200),
        (200, 10 * SLOT_RATE, 10),
        (200, 1, 2),
        (1, 1, 1),
        (4, 10**9, 4),
    ],
)
def test_under_a_limit_there_are_as_many_as_get_on(
    slots: int, rate: int | None, limit: int
) -> None:
    upload_slots = UploadSlots()
    upload_slots.set_limit(slots, rate)
    assert upload_slots.limit == limit
