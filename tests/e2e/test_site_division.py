"""The servers of a cinema fetch each byte about once over its line, and share it inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.fetch_log import entry_line, read_log, recipe_line
from tests.fleet.events import EventTap
from tests.fleet.local import CommandFailed, FleetNode, LocalFleet
from tests.fleet.relay import Relay
from tests.fleet.scripts import noise
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")
SIZE_BYTES = 40 << 20
LINE_BYTES_PER_S = 4e6
"""From each of the two that hold everything."""


@dataclass(frozen=True)
class Cinema:
    """Two servers that reach central and a REPO over slow lines, and one another without."""

    fleet: LocalFleet
    lines: tuple[Relay, Relay]
    servers: tuple[FleetNode, FleetNode]
    source: Path


@pytest.fixture
def cinema(tmp_path: Path) -> Iterator[Cinema]:
    with (
        watched_fleet(tmp_path) as fleet,
        Relay(fleet.address()) as to_central,
        Relay(fleet.address()) as to_repo,
    ):
        central = fleet.found(advertise=to_central.address)
        to_central.target = central.address
        repo = FleetNode(fleet.base, "repo-1", "repo", fleet.address(), advertise=to_repo.address)
        to_repo.target = repo.address
        fleet.nodes["repo-1"] = repo
        repo.run("join", "-", stdin=fleet.token("repo-1", "repo") + "\n")
        repo.process.start()
        servers = [
            fleet.join(
                f"lyon-1-{kind}",
                "ice",
                site="lyon",
                room="1",
                kind=kind,
                extra="fetch_plans = true\n",
            )
            for kind in ("salle", "sas")
        ]
        for kind in KINDS:
            folder = tmp_path / "sources" / kind
            folder.mkdir(parents=True)
            (folder / "index").write_text(kind)
        source = tmp_path / "sources" / "feature"
        (source / "reel.bin").write_bytes(b"".join(noise("division", SIZE_BYTES)))
        with EventTap(repo) as replicated:
            for kind in KINDS:
                fleet.publish(tmp_path / "sources" / kind, f"film-{kind}", kind)
            serial = central.status()["trust"]["serial"]
            replicated.wait("listings.complete", lambda event: event["serial"] == serial)
        repo.wait(lambda status: status["storage"]["trees"] == len(KINDS), what="replication")
        for server, sibling in (servers, servers[::-1]):
            meets(server, {"central", "repo-1", sibling.name})
        yield Cinema(fleet, (to_central, to_repo), (servers[0], servers[1]), source)


def meets(server: FleetNode, others: set[str]) -> None:
    """Return once a node is connected to all of these."""
    server.wait(
        lambda status: (
            {peer["name"] for peer in status["peers"] if peer["state"] == "admitted"} >= others
        ),
        what="meeting everybody",
    )


def replays(server: FleetNode) -> None:
    """What a daemon decided follows from what it was told, step by step; its command says so."""
    logs = sorted((server.state / "fetch-plans").glob("*.jsonl"))
    assert len(logs) == len(KINDS)
    longest = max(logs, key=lambda path: path.stat().st_size)
    for path in logs:
        result = server.json("replay", str(path))
        assert result["ok"], result
        assert result["finished"]
        assert result["missing_spans"] == 0
    lines = longest.read_text().splitlines(keepends=True)
    recipe, entries = read_log(lines)
    assert len(recipe.spans) > 30
    assert [recipe_line(recipe), *map(entry_line, entries)] == lines
    # A step that was never taken is noticed where it shows.
    came = next(number for number, line in enumerate(lines) if '["SpanReceived"' in line)
    longest.write_text("".join([*lines[:came], *lines[came + 1 :]]))
    with pytest.raises(CommandFailed) as failed:
        server.run("replay", str(longest))
    assert failed.value.code == 7


@pytest.mark.long
def test_two_servers_fetch_hardly_more_than_one_copy_over_their_line(cinema: Cinema) -> None:
    for line in cinema.lines:
        line.count_again()
        line.rate_bytes_per_s = LINE_BYTES_PER_S
    cinema.fleet.apply(
        "film",
        scripts={kind: f"film-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2126-01-02T00:00:00Z",
        sites='["lyon"]',
    )
    for server in cinema.servers:
        server.wait_active("film")
        check_arrived(cinema.source, server.release_file("film", "feature"))
    over_the_line = sum(line.down_bytes for line in cinema.lines)
    inside = [
        sum(
            peer["span_bytes_received"]
            for peer in server.status()["peers"]
            if peer["name"].startswith("lyon-")
        )
        for server in cinema.servers
    ]
    for server in cinema.servers:
        replays(server)
    # What was asked for in the moment before they heard of one another may come twice.
    assert SIZE_BYTES <= over_the_line <= 1.2 * SIZE_BYTES, inside
    assert min(inside) > 0.2 * SIZE_BYTES
