"""How a lane's socket is set: when the kernel wakes whom, and how one finds out that a line is cut;
and when it is closed.

No setting is needed for anything but speed and for knowing the end sooner, so what a kernel does
not know is passed over. The sizes of its buffers are left to the kernel: one that is set by hand
ends its own tuning.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio

from archid.net.errors import PeerLost

UNSENT_BYTES: Final = 1 << 20
"""The kernel asks for more when less than this waits to be sent."""
GONE_BYTES: Final = 128 * 1024
"""What was sent has gone when less than this waits in the kernel: nearly all is on its way, and the
line does not run dry before another lane goes on."""
_INT: Final = struct.Struct("i")
_ABORT: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing throws away what was not sent yet."""


def prepare(connected: socket.socket, *, dead_after_s: float) -> None:
    """Set what holds for as long as the lane does."""
    connected.setblocking(False)
    with suppress(OSError):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(connected, dead_after_s)
    _ask_for_more_below(connected, UNSENT_BYTES)


@contextmanager
def woken_when_gone(connected: socket.socket) -> Iterator[None]:
    """Be woken to send not before nearly all has left.

    What waits in the kernel can not be taken back, and shares the line with what others are sent.
    """
    _ask_for_more_below(connected, GONE_BYTES)
    try:
        yield
    finally:
        _ask_for_more_below(connected, UNSENT_BYTES)


def _ask_for_more_below(connected: socket.socket, unsent_bytes: int) -> None:
    with suppress(OSError):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes)


def wake_at(connected: socket.socket, size_bytes: int) -> None:
    """Be woken when so much has come, not for each packet."""
    with suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)


def waiting_bytes(connected: socket.socket) -> int:
    """What was sent and the other end's kernel has not confirmed; 0 where nobody can tell."""
    try:
        answer = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, _INT.pack(0))
    except (OSError, ValueError):  # ValueError: it is closed
        return 0
    return int(_INT.unpack(answer)[0])


async def writable(connected: socket.socket, dead_after_s: float) -> bool:
    """Wait until the kernel asks for more; False when nothing was taken for `dead_after_s`.

    A slow line takes longer than that over what the kernel has before it asks. Raises PeerLost when
    the socket is given up meanwhile.
    """
    before_bytes = -1
    while (waiting := waiting_bytes(connected)) != before_bytes:
        before_bytes = waiting
        with trio.move_on_after(dead_after_s):
            try:
                await trio.lowlevel.wait_writable(connected)
            except trio.ClosedResourceError:
                raise PeerLost("the lane has ended") from None
            return True
    return False


def abort(connected: socket.socket) -> None:
    """End both ways at once; what the kernel has still to send is thrown away by closing."""
    with suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        connected.shutdown(socket.SHUT_RDWR)


class Closing:
    """Closes a socket as soon as no thread works with it.

    The number of a socket that is closed goes to whatever is opened next. A thread that is in the
    middle of sending would send to that, a peer's TLS or a file.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._put_off = 0
        self._asked = False

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """A thread works with it during the block."""
        self._put_off += 1
        try:
            yield
        finally:
            self._put_off -= 1
            if self._asked:
                self.close()

    def close(self) -> None:
        """Close it now, or at the end of the last block that puts this off."""
        self._asked = True
        if not self._put_off:
            self._socket.close()


def _keep_alive(connected: socket.socket, dead_after_s: float) -> None:
    """Let the kernel find out that a silent lane is cut: nothing else is sent through it.

    Boxes on the way forget connections that are quiet, a lane sooner than the TLS beside it.
    """
    idle_s = max(1, int(dead_after_s / 3))
    between_s = max(1, int(dead_after_s / 6))
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
