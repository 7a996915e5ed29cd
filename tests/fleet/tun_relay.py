"""A long wire: carries packets between two TUN devices, each some time after it was sent.

The kernel of many machines has no netem, so this process stands in for it: what is sent into the
device of one namespace comes out of the other's after `delay_s`, and of every packet a share is
lost. It runs apart from everything else (``python -m tests.fleet.tun_relay``), since it must be on
time, and ends when its standard input does.

The devices keep an ordinary MTU, yet TCP hands over many segments at once (segmentation offload,
`virtio_net_hdr` in the kernel's linux/virtio_net.h), which is what makes a gigabit affordable. Loss
is of single segments all the same: where one is lost, what came before and after it goes on as two.
The rate of the wire is not kept here but by tc on the devices, before packets get here.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
CLONE_NEWNET: Final = 0x40000000

VNET: Final = struct.Struct("<BBHHHH")
"""virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
FIN_PSH: Final = 0x09
CWR: Final = 0x80
FRAME_BYTES: Final = 70_000
AT_ONCE: Final = 64
"""Frames read from one device before those that are due go out."""
MOST_BYTES: Final = 256 << 20
"""In one direction; a gigabit for two seconds."""
READY: Final = b"ready\n"


def segments_of(frame: bytes) -> int:
    """How many packets a frame stands for."""
    kind: int
    header: int
    size: int
    _, kind, header, size, _, _ = VNET.unpack_from(frame)
    if kind == GSO_NONE or not size:
        return 1
    return max(1, -(-(len(frame) - VNET.size - header) // size))


def part_of(frame: bytes, first: int, end: int) -> bytes:
    """The segments from `first` to before `end` of a TCP frame over IPv4, as a frame of their own.

    Checksums of TCP are left to whoever needs them, as in the whole frame: the field holds the sum
    over the pseudo-header (RFC 9293, 3.1), which has the length in it.
    """
    flags, kind, header, size, start, offset = VNET.unpack_from(frame)
    count = segments_of(frame)
    head = bytearray(frame[VNET.size : VNET.size + header])
    payload = frame[VNET.size + header :][first * size : end * size]
    ip_bytes = (head[0] & 0x0F) * 4
    tcp_bytes = header - ip_bytes + len(payload)
    identity, sequence = (
        struct.unpack_from(">H", head, 4)[0],
        struct.unpack_from(">I", head, ip_bytes + 4)[0],
    )
    struct.pack_into(">HH", head, 2, header + len(payload), (identity + first) & 0xFFFF)
    struct.pack_into(">I", head, ip_bytes + 4, (sequence + first * size) & 0xFFFFFFFF)
    if end < count:
        head[ip_bytes + 13] &= ~FIN_PSH & 0xFF
    if first:
        head[ip_bytes + 13] &= ~CWR & 0xFF
    struct.pack_into(">H", head, 10, 0)
    struct.pack_into(">H", head, 10, ~_sum(head[:ip_bytes]) & 0xFFFF)
    pseudo = bytes(head[12:20]) + struct.pack(">HH", head[9], tcp_bytes)
    struct.pack_into(">H", head, start + offset, _sum(pseudo))
    if end - first == 1:
        kind, size = GSO_NONE, 0
    return VNET.pack(flags, kind, header, size, start, offset) + bytes(head) + payload


def _sum(data: bytes | bytearray) -> int:
    """The Internet's sum of 16 bits, not complemented (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Losses:
    """Which packets of a stream are lost, each with the same probability."""

    def __init__(self, share: float, dice: Callable[[], float]) -> None:
        self._scale = 1 / math.log1p(-share) if share else -math.inf
        self._dice = dice
        self._kept = self._draw()

    def survivors(self, frame: bytes) -> Iterator[bytes]:
        """What is left of a frame."""
        count = segments_of(frame)
        if self._kept >= count:
            self._kept -= count
            yield frame
            return
        first = 0
        while first < count:
            end = min(count, first + int(min(self._kept, count)))
            if end > first:
                yield part_of(frame, first, end)
            if end == count:
                self._kept -= count - first
                return
            self._kept = self._draw()
            first = end + 1

    def _draw(self) -> float:
        """How many get through before the next one is lost."""
        if math.isinf(self._scale):
            return math.inf
        return math.floor(math.log(1 - self._dice()) * self._scale)


@dataclass
class Direction:
    """From one device to the other."""

    source: int
    sink: int
    delay_s: float
    losses: Losses
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    queued_bytes: int = 0

    def take_in(self, now: float) -> None:
        """Read what was sent; what is over the wire's length in bytes is lost."""
        for _ in range(AT_ONCE):
            try:
                frame = os.read(self.source, FRAME_BYTES)
            except OSError:  # nothing more, or the device is down
                return
            if self.queued_bytes > MOST_BYTES:
                continue
            for part in self.losses.survivors(frame):
                self.queue.append((now + self.delay_s, part))
                self.queued_bytes += len(part)

    def let_out(self, now: float) -> None:
        """Write what has been under way for long enough."""
        while self.queue and self.queue[0][0] <= now:
            frame = self.queue.popleft()[1]
            self.queued_bytes -= len(frame)
            with suppress(OSError):  # a device that is down: lost, as on a cut line
                os.write(self.sink, frame)


def carry(directions: tuple[Direction, Direction], until: int) -> None:
    """Carry frames both ways until the descriptor `until` ends."""
    sources = {one.source: one for one in directions}
    while True:
        due = [one.queue[0][0] for one in directions if one.queue]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select([*sources, until], [], [], wait_s)
        now = time.monotonic()
        for descriptor in ready:
            if descriptor == until:
                if not os.read(until, 1):
                    return
            else:
                sources[descriptor].take_in(now)
        for one in directions:
            one.let_out(now)


def open_tun(namespace: str, device: str) -> int:
    """Make a TUN device in a namespace, and stay there; its descriptor, which does not block."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(place, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(place)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    wanted = struct.pack("16sH14x", device.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    fcntl.ioctl(tun, TUNSETIFF, wanted)
    fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return tun


def main(arguments: list[str]) -> None:
    """Arguments: namespace and device of both ends, seconds of delay, share lost, seed."""
    near, near_device, far, far_device, delay, loss, seed = arguments
    ends = open_tun(near, near_device), open_tun(far, far_device)
    dice = random.Random(seed)  # the same losses on every run
    directions = (
        Direction(ends[0], ends[1], float(delay), Losses(float(loss), dice.random)),
        Direction(ends[1], ends[0], float(delay), Losses(float(loss), dice.random)),
    )
    with suppress(PermissionError):  # to be on time on a busy machine
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    os.write(sys.stdout.fileno(), READY)
    carry(directions, sys.stdin.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
