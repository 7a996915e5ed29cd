"""Shows the service manager that the daemon's event loop still turns.

systemd names an interval in ``WATCHDOG_USEC`` and ends and restarts a service that says nothing
for that long. The signs of life come from a task of the loop, never from a thread: a loop that
is stuck must not look alive. See sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import trio

from archid.log import get_logger
from archid.notify import notify_if_heard

log = get_logger(__name__)

SIGNS_IN_AN_INTERVAL: Final = 3  # systemd asks for two; one may come late on a busy machine


def watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    """How long this process may stay silent, None when nobody watches it."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None  # meant for another process that this one was started by
    text = environ.get("WATCHDOG_USEC", "")
    if not text:
        return None
    if not text.isdecimal() or not int(text):
        log.warning("watchdog_interval_unreadable", value=text)
        return None
    return int(text) / 1e6


async def show_life() -> None:
    """Send signs of life until cancelled; returns at once when nobody asked for them."""
    interval_s = watchdog_interval_s(os.environ, os.getpid())
    if interval_s is None:
        return
    while True:
        notify_if_heard("WATCHDOG=1")
        await trio.sleep(interval_s / SIGNS_IN_AN_INTERVAL)
