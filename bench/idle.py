"""What a node costs while nothing happens: memory, CPU, wake-ups and packets of a server at rest.

An ICE server in a fleet of real processes: central, two REPOs and servers, two of each cinema.
It is watched fresh from its start, and holding many small files. Syncthing, where it is installed,
rests beside it with the same files and one peer. The server is a host of its own, so that every
packet that it sends or receives is counted, and those among the others are not; Syncthing's two
ends are alone on a loopback. A wake-up is a thread that had gone to sleep and was woken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.archid_pair import TIMES, one_byte
from bench.benchmark import Chart, Outcome
from bench.measuring import (
    ProcessMeter,
    family_switches,
    resident_mb,
    say,
    significant,
    switches_between,
    table,
)
from bench.network import device_totals
from bench.peers import chosen, installed_peers, opened
from tests.fleet.hosts import Host, internet
from tests.fleet.local import FleetNode, LocalFleet, local_fleet
from tests.fleet.namespaces import why_not
from tests.fleet.scripts import write_small_files

FILE_BYTES: Final = 4096
FOLDERS: Final = 200
REPOS: Final = 2
GOALS: Final = {"resident_mb": 80.0, "cpu_s_per_minute": 0.1}
UNITS: Final = {
    "resident_mb": "RSS, MB",
    "cpu_s_per_minute": "CPU s a minute",
    "wake_ups_per_minute": "wake-ups a minute",
    "packets_per_minute": "packets a minute",
}
SUITED: Final = ("syncthing",)
REST_S: Final = 60.0
"""Idle layouts are let go after 30 s, looked for every 15 s."""
SHORT_REST_S: Final = 48.0
WATCH_S: Final = 120.0


@dataclass(frozen=True)
class Watched:
    """One process at rest, and what counts the packets of its host."""

    pid: int
    packets: Callable[[], int | None]


Rest = dict[str, float | None]
"""Figures by the names in UNITS."""


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """The sizes of the issue when asked for, else a small fleet and a short while."""
    files = args.files or (50_000 if args.full else 5_000)
    nodes = 30 if args.full else 6
    rest_s = REST_S if args.full else SHORT_REST_S
    watch_s = WATCH_S if args.full else WATCH_S / 6
    peers = chosen(args.peers, SUITED)
    found = run(base, files, nodes, peers=peers, rest_s=rest_s, watch_s=watch_s, fresh=args.full)
    figures = {"shape": {"files": files, "nodes": nodes, "watch_s": watch_s}, "programs": found}
    return Outcome(figures, [*report(found)], list(_charts(found)))


def run(
    base: Path,
    files: int,
    nodes: int,
    *,
    peers: tuple[str, ...],
    rest_s: float = REST_S,
    watch_s: float = WATCH_S,
    fresh: bool = True,
) -> dict[str, Rest | None]:
    """Figures by what was watched; None for a peer that is not installed.

    `fresh` also watches the server before it holds anything.
    """
    source = base / "source"
    source.mkdir()
    write_small_files(source, files, FILE_BYTES, folders=min(FOLDERS, files), seed="idle")
    present = installed_peers(peers)
    found: dict[str, Rest | None] = {name: None for name in peers if name not in present}
    with ExitStack() as stack:
        fleet = stack.enter_context(local_fleet(base / "archid"))
        server, others = _hosts(stack, nodes - 1)
        fleet.found(host=others[0])
        for number in range(1, 1 + REPOS):
            fleet.join(f"repo-{number}", "repo", site="paris", host=others[number])
        node = _join(fleet, 0, server)
        for number in range(1, nodes - 1 - REPOS):
            _join(fleet, number, others[REPOS + number])
        ours = Watched(node.process.pid, _packets(server, "eth0"))
        say(f"{len(fleet.nodes)} nodes run")
        if fresh:
            found |= _watch({"archid, fresh": ours}, rest_s, watch_s)
        _bring(fleet, node, source)
        resting = {"archid": ours}
        for name in present:
            peer = stack.enter_context(opened(name, base / name, source))
            destination = stack.enter_context(peer.ready())
            peer.transfer(destination)
            counter = _packets(peer.network.host(1), "lo")
            resting[name] = Watched(peer.pid(destination), counter)
        found |= _watch(resting, rest_s, watch_s)
    return found


def _hosts(stack: ExitStack, others: int) -> tuple[Host | None, list[Host | None]]:
    """One for the server, and addresses for the others on a second one."""
    if why_not():
        return None, [None] * others
    world = stack.enter_context(internet())
    [server] = world.host()
    return server, list(world.host(addresses=others))


def _join(fleet: LocalFleet, number: int, host: Host | None) -> FleetNode:
    """Two servers for each cinema."""
    site, kind = f"cinema-{number // 2}", ("salle", "sas")[number % 2]
    return fleet.join(f"{site}-{kind}", "ice", site=site, room="1", kind=kind, host=host)


def _bring(fleet: LocalFleet, node: FleetNode, source: Path) -> None:
    """Publish the files, and grant them to both servers of the node's cinema."""
    fleet.publish(source, "bench-feature", "feature")
    for kind in ("sas", "loop"):
        fleet.publish(one_byte(fleet.base / kind), f"bench-{kind}", kind)
    scripts = {kind: f"bench-{kind}" for kind in ("feature", "sas", "loop")}
    fleet.apply("bench", scripts=scripts, sites='["cinema-0"]', **TIMES)
    node.wait_active("bench", timeout_s=600.0)
    for name, one in fleet.nodes.items():
        if name.startswith("repo"):
            one.wait(
                lambda status: status["storage"]["trees"] == len(scripts),
                what="having all scripts",
                timeout_s=600.0,
            )


def _packets(host: Host | None, device: str) -> Callable[[], int | None]:
    if host is None:
        return lambda: None
    # What is sent over loopback is received once and counted twice.
    times = 2 if device == "lo" else 1
    return lambda: device_totals(host.namespace, device)["packets"] // times


def _watch(watched: Mapping[str, Watched], rest_s: float, watch_s: float) -> dict[str, Rest]:
    """Let the processes come to rest, then watch them all for the same while."""
    say(f"waiting {rest_s:.0f} s for rest, then watching {', '.join(watched)} for {watch_s:.0f} s")
    time.sleep(rest_s)
    before = {
        name: (ProcessMeter(one.pid), family_switches(one.pid), one.packets())
        for name, one in watched.items()
    }
    time.sleep(watch_s)
    minutes = watch_s / 60
    found: dict[str, Rest] = {}
    for name, (meter, switches, packets) in before.items():
        one, now = watched[name], watched[name].packets()
        found[name] = {
            "resident_mb": resident_mb(one.pid),
            "cpu_s_per_minute": meter.read().cpu_s / minutes,
            "wake_ups_per_minute": switches_between(switches, family_switches(one.pid)) / minutes,
            "packets_per_minute": None
            if now is None or packets is None
            else (now - packets) / minutes,
        }
    return found


def report(found: Mapping[str, Rest | None]) -> Iterator[str]:
    """The figures as a Markdown table, and what the goals say."""
    rows = [
        [name, "absent", *[""] * (len(UNITS) - 1)]
        if one is None
        else [name, *("not counted" if one[key] is None else _text(one[key]) for key in UNITS)]
        for name, one in found.items()
    ]
    yield table(["program", *UNITS.values()], rows)
    ours = found["archid"]
    assert ours is not None
    lines = []
    for key, goal in GOALS.items():
        reached = ours[key] or 0.0
        verdict = "reached" if reached <= goal else "missed"
        lines.append(
            f"- {_text(reached)} {UNITS[key]}; the goal is at most {goal:g}: **{verdict}**"
        )
    yield "\n".join(lines)


def _text(value: float | None) -> str:
    return significant(value or 0.0)


def _charts(found: Mapping[str, Rest | None]) -> Iterator[Chart]:
    for key, unit in UNITS.items():
        bars: dict[str, Any] = {
            name: one[key]
            for name, one in found.items()
            if one is not None and one[key] is not None
        }
        if bars:
            yield Chart(f"At rest: {unit}", "", bars, goal=GOALS.get(key))
