"""Lines between namespaces: a pair of veth devices or a long wire, with a rate, delay and loss.

A rate is kept by tc's token buckets at both ends; delay and loss by a process of `tun_relay`, since
kernels come without netem.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tests.fleet.namespaces import NetworkFailed, run_tool
from tests.fleet.tun_relay import READY

BURST_BYTES: Final = 80 * 1024
"""At least this passes at once: the largest packet that a kernel hands over, 64 KiB and a header
for each of its segments. tc's bucket cuts larger ones than it holds into single segments, each with
a timer of its own, which took more of the machine than the programs under test."""
BURST_S: Final = 0.002
"""Of its rate a token bucket lets pass at once: timers fire late on a busy machine."""
QUEUE_MS: Final = 100
"""How long a token bucket lets packets wait before it drops them: the router's queue."""
FRAMES: Final = 4000
"""That wait for the process of a long wire."""
STOP_S: Final = 10.0
UNITS: Final = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


@dataclass(frozen=True)
class LineShape:
    """What a line is like, the same in both directions."""

    rate: str = ""
    """As tc has it, such as ``20mbit``; empty for no limit."""
    delay_ms: float = 0.0
    """One way."""
    loss: float = 0.0
    """The share of packets that are lost each way, 0 to 1."""

    @property
    def is_long(self) -> bool:
        """Whether a plain pair of devices will not do."""
        return bool(self.delay_ms or self.loss)

    @property
    def bits_per_s(self) -> float:
        """The rate as a number; infinite without a limit."""
        for unit, factor in UNITS.items():
            if self.rate.endswith(unit):
                return float(self.rate.removesuffix(unit)) * factor
        if self.rate:
            raise ValueError(f"{self.rate} is not a number of {', '.join(UNITS)}")
        return float("inf")


@dataclass(frozen=True)
class End:
    """One end of a line: a device in a namespace."""

    namespace: str
    device: str

    def received_bytes(self) -> int:
        """What has come in over it, headers included."""
        return self.counters()[1]

    def sent_bytes(self) -> int:
        """What has gone out over it, headers included."""
        return self.counters()[0]

    def counters(self) -> tuple[int, int]:
        """Both of one moment: sent, received."""
        shown = run_tool("ip", "-n", self.namespace, "-s", "-j", "link", "show", self.device)
        [link] = json.loads(shown)
        sent, received = (int(link["stats64"][way]["bytes"]) for way in ("tx", "rx"))
        return sent, received


class Wire:
    """The process that makes a line long."""

    def __init__(self, near: End, far: End, shape: LineShape) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.fleet.tun_relay"),
                *(near.namespace, near.device, far.namespace, far.device),
                *(str(shape.delay_ms / 1000), str(shape.loss), near.namespace.rpartition("-")[2]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is the harness' to handle
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY:
            _, told = self._process.communicate()
            raise NetworkFailed(f"no wire from {near} to {far}: {told.decode(errors='replace')}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End it; its devices go with it."""
        with suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self._process.communicate(timeout=STOP_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def join(near: End, far: End, shape: LineShape) -> Wire | None:
    """Join two namespaces by new devices; the process to be closed, if the line needs one."""
    if shape.is_long:
        wire = Wire(near, far, shape)
        try:
            for end in (near, far):
                queue = ["txqueuelen", str(FRAMES)]
                run_tool("ip", "-n", end.namespace, "link", "set", end.device, *queue)
            _limit(near, far, shape)
        except BaseException:
            wire.close()
            raise
        return wire
    add_pair(near, far)
    _limit(near, far, shape)
    return None


def _limit(near: End, far: End, shape: LineShape) -> None:
    if shape.rate:
        burst = max(BURST_BYTES, int(shape.bits_per_s / 8 * BURST_S))
        limit = ["rate", shape.rate, "burst", str(burst), "latency", f"{QUEUE_MS}ms"]
        for end in (near, far):
            where = ["-n", end.namespace, "qdisc", "add", "dev", end.device, "root"]
            run_tool("tc", *where, "tbf", *limit)


def add_pair(near: End, far: End) -> None:
    """Join two namespaces by a pair of veth devices."""
    run_tool(
        *("ip", "link", "add", near.device, "netns", near.namespace, "type", "veth"),
        *("peer", "name", far.device, "netns", far.namespace),
    )


def add_address(end: End, address: str) -> None:
    """Give the device an address, as ``10.77.1.2/24``, and switch it on."""
    run_tool("ip", "-n", end.namespace, "address", "add", address, "dev", end.device)
    run_tool("ip", "-n", end.namespace, "link", "set", end.device, "up")
