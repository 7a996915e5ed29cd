"""Tells the service manager how the daemon does (the sd_notify protocol).

Whoever starts the daemon names a datagram socket in ``NOTIFY_SOCKET``; systemd does, and so does
the local fleet of the tests, which therefore never has to poll or to sleep. Without that
variable nothing is sent. The protocol is systemd's: sd_notify(3).
"""

from __future__ import annotations

import os
import socket

from archid.log import get_logger

log = get_logger(__name__)


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` or ``STATUS=...``; a missing listener is no error.

    Waits while the listener takes nothing, as a start that it misses would be a failed one.
    """
    _send(assignments, 0)


def notify_if_heard(*assignments: str) -> None:
    """The same for what says nothing new: left out while the listener takes nothing."""
    _send(assignments, socket.MSG_DONTWAIT)


def _send(assignments: tuple[str, ...], flags: int) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(assignments).encode(), flags, address)
    except BlockingIOError:
        return
    except OSError as error:
        log.warning("notify_failed", reason=str(error))
