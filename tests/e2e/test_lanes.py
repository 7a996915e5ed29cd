"""Content goes through lanes between real nodes, and through TLS where no lane can be opened."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.lane import LENGTH, preamble
from protocol.messages.lanes import LANE_ID_BYTES
from tests.fleet.film import publish_film, release_film
from tests.fleet.local import FleetNode, LocalFleet, local_fleet
from tests.fleet.middlebox import Middlebox
from tests.fleet.scripts import noise

FILM_BYTES = 24 << 20


def publish_long_film(fleet: LocalFleet) -> None:
    """A film whose feature is worth a lane."""
    publish_film(fleet)
    folder = fleet.base / "long"
    folder.mkdir()
    with (folder / "film.led").open("wb") as file:
        for block in noise("lanes", FILM_BYTES):
            file.write(block)
    fleet.publish(folder, "film-feature", "feature")


def connection_to(node: FleetNode, name: str) -> dict[str, Any]:
    [found] = [one for one in node.json("peers")["peers"] if one["name"] == name]
    return dict(found)


def admitted(status: dict[str, Any]) -> bool:
    return any(one["state"] == "admitted" for one in status["peers"])


def same_content(fleet: LocalFleet, node: FleetNode) -> bool:
    placed = node.scripts / "releases" / "film" / "feature" / "film.led"
    return placed.read_bytes() == (fleet.base / "long" / "film.led").read_bytes()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with local_fleet(tmp_path_factory.mktemp("lanes")) as made:
        made.found()
        made.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        publish_long_film(made)
        release_film(made)
        made.nodes["lyon-1-salle"].wait_active("film")
        yield made


def test_both_ends_say_that_content_comes_by_a_lane(fleet: LocalFleet) -> None:
    salle = fleet.nodes["lyon-1-salle"]
    at_salle, at_central = connection_to(salle, "central"), connection_to(fleet.central, salle.name)
    assert at_salle["lane"]
    assert at_central["lane"]
    assert at_salle["content_received_bytes"] == at_central["content_sent_bytes"] >= FILM_BYTES
    assert at_salle["received_bytes"] >= FILM_BYTES
    assert same_content(fleet, salle)
    assert "content by a lane" in salle.run("-v", "peers").stdout


@pytest.mark.parametrize("more", [b"", LENGTH.pack(27) + bytes(27)], ids=["silent", "talks"])
def test_a_lane_that_nobody_was_offered_gets_no_byte(fleet: LocalFleet, more: bytes) -> None:
    host, _, port = fleet.central.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as stranger:
        stranger.sendall(preamble(secrets.token_bytes(LANE_ID_BYTES)) + more)
        try:
            answer = stranger.recv(1)
        except ConnectionResetError:
            answer = b""
    assert answer == b""
    assert connection_to(fleet.central, "lyon-1-salle")["lane"], "others are not disturbed"


def test_content_goes_by_a_lane_again_when_central_has_come_back(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    salle = fleet.nodes["lyon-1-salle"]
    fleet.central.process.stop()
    salle.wait(lambda status: not admitted(status), what="central leaving")
    fleet.central.process.start()
    salle.wait(admitted, what="central coming back")
    folder = tmp_path / "next"
    folder.mkdir()
    (folder / "film.led").write_bytes((fleet.base / "long" / "film.led").read_bytes()[::-1])
    fleet.publish(folder, "film-feature", "feature")
    release_film(fleet)
    placed = salle.scripts / "releases" / "film" / "feature" / "film.led"
    salle.wait(
        lambda _: placed.read_bytes() == (folder / "film.led").read_bytes(),
        what="the next version",
    )
    assert connection_to(salle, "central")["lane"]


def test_where_only_tls_passes_everything_goes_through_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with (
        local_fleet(tmp_path_factory.mktemp("tls-only")) as fleet,
        Middlebox(fleet.address()) as box,
    ):
        [host, port] = box._listener.getsockname()[:2]
        box.target = fleet.found(advertise=f"{host}:{port}").address
        salle = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        publish_long_film(fleet)
        release_film(fleet)
        salle.wait_active("film")
        assert same_content(fleet, salle)
        assert not connection_to(salle, "central")["lane"]
        assert box.turned_away, "it was tried"
        assert '"lane_not_opened"' in salle.log.read_text()
