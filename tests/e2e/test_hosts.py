"""Hosts with networks of their own: one cinema behind NAT, one on a slow line, one on a fast one.

Lines, NAT and counters are the kernel's (tests/fleet/hosts.py); the daemons know nothing of it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.fleet.hosts import PORT, Cinema, internet, require_tools
from tests.fleet.lines import LineShape
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.namespaces import in_namespace, namespaces
from tests.fleet.scripts import LOOP, ScriptShape, write_script
from tests.fleet.watched import watched_fleet

FILM: Final = ScriptShape(reels=1, panel_bytes=2_000_000, cues=20)
CUT_AT_BYTES: Final = 3_000_000
KINDS: Final = ("feature", "sas", "loop")


@dataclass(frozen=True)
class World:
    """The fleet and the networks that it is on."""

    fleet: LocalFleet
    slow: Cinema
    hidden: Cinema

    def servers(self, site: str) -> list[FleetNode]:
        return [node for name, node in self.fleet.nodes.items() if name.startswith(f"{site}-")]

    def release(self, name: str, shape: ScriptShape) -> int:
        """Publish and release to every cinema; how many bytes each server gets."""
        size = 0
        for kind in KINDS:
            folder = self.fleet.base / name / kind
            write_script(folder, name, kind, shape if kind == "feature" else LOOP)
            size += self.fleet.publish(folder, f"{name}-{kind}", kind)["size_bytes"]
        self.fleet.apply(
            name,
            scripts={kind: f"{name}-{kind}" for kind in KINDS},
            prefetch="2026-01-01T00:00:00Z",
            start="2026-01-02T00:00:00Z",
            end="2126-01-02T00:00:00Z",
            sites='["slow", "hidden", "fast"]',
        )
        return size


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_tools()
    with internet() as net, watched_fleet(tmp_path_factory.mktemp("hosts")) as fleet:
        central, repo = net.host(addresses=2)
        cinemas = {
            "slow": net.cinema(shape=LineShape("20mbit")),
            "hidden": net.cinema(shape=LineShape("50mbit"), nat=True),
            "fast": net.cinema(),
        }
        fleet.found(host=central)
        joined = [fleet.join("repo-1", "repo", site="paris", host=repo, start=False)]
        for site, cinema in cinemas.items():
            for kind in ("salle", "sas")[: 1 if site == "fast" else 2]:
                node = fleet.join(
                    f"{site}-1-{kind}", "ice", site=site, room="1", kind=kind,
                    host=cinema.host(), start=False,
                )  # fmt: skip
                node.process.launch()  # it gets ready while the next one joins
                joined.append(node)
        joined[0].process.launch()
        for node in joined:
            node.process.wait_ready()
        yield World(fleet, cinemas["slow"], cinemas["hidden"])


def peers_of(node: FleetNode) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in node.status()["peers"] if one["state"] == "admitted"}


def meet(salle: FleetNode, sas: FleetNode) -> None:
    """Return when the two servers of a room are connected."""
    salle.wait(lambda _: sas.name in peers_of(salle), what="meeting the neighbour")


def check_shared(salle: FleetNode, sas: FleetNode) -> None:
    """What one server counts as received from its neighbour, the neighbour counts as sent."""
    shared = 0
    for one, other in ((salle, sas), (sas, salle)):
        received = peers_of(one)[other.name]["span_bytes_received"]
        assert received <= peers_of(other)[one.name]["span_bytes_sent"]
        shared += received
    assert shared > 0


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_line_that_is_slow_and_cut_holds_nobody_else_up(world: World) -> None:
    salle, sas = world.servers("slow")
    others = [*world.servers("hidden"), *world.servers("fast")]
    meet(salle, sas)
    line = world.slow.line
    before = line.received_bytes()
    size = world.release("film", FILM)
    salle.wait(lambda _: line.received_bytes() - before > CUT_AT_BYTES, what="a part of the film")
    line.cut()
    for node in others:
        node.wait_active("film")

    size += world.release("trailer", LOOP)  # which those behind the cut line cannot know of
    cut_at = line.received_bytes()
    for node in others:
        node.wait_active("trailer")
    serial = others[0].status()["trust"]["serial"]
    for node in (salle, sas):
        status = node.status()
        assert status["trust"]["serial"] < serial
        states = {one["name"]: one["state"] for one in status["deliveries"]}
        assert states == {"film": "fetching"}
    assert line.received_bytes() == cut_at

    line.heal()
    for node in (salle, sas):
        for release in ("film", "trailer"):
            node.wait_active(release)
    came_in = line.received_bytes() - before
    check_shared(salle, sas)
    outside = [
        one["span_bytes_received"]
        for node in (salle, sas)
        for one in peers_of(node).values()
        if one["role"] != "ice"
    ]
    assert sum(outside) < came_in, "the kernel counts headers too"
    assert came_in < 2 * size, "as two servers would take that know nothing of one another"


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_cinema_behind_nat_only_dials_out_and_gets_everything(world: World) -> None:
    salle, sas = world.servers("hidden")
    meet(salle, sas)
    world.release("short", LOOP)
    for node in (salle, sas):
        node.wait_active("short")
        for name in ("central", "repo-1"):
            seen = peers_of(world.fleet.nodes[name])[node.name]
            assert seen["direction"] == "inbound"
            assert seen["address"].startswith(f"{world.hidden.public_address}:")
    check_shared(salle, sas)
    assert can_connect(world.fleet.central, world.fleet.nodes["repo-1"].address.partition(":")[0])
    for address in (*(node.address for node in (salle, sas)), world.hidden.public_address):
        assert not can_connect(world.fleet.central, address.partition(":")[0])


def can_connect(node: FleetNode, address: str) -> bool:
    """Whether anything can be dialled at the port of daemons from where a node is."""
    assert node.network_namespace is not None
    script = f"import socket; socket.create_connection(({address!r}, {PORT}), 5)"
    dialling = inside(node.network_namespace, script)
    return subprocess.run(dialling, capture_output=True, check=False).returncode == 0


def test_networks_go_with_their_block_whatever_happens_in_it() -> None:
    require_tools()
    made: set[str] = set()
    with pytest.raises(RuntimeError, match="as it may happen"):
        fail_in_the_middle(made)
    assert made
    assert not made & set(namespaces())


def fail_in_the_middle(made: set[str]) -> None:
    with internet() as net:
        cinema = net.cinema(nat=True, shape=LineShape("1mbit"))
        server, [host] = cinema.host(), net.host()
        made |= {server.namespace, host.namespace, cinema.router, net.core}
        assert made <= set(namespaces())
        listen = f"import socket; socket.create_server(({host.address!r}, 7)).accept()"
        dial = f"import socket\nwhile socket.socket().connect_ex(({host.address!r}, 7)): pass"
        with subprocess.Popen(inside(host.namespace, listen)) as listening:
            subprocess.run(inside(server.namespace, dial), check=True, timeout=30)
            assert listening.wait(30) == 0
        assert cinema.line.sent_bytes() > 0
        assert cinema.line.received_bytes() > 0
        raise RuntimeError("as it may happen")


def inside(namespace: str, script: str) -> list[str]:
    """Words that run a line of Python in a namespace."""
    return [*in_namespace(namespace), sys.executable, "-c", script]
