"""Whether a line is what it claims to be: its round trip by ping, its rate and loss by iperf3.

Figures of a benchmark are worth what its lines are, so the check is a part of each run and is
printed with it. The rate is what TCP gets within a few seconds, which on a long line holds the
time that it takes to get going; a ping is lost when it is lost there or on the way back.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from statistics import mean
from typing import Any, Final

from bench.measuring import say
from bench.transfer import TransferFailed
from tests.fleet.hosts import Host
from tests.fleet.lines import LineShape
from tests.fleet.namespaces import in_namespace

FOR: Final = ("-t", "4")
PINGS: Final = 10
MANY_PINGS: Final = 3000
PINGERS: Final = 3
"""So many send them, since one sends no more than one in each tick of the kernel."""
PATIENCE_S: Final = 300.0
NO_RATE_CHECK: Final = "iperf3 is not installed: apt-get install iperf3"


@dataclass(frozen=True)
class LineCheck:
    """What was found; rates in bits a second, None where it was not measured."""

    claimed: LineShape
    round_trip_ms: float
    up_bits_per_s: float | None
    down_bits_per_s: float | None
    lost_share: float | None

    def text(self) -> str:
        """One line for people."""
        claim = [
            self.claimed.rate or "no limit",
            f"{2 * self.claimed.delay_ms:g} ms there and back",
        ]
        claim.append(f"{self.claimed.loss:.2%} lost each way")
        if self.up_bits_per_s is None or self.down_bits_per_s is None:
            rates = NO_RATE_CHECK
        else:
            rates = (
                f"TCP {self.up_bits_per_s / 1e6:.1f} up and {self.down_bits_per_s / 1e6:.1f} Mbit/s"
                " down"
            )
        lost = "" if self.lost_share is None else f", {self.lost_share:.2%} of pings lost"
        return f"line of {', '.join(claim)}: ping {self.round_trip_ms:.1f} ms, {rates}{lost}"


def checked_line(near: Host, far: Host, claimed: LineShape) -> str:
    """Measure, and say at once what was found; it is also returned, for the tables."""
    found = check_line(near, far, claimed).text()
    say(found)
    return found


def check_line(near: Host, far: Host, claimed: LineShape) -> LineCheck:
    """Measure from `near` to `far`, whose line it is."""
    ping, lost = _ping(near, far, many=bool(claimed.loss))
    if shutil.which("iperf3") is None:
        return LineCheck(claimed, ping, None, None, lost)
    down = iperf(near, far, *FOR)["sum_received"]["bits_per_second"]
    up = iperf(near, far, "-R", *FOR)["sum_received"]["bits_per_second"]
    return LineCheck(claimed, ping, up, down, lost)


def iperf(near: Host, far: Host, *words: str) -> dict[str, Any]:
    """One run of iperf3 from `near` to `far`; the part of its report that is called "end"."""
    serving = subprocess.Popen(
        [*in_namespace(far.namespace), "iperf3", "-s", "-1", "--forceflush"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert serving.stdout is not None
        for line in serving.stdout:
            if "listening" in line:
                break
        done = subprocess.run(
            [*in_namespace(near.namespace), "iperf3", "-J", "-c", far.address, *words],
            capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
    finally:
        serving.terminate()
        serving.communicate()
    report = json.loads(done.stdout)
    if "error" in report:
        raise TransferFailed(f"iperf3: {report['error']}")
    end: dict[str, Any] = report["end"]
    return end


def _ping(near: Host, far: Host, *, many: bool) -> tuple[float, float | None]:
    """The mean round trip in milliseconds, and the share that was lost there or back if `many`."""
    often = ["-c", str(PINGS), "-i", "0.05"]
    if many:
        often = ["-c", str(MANY_PINGS // PINGERS), "-i", "0.002"]
    pingers = [
        subprocess.Popen(
            [*in_namespace(near.namespace), "ping", *often, "-q", far.address],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(PINGERS if many else 1)
    ]  # fmt: skip
    sent = received = 0
    trips = []
    for said in [one.communicate()[0] for one in pingers]:
        trip = re.search(r"= [0-9.]+/([0-9.]+)/", said)
        counts = re.search(r"(\d+) packets transmitted, (\d+) received", said)
        if trip is None or counts is None:
            raise TransferFailed(f"no way from {near.address} to {far.address}: {said}")
        trips.append(float(trip[1]))
        sent, received = sent + int(counts[1]), received + int(counts[2])
    return mean(trips), 1 - received / sent if many else None
