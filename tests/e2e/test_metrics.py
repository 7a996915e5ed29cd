"""The figures for Prometheus of real daemons: what is documented is what is answered."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fleet.film import publish_film, release_film
from tests.fleet.local import FleetNode, LocalFleet, local_fleet

DOCUMENTED = Path(__file__).parents[2] / "METRICS.md"
PORT = 9764


def listening_at(host: str) -> str:
    return f'[metrics]\nlisten = "{host}:{PORT}"\n'


def host_of(node: FleetNode) -> str:
    return node.address.rpartition(":")[0]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with local_fleet(tmp_path_factory.mktemp("metrics")) as made:
        made.found(extra=listening_at(f"{made.subnet}.2"))
        made.join(
            "lyon-1-salle", "ice", site="lyon", room="1", kind="salle",
            extra=listening_at(f"{made.subnet}.3"),
        )  # fmt: skip
        publish_film(made)
        release_film(made)
        made.nodes["lyon-1-salle"].wait_active("film")
        yield made


def ask(node: FleetNode, request: bytes) -> tuple[int, bytes]:
    """Status and body of whatever is answered to these bytes."""
    with socket.create_connection((host_of(node), PORT), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def scrape(node: FleetNode) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    status, body = ask(node, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
    assert status == 200
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(body.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = {frozenset(sample.labels.items()): sample.value for sample in family.samples}
        assert all(sample.name == name for sample in family.samples)
    return found


def test_every_figure_is_documented_and_every_documented_one_is_there(fleet: LocalFleet) -> None:
    rows = re.findall(r"(?m)^\| `([a-z_]+)` \| (\w+) \| (.*?) \|", DOCUMENTED.read_text())
    documented = {name: frozenset(re.findall(r"`(\w+)`", labels)) for name, _, labels in rows}
    for node in fleet.nodes.values():
        found = scrape(node)
        assert found.keys() == documented.keys()
        for name, samples in found.items():
            for labels in samples:
                assert {key for key, _ in labels} == documented[name], name


def test_figures_agree_with_what_status_says(fleet: LocalFleet) -> None:
    salle = fleet.nodes["lyon-1-salle"]
    found, status = scrape(salle), salle.status()
    received = sum(
        value for labels, value in found["archid_content_bytes_total"].items()
        if ("direction", "in") in labels
    )  # fmt: skip
    assert received == status["traffic"]["content_received_bytes"] > 0
    film = frozenset({("release", "film")})
    assert found["archid_release_ready"][film] == 1
    assert found["archid_release_held_bytes"] == found["archid_release_size_bytes"]
    [info] = found["archid_info"]
    assert ("name", "lyon-1-salle") in info
    nodes = scrape(fleet.central)["archid_fleet_nodes"]
    assert sum(nodes.values()) == 2


def test_a_daemon_loads_the_library_only_where_it_is_asked_to() -> None:
    look = "import sys, archid.daemon.composing; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01" + bytes(60) + b"\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000, 431),
    ],
)
def test_whatever_is_asked_gets_an_answer(
    fleet: LocalFleet, request_bytes: bytes, status: int
) -> None:
    got, body = ask(fleet.central, request_bytes)
    assert got == status
    assert (b"archid_info" in body) == (status == 200 and request_bytes.startswith(b"GET"))


def test_an_address_that_is_taken_is_said_and_ends_nothing(fleet: LocalFleet) -> None:
    with socket.socket() as other:
        other.bind((f"{fleet.subnet}.9", PORT))
        other.listen()
        name = "nice-2-salle"
        node = fleet.join(
            name, "ice", site="nice", room="2", kind="salle",
            extra=listening_at(f"{fleet.subnet}.9"),
        )  # fmt: skip
        node.wait(
            lambda one: "metrics_not_served" in {r["code"] for r in one["health"]["reasons"]},
            what="the address being said to be taken",
        )
        words = " ".join(node.run("status").stdout.split())  # however the lines were broken
        assert "Address already in use" in words
    node.process.stop()
    del fleet.nodes[name]


def test_an_address_that_others_reach_is_warned_of(fleet: LocalFleet) -> None:
    central = fleet.central
    assert central.json("config", "check")["warnings"] == []
    central.extra = '[metrics]\nlisten = "0.0.0.0"\n'
    central.write_config()
    [warning] = central.json("config", "check")["warnings"]
    assert "[metrics] listen is 0.0.0.0:9764" in warning
    assert "there is no password" in central.run("config", "check").stdout
