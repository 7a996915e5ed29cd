"""What a long wire does to single frames; real devices are in tests/e2e/test_lines.py."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.fleet.tun_relay import (
    CWR,
    FIN_PSH,
    GSO_NONE,
    GSO_TCPV4,
    VNET,
    Losses,
    part_of,
    segments_of,
)

SIZE = 100
HEADER = 40
NEEDS_CHECKSUM = 1
FLAGS = 0x10 | FIN_PSH | CWR


def whole(payload: bytes, *, identity: int = 0xFFFF, sequence: int = 0xFFFFFFF0) -> bytes:
    """A frame as the kernel hands it over: many segments of one TCP stream."""
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, HEADER + len(payload), identity, 0x4000, 64, 6, 0,
        bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)),
    )  # fmt: skip
    tcp = struct.pack(">HHIIBBHHH", 4777, 9999, sequence, 7, 0x50, FLAGS, 512, 0, 0)
    vnet = VNET.pack(NEEDS_CHECKSUM, GSO_TCPV4, HEADER, SIZE, 20, 16)
    return vnet + ip + tcp + payload


def checksum(data: bytes) -> int:
    """As in RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def dice(*throws: float) -> Callable[[], float]:
    return iter(throws).__next__


def test_a_part_of_a_frame_is_a_frame_with_sums_and_numbers_of_its_own() -> None:
    payload = bytes(range(250))
    frame = whole(payload)
    assert segments_of(frame) == 3
    part = part_of(frame, 1, 3)
    assert segments_of(part) == 2
    packet = part[VNET.size :]
    assert packet[HEADER:] == payload[SIZE:]
    length, identity = struct.unpack_from(">HH", packet, 2)
    assert (length, identity) == (len(packet), 0), "the identity goes on where it began, and around"
    assert checksum(packet[:20]) == 0xFFFF
    [sequence] = struct.unpack_from(">I", packet, 24)
    assert sequence == (0xFFFFFFF0 + SIZE) % 2**32
    assert packet[33] == FLAGS & ~CWR, "that the window was reduced is said once"
    pseudo = packet[12:20] + struct.pack(">HH", 6, len(packet) - 20)
    assert struct.unpack_from(">H", packet, 36)[0] == checksum(pseudo)


def test_a_single_segment_is_no_longer_one_of_many_and_only_the_last_ends_the_stream() -> None:
    frame = whole(bytes(250))
    first, last = part_of(frame, 0, 1), part_of(frame, 2, 3)
    for part, flags in ((first, FLAGS & ~FIN_PSH), (last, FLAGS & ~CWR)):
        assert VNET.unpack_from(part)[1] == GSO_NONE
        assert segments_of(part) == 1
        assert part[VNET.size + 33] == flags
    assert (len(first), len(last)) == (VNET.size + HEADER + 100, VNET.size + HEADER + 50)


@pytest.mark.parametrize(
    ("throws", "left"),
    [
        ((0.0, 0.99), [(100, 250)]),
        ((0.5, 0.99), [(0, 100), (200, 250)]),
        ((0.75, 0.99), [(0, 200)]),
        ((0.0, 0.0, 0.0, 0.99), []),
        ((0.99,), [(0, 250)]),
    ],
)
def test_the_segment_that_is_lost_takes_no_other_with_it(
    throws: tuple[float, ...], left: list[tuple[int, int]]
) -> None:
    payload = bytes(range(250))
    found = list(Losses(0.5, dice(*throws)).survivors(whole(payload)))
    assert [part[VNET.size + HEADER :] for part in found] == [payload[a:b] for a, b in left]


def test_losses_count_on_from_frame_to_frame() -> None:
    # Four get through, the fifth is lost: the second one of the second frame.
    losses = Losses(0.5, dice(0.96, 0.999))
    frame = whole(bytes(range(250)))
    assert list(losses.survivors(frame)) == [frame]
    assert [len(part) - VNET.size - HEADER for part in losses.survivors(frame)] == [100, 50]


def test_nothing_is_lost_where_nothing_shall_be() -> None:
    frame = whole(bytes(250))
    losses = Losses(0.0, dice())
    assert [list(losses.survivors(frame)) for _ in range(100)] == [[frame]] * 100
