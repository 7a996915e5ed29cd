"""Servers of different sites that fetch the same find one another through central, and share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.scripts import noise
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")
SIZE_BYTES = 48 << 20
CENTRAL = '[limits]\nup = "6MB/s"\n'


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path) as fleet:
        fleet.found(extra=CENTRAL)
        yield fleet


def received(server: FleetNode, *, from_servers: bool) -> int:
    return sum(
        peer["span_bytes_received"]
        for peer in server.status()["peers"]
        if (peer["role"] == "ice") is from_servers
    )


@pytest.mark.long
@pytest.mark.timeout(240)
def test_servers_of_different_sites_give_one_another_what_central_sends_once(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    servers = [
        fleet.join(f"{site}-1", "ice", site=site, room="1", kind="salle")
        for site in ("lyon", "nice", "lille")
    ]
    outsider = fleet.join("brest-1", "ice", site="brest", room="1", kind="salle")
    for kind in KINDS:
        folder = tmp_path / "sources" / kind
        folder.mkdir(parents=True)
        (folder / "index").write_text(kind)
    source = tmp_path / "sources" / "feature"
    (source / "reel.bin").write_bytes(b"".join(noise("fellows", SIZE_BYTES)))
    for kind in KINDS:
        fleet.publish(tmp_path / "sources" / kind, f"film-{kind}", kind)
    fleet.apply(
        "film",
        scripts={kind: f"film-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2126-01-02T00:00:00Z",
        sites='["lyon", "nice", "lille"]',
    )
    for server in servers:
        server.wait_active("film")
        check_arrived(source, server.release_file("film", "feature"))
    by_central = sum(received(server, from_servers=False) for server in servers)
    by_servers = sum(received(server, from_servers=True) for server in servers)
    assert by_central + by_servers >= 3 * SIZE_BYTES
    assert by_central <= 1.6 * SIZE_BYTES, "instead of three copies"
    # Whoever is not granted the film is told nothing, and dials nobody.
    others = {peer["name"] for peer in outsider.status()["peers"]}
    assert others == {"central"}
