"""One file of 20,000 changes: what travels is that file and next to nothing else.

Counted at both ends of the connections, in bytes on the wire, TLS included.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.scripts import noise, write_small_files
from tests.fleet.watched import watched_fleet

FILES = 20_000
FILE_BYTES = 4096
FOLDERS = 100
WIRE_BYTES = 200_000
KINDS = ("feature", "sas", "loop")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path) as fleet:
        fleet.found()
        fleet.join("repo-1", "repo", site="paris")
        fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        yield fleet


def apply(fleet: LocalFleet) -> None:
    fleet.apply(
        "film",
        scripts={kind: f"film-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2126-01-02T00:00:00Z",
        sites='["lyon"]',
    )


def counted(node: FleetNode, others: list[FleetNode]) -> tuple[int, int]:
    """What a node has received from these others and sent to them."""
    status = node.status()
    names = {other.name for other in others}
    peers = [peer for peer in status["peers"] if peer["name"] in names]
    assert {peer["name"] for peer in peers} == names, status["peers"]
    return (
        sum(peer["received_bytes"] for peer in peers),
        sum(peer["sent_bytes"] for peer in peers),
    )


def test_one_changed_file_of_20_000_costs_its_own_bytes_and_little_more(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    central, repo = fleet.central, fleet.nodes["repo-1"]
    room = fleet.nodes["lyon-1-salle"]
    sources = {kind: tmp_path / "sources" / kind for kind in KINDS}
    write_small_files(sources["feature"], FILES, FILE_BYTES, folders=FOLDERS, seed="delta")
    for kind in ("sas", "loop"):
        sources[kind].mkdir()
        (sources[kind] / "index").write_text(kind)
    for kind, folder in sources.items():
        fleet.publish(folder, f"film-{kind}", kind)
    with EventTap(repo) as replicated:
        apply(fleet)
        room.wait_active("film")
        repo.wait(lambda status: status["storage"]["trees"] == 3, what="replication")
        serial = central.status()["trust"]["serial"]
        replicated.wait("listings.complete", lambda event: event["serial"] == serial)
    link = room.scripts / "releases" / "film"
    before = link.resolve()

    changed = sources["feature"] / "0042" / "007042.bin"
    changed.write_bytes(b"".join(noise("another cue", FILE_BYTES)))
    start_repo = counted(repo, [central])
    start_room = counted(room, [central, repo])
    start_served = [counted(central, [repo, room]), counted(repo, [room])]
    with EventTap(repo) as replicated:
        again = fleet.publish(sources["feature"], "film-feature", "feature")
        assert (again["version"], again["new_bytes"]) == (2, FILE_BYTES)
        apply(fleet)
        room.wait_active("film", generation=2)
        repo.wait(lambda status: status["storage"]["trees"] == 4, what="replication")
        serial = central.status()["trust"]["serial"]
        replicated.wait("listings.complete", lambda event: event["serial"] == serial)

    received_repo = counted(repo, [central])[0] - start_repo[0]
    received_room = counted(room, [central, repo])[0] - start_room[0]
    served = [counted(central, [repo, room]), counted(repo, [room])]
    sent = sum(now[1] - then[1] for now, then in zip(served, start_served, strict=True))
    assert FILE_BYTES <= received_repo < FILE_BYTES + WIRE_BYTES
    assert FILE_BYTES <= received_room < FILE_BYTES + WIRE_BYTES
    # The other ends counted the same, for both receivers together.
    assert received_repo + received_room <= sent < 2 * (FILE_BYTES + WIRE_BYTES)

    assert (link / "feature" / "0042" / "007042.bin").read_bytes() == changed.read_bytes()
    assert diff(sources["feature"], link / "feature") == ""
    linked = copied = 0
    for name in sorted(os.listdir(before / "feature")):
        old = {one.name: one.inode() for one in os.scandir(before / "feature" / name)}
        new = {one.name: one.inode() for one in os.scandir(link / "feature" / name)}
        linked += len(old.items() & new.items())
        copied += len(old.items() - new.items())
    assert (linked, copied) == (FILES - 1, 1)
    for node in (central, repo):
        tree = (node.scripts / "scripts" / "film-feature").resolve()
        assert os.stat(tree / "0001" / "000001.bin").st_nlink == 2


def diff(source: Path, placed: Path) -> str:
    """What `diff -r` has to say."""
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", str(source), f"{placed}/"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr
