"""Receives the records of a lane and has them opened by the machine of `protocol.lane`.

What is large is received where it is opened from. What is small, and the length before what is
large, comes with what was received before it: a call for each would cost as much as opening them.
Waiting, and what a record means, is `archid.net.lane`'s.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from archid.net.errors import PeerLost
from archid.net.lane_rooms import ROOMS
from archid.net.lane_socket import wake_at
from protocol.lane import LENGTH, LaneEvent, LaneInput

AHEAD_BYTES: Final = 4096
"""Received beyond the record that is coming."""
LOW_WATER_BYTES: Final = 256 * 1024
"""Nobody is woken for less in the middle of a span, once the line is known to carry it."""
LOW_WATER_SHARE: Final = 16
"""Of what has come so far, this part is waited for. A kernel opens its window as what came is taken
from it: to wait for about a window keeps it from growing, and the other end from sending more."""


class LaneReader:
    """The receiving side of one socket; for one thread at a time."""

    def __init__(self, connected: socket.socket, machine: LaneInput) -> None:
        self._socket = connected
        self._input = machine
        self._prefix = bytearray(LENGTH.size)
        self._sealed: memoryview | None = None
        """Where the record that is coming is put; None between records."""
        self._target = memoryview(self._prefix)
        """What is still to be filled of the prefix or the record."""
        self._length = 0
        self._room = memoryview(bytearray(AHEAD_BYTES))
        self._ahead = self._room[:0]
        """What was received and belongs after what the target had room for then."""
        self._low_water = 1
        self.wire_bytes = 0

    @property
    def at_hand(self) -> bool:
        """Whether `fill` has something to give without the socket."""
        return len(self._ahead) > 0

    def fill(self, most_bytes: int) -> bool:
        """Go on with the record that is coming; False when nothing is there.

        Receives at most about `most_bytes`, and nothing as long as something is at hand. Raises
        PeerLost.
        """
        if not self._ahead:
            count = self._receive(min(most_bytes, len(self._target)))
            if not count:
                return False
        count = min(len(self._target), len(self._ahead))
        self._target[:count] = self._ahead[:count]
        self._target, self._ahead = self._target[count:], self._ahead[count:]
        return True

    def _receive(self, size_bytes: int) -> int:
        """How much came: what is large into the target, and what follows it, or is small, ahead."""
        target = self._target[: size_bytes if size_bytes >= AHEAD_BYTES else 0]
        try:
            if not target:
                count = self._socket.recv_into(self._room)
            elif len(target) == len(self._target):
                count = self._socket.recvmsg_into((target, self._room))[0]
            else:
                count = self._socket.recv_into(target)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerLost(f"the lane broke: {error.strerror or error}") from error
        if not count:
            raise PeerLost("the other end closed the lane")
        self.wire_bytes += count
        self._ahead = self._room[: max(0, count - len(target))]
        self._target = self._target[min(count, len(target)) :]
        return count

    def take(self, use: Callable[[LaneEvent], None]) -> None:
        """Open what has come, if it is whole; nothing of the event may be kept after `use`.

        Raises ProtocolError.
        """
        if self._target:
            return
        if self._sealed is None:
            self._length = self._input.begin(self._prefix)
            self._sealed = ROOMS.take()
            self._target = self._sealed[: self._length]
            return
        with ROOMS.one() as room:
            use(self._input.take(self._sealed[: self._length], room))
        self.drop_room()
        self._target = memoryview(self._prefix)

    def wake_for_more(self) -> None:
        """Be woken for a good part of a span, not for each packet."""
        carried = self.wire_bytes // LOW_WATER_SHARE
        carried = 1 << carried.bit_length() >> 1  # in few steps, each of which is a call
        low_water = max(1, min(len(self._target), LOW_WATER_BYTES, carried))
        if low_water != self._low_water:
            wake_at(self._socket, low_water)
            self._low_water = low_water

    def drop_room(self) -> None:
        """Let go of what is lent."""
        if self._sealed is not None:
            room, self._sealed = self._sealed, None
            self._target = memoryview(b"")
            ROOMS.give_back(room)
