"""What a node costs while nothing happens: memory, CPU and wake-ups of an ICE server at rest.

Measured twice: fresh from its start, and after it has fetched a script of about 300 MB and has had
time to let go of what that took. Syncthing, where it is installed, rests beside it with the same
files. A wake-up is a thread that had gone to sleep and was woken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.archid_pair import archid_pair
from bench.measuring import ProcessMeter, family_switches, resident_mb, table
from bench.peers import installed_peers, opened
from bench.transfer import Contender
from tests.fleet.scripts import ScriptShape, write_script

GOAL_MB: Final = 70.0
REST_S: Final = 60.0
"""Idle layouts are let go after 30 s, looked for every 15 s."""
WATCH_S: Final = 120.0


@dataclass(frozen=True)
class Rest:
    """One program at rest."""

    resident_mb: float
    cpu_s_per_minute: float
    wake_ups_per_minute: float


def run(
    base: Path,
    shape: ScriptShape,
    *,
    peers: tuple[str, ...],
    rest_s: float = REST_S,
    watch_s: float = WATCH_S,
) -> dict[str, Rest | None]:
    """Figures by what was watched; None for a peer that is not installed."""
    source = base / "source"
    write_script(source, "bench", "feature", shape)
    present = installed_peers(peers)
    found: dict[str, Rest | None] = {name: None for name in peers if name not in present}
    with ExitStack() as stack:
        ours = stack.enter_context(archid_pair(base / "archid", source))
        server = stack.enter_context(ours.ready())
        found |= _watch({"archid, fresh": ours.pid(server)}, rest_s, watch_s)
        resting = {"archid": ours.pid(_brought(ours, server))}
        for name in present:
            peer = stack.enter_context(opened(name, base / name, source))
            resting[name] = peer.pid(_brought(peer, stack.enter_context(peer.ready())))
        found |= _watch(resting, rest_s, watch_s)
    return found


def _brought(contender: Contender, destination: Any) -> Any:
    contender.transfer(destination)
    return destination


def _watch(pids: Mapping[str, int], rest_s: float, watch_s: float) -> dict[str, Rest]:
    """Let the processes come to rest, then watch them all for the same while."""
    time.sleep(rest_s)
    meters = {name: (ProcessMeter(pid), family_switches(pid)) for name, pid in pids.items()}
    time.sleep(watch_s)
    minutes = watch_s / 60
    return {
        name: Rest(
            resident_mb(pids[name]),
            meter.read().cpu_s / minutes,
            (family_switches(pids[name]) - before) / minutes,
        )
        for name, (meter, before) in meters.items()
    }


def report(found: Mapping[str, Rest | None]) -> Iterator[str]:
    """The figures as a Markdown table."""
    rows = [
        [name, "absent", "", ""]
        if one is None
        else [
            name,
            f"{one.resident_mb:.0f}",
            f"{one.cpu_s_per_minute:.2f}",
            f"{one.wake_ups_per_minute:.0f}",
        ]
        for name, one in found.items()
    ]
    yield table(["program", "RSS MB", "CPU s a minute", "wake-ups a minute"], rows)
