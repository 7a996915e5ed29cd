"""What the daemon does when it is sent a signal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable

import trio

from archid.log import get_logger

log = get_logger(__name__)


async def watch_signals(stop: Callable[[], None], reload: Callable[[], Awaitable[None]]) -> None:
    """SIGTERM and SIGINT stop, SIGHUP reloads; until cancelled."""
    on_terminal = os.isatty(sys.stderr.fileno())
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                log.info("signal_received", signal=signal.Signals(number).name)
                stop()
            elif on_terminal and not os.isatty(sys.stderr.fileno()):
                stop()  # its terminal was closed: there is nowhere to write to
            else:
                await reload()
