"""Signs of life: for whoever asked, as often as asked, and from the event loop alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from archid.daemon.watchdog import show_life, watchdog_interval_s

QUEUE_LENGTH = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
"""So many messages wait at a socket that nobody reads, and no more."""


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "17"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "18"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_only_the_process_that_is_watched_shows_life(
    environ: dict[str, str], interval_s: float | None
) -> None:
    assert watchdog_interval_s(environ, 17) == interval_s


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where the service manager listens; it asks for a sign of life every six seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind("")
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + listener.getsockname()[1:].decode())
        monkeypatch.setenv("WATCHDOG_USEC", "6000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield listener


def signs(told: socket.socket) -> int:
    count = 0
    while True:
        try:
            message = told.recv(4096)
        except BlockingIOError:
            return count
        assert message == b"WATCHDOG=1"
        count += 1


async def test_life_is_shown_three_times_an_interval_and_only_while_the_loop_turns(
    told: socket.socket, mock_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show_life)
        await wait_all_tasks_blocked()
        assert signs(told) == 1
        for _ in range(3):
            mock_clock.jump(2)
            assert signs(told) == 0  # the loop has not turned since
            await wait_all_tasks_blocked()
            assert signs(told) == 1
        mock_clock.jump(1.9)
        await wait_all_tasks_blocked()
        assert signs(told) == 0
        nursery.cancel_scope.cancel()


async def test_a_service_manager_that_takes_nothing_does_not_hold_up_the_daemon(
    told: socket.socket, mock_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show_life)
        for _ in range(QUEUE_LENGTH + 10):
            await wait_all_tasks_blocked()
            mock_clock.jump(2)
        await wait_all_tasks_blocked()
        assert 0 < signs(told) < QUEUE_LENGTH + 10
        mock_clock.jump(2)
        await wait_all_tasks_blocked()
        assert signs(told) == 1
        nursery.cancel_scope.cancel()


async def test_without_a_watchdog_nothing_is_sent(
    told: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    await show_life()
    assert signs(told) == 0
