"""Turns at this node's line: the tasks that serve peers wait here until it is theirs.

Whose turn it is decides `protocol.serve_turns`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager

import trio

from protocol.facts import NodeFacts
from protocol.serve_turns import LOOK_S, ServeTurns, Turn


def line_of(facts: NodeFacts) -> Hashable:
    """The line a peer is behind: that of its site, or its own. Equal for those who share one."""
    return facts.site or facts.node


class UploadTurns:
    """The turns of one node; those of one peer come one after the other by themselves."""

    def __init__(self) -> None:
        self._turns = ServeTurns()
        self._moved: dict[Turn, trio.Event] = {}

    @property
    def sending(self) -> int:
        """Peers that are sent to now."""
        return self._turns.sending

    @property
    def at_once(self) -> int:
        """How many may be sent to at a time by now."""
        return self._turns.at_once

    def crowded(self, peer: Hashable) -> bool:
        """Whether somebody besides this peer has asked lately."""
        return self._turns.crowded(peer, now=trio.current_time())

    @asynccontextmanager
    async def one(
        self, peer: Hashable, lacks: Callable[[], int], *, site: Hashable
    ) -> AsyncIterator[Turn]:
        """Wait until it may be said to a peer what it will be sent; see `ServeTurns`."""
        turn = self._turns.wait(peer, lacks, site=site, now=trio.current_time())
        self._moved[turn] = trio.Event()
        try:
            await self._until(turn, lambda: turn.granted)
            yield turn
        finally:
            del self._moved[turn]
            self._turns.leave(turn)
            self._go_on()

    async def begin(self, turn: Turn) -> None:
        """Wait until it may be sent."""
        await self._until(turn, lambda: turn.since is not None)

    def sent(self, turn: Turn, size_bytes: int) -> None:
        """All of it has gone out: learn from how long that took."""
        self._turns.sent(turn, size_bytes, now=trio.current_time())

    async def _until(self, turn: Turn, done: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        self._go_on()
        while not done():
            with trio.move_on_after(LOOK_S):
                await self._moved[turn].wait()
            if not done():
                self._go_on()

    def _go_on(self) -> None:
        for turn in self._turns.go_on(now=trio.current_time()):
            if turn in self._moved:
                self._moved[turn].set()
                self._moved[turn] = trio.Event()
