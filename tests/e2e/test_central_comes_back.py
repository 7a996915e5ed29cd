"""Central comes back from a backup, or twice: the fleet never sees an older head.

The backup is a copy of the state folder that was taken while the daemon was stopped, as an
operator would take it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from archid.errors import Conflict, Unavailable
from tests.fleet.desk import wait_until_open
from tests.fleet.events import EventTap
from tests.fleet.forger import trusted_head
from tests.fleet.local import CommandFailed, FleetNode, LocalFleet
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path, allow=("central_stopped", "head_forked")) as fleet:
        yield fleet


def publish(fleet: LocalFleet, film: str, text: str) -> dict[str, Path]:
    folders = {}
    for kind in KINDS:
        folder = folders[kind] = fleet.base / "sources" / film / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index").write_text(f"{film} {kind} {text}")
        fleet.publish(folder, f"{film}-{kind}", kind)
    return folders


def apply(fleet: LocalFleet, film: str) -> None:
    fleet.apply(
        film,
        scripts={kind: f"{film}-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2126-01-02T00:00:00Z",
        sites='["lyon"]',
    )


def dial_at_once(central: FleetNode, *nodes: FleetNode) -> None:
    """Let central dial these when it starts: they wait ever longer before they dial it again."""
    central.peers = tuple(node.address for node in nodes)
    central.write_config()


def back_up(node: FleetNode) -> Path:
    """Stop the node and copy its state."""
    node.process.stop()
    backup = node.folder.parent / f"backup of {node.name}"
    shutil.copytree(node.state, backup, symlinks=True)
    return backup


def restore(node: FleetNode, backup: Path) -> None:
    """Put the copy in the place of the state folder, whose node has stopped."""
    for parent, _, _ in os.walk(node.state):
        os.chmod(parent, 0o700)
    shutil.rmtree(node.state)
    shutil.copytree(backup, node.state, symlinks=True)


def serial(node: FleetNode) -> int:
    return int(node.status()["trust"]["serial"])


def accepted_serials(node: FleetNode) -> list[int]:
    """Every head that the node has believed, in the order of its log."""
    lines = [json.loads(line) for line in node.log.read_text().splitlines() if line[:1] == "{"]
    return [int(line["serial"]) for line in lines if line["event"] == "head_accepted"]


def test_a_central_from_an_older_backup_imports_what_it_missed_and_signs_above_it(
    fleet: LocalFleet,
) -> None:
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris")
    room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    publish(fleet, "before", "first")
    apply(fleet, "before")
    room.wait_active("before")
    dial_at_once(central, repo, room)
    backup = back_up(central)
    central.process.start()
    wait_until_open(central)

    # All of this is unknown to the backup: versions, a release, another node.
    with EventTap(repo) as tap:
        latest = publish(fleet, "before", "second")
        after = publish(fleet, "after", "first")
        apply(fleet, "before")
        fleet.join("lyon-2-salle", "ice", site="lyon", room="2", kind="salle", start=False)
        apply(fleet, "after")
        room.wait_active("after")
        room.wait_active("before", generation=2)
        last = serial(central)
        tap.wait("listings.complete", lambda event: event["serial"] == last)
    repo.wait(lambda status: status["storage"]["trees"] == 9, what="replication")
    scripts = {(one["name"], one["version"]) for one in central.call("scripts")["scripts"]}
    releases = central.call("release.list")["releases"]

    central.process.stop()
    restore(central, backup)
    with EventTap(room) as tap:
        central.process.start()
        status = central.wait(
            lambda status: (
                status["trust"]["serial"] == last
                and status["health"]["level"] == "ok"
                and status["storage"]["trees"] == 9
            ),
            what="importing what is newer",
        )
        assert status["health"]["reasons"] == []
        assert {(s["name"], s["version"]) for s in central.call("scripts")["scripts"]} == scripts
        assert central.call("release.list")["releases"] == releases
        # It goes on where the fleet stands: the next version, the next generation, above.
        newest = publish(fleet, "after", "second")
        apply(fleet, "after")
        room.wait_active("after", generation=2)
        serials = [event["serial"] for event in tap.seen if event["event"] == "head.accepted"]
    assert serial(central) > last
    assert all(number > last for number in serials)
    assert {s["version"] for s in central.call("scripts")["scripts"]
            if s["name"] == "after-loop"} == {1, 2}  # fmt: skip
    assert newest["loop"] == after["loop"]
    for film, folders in (("before", latest), ("after", newest)):
        for kind, folder in folders.items():
            check_arrived(folder, room.scripts / "releases" / film / kind)
    for node in (repo, room):
        heads = accepted_serials(node)
        assert heads == sorted(set(heads))
        assert "head_forked" not in node.log.read_text()


@pytest.mark.long
def test_while_no_repo_answers_central_changes_nothing_and_says_what_to_do(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris")
    fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle", start=False)
    folders = publish(fleet, "film", "first")
    repo.wait(lambda status: status["storage"]["trees"] == 3, what="replication")
    central.process.stop()
    repo.process.stop()
    central.process.start()
    before = serial(central)

    definition = tmp_path / "film.toml"
    definition.write_text(
        'name = "film"\nfeature = "film-feature"\nsas = "film-sas"\nloop = "film-loop"\n'
        "prefetch = 2026-01-01T00:00:00Z\nstart = 2026-01-02T00:00:00Z\n"
        'end = 2126-01-02T00:00:00Z\n[targets]\nsites = ["lyon"]\n'
    )
    for command in (
        ("publish", str(folders["loop"]), "--script", "other", "--kind", "loop"),
        ("token", "create", "--role", "repo", "--name", "repo-2"),
        ("release", "apply", str(definition), "--yes"),
    ):
        with pytest.raises(CommandFailed) as refusal:
            central.run(*command)
        assert refusal.value.code == Unavailable.exit_code
        assert "waits for 1 of 1 REPOs" in refusal.value.err
        assert "trust its database" in refusal.value.err
    # Looking is allowed all the time.
    assert len(central.call("scripts")["scripts"]) == 3
    assert central.call("release.list")["releases"] == []
    reasons = {reason["code"]: reason for reason in central.status()["health"]["reasons"]}
    assert reasons["central_asking"]["remedy"]
    assert serial(central) == before

    repo.process.start()
    wait_until_open(central)
    central.run("publish", str(folders["loop"]), "--script", "other", "--kind", "loop")
    assert serial(central) > before


@pytest.mark.long
def test_two_centrals_are_noticed_and_the_one_that_parted_stops_and_says_so(
    fleet: LocalFleet,
) -> None:
    """A backup from before any REPO existed is started while the fleet is out of its sight."""
    central = fleet.found()
    backup = back_up(central)
    central.process.start()
    repo = fleet.join("repo-1", "repo", site="paris")
    room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    folders = publish(fleet, "film", "true")
    apply(fleet, "film")
    room.wait_active("film")
    last = serial(central)
    repo.wait(lambda status: status["trust"]["serial"] == last, what="the newest head")
    _, true_head, _ = trusted_head(repo.state)
    for node in (repo, room, central):
        node.process.stop()

    restore(central, backup)
    dial_at_once(central, repo, room)
    central.process.start()
    folder = folders["loop"]
    fleet.publish(folder, "impostor", "loop")
    parted = serial(central)
    assert parted < last

    with EventTap(central) as tap:
        repo.process.start()
        room.process.start()
        alarm = tap.wait("alarm", lambda event: event["code"] == "central_stopped")
    assert "two centrals" in alarm["sentence"] or "cannot be imported" in alarm["sentence"]
    [stopped] = [r for r in central.status()["health"]["reasons"] if r["code"] == "central_stopped"]
    assert stopped["level"] == "alarm"
    assert stopped["remedy"]
    with pytest.raises(CommandFailed) as refusal:
        central.run("publish", str(folders["loop"]), "--script", "more", "--kind", "loop")
    assert refusal.value.code == Conflict.exit_code
    assert "which central is the right one" in refusal.value.err

    for node in (repo, room):
        assert trusted_head(node.state)[1] == true_head
        assert node.status()["trust"]["serial"] == last
        heads = accepted_serials(node)
        assert heads == sorted(set(heads))
    for kind, folder in folders.items():
        check_arrived(folder, room.scripts / "releases" / "film" / kind)


@pytest.mark.long
def test_a_central_that_has_forgotten_the_fleet_takes_nothing_away(fleet: LocalFleet) -> None:
    """The one from the old backup signs greater numbers before anybody can tell it anything.

    Nodes cannot know that its heads are of another history. But being absent is not being
    withdrawn: all that was granted stays, plays, and is still served to whoever shows its entry.
    """
    central = fleet.found()
    backup = back_up(central)
    central.process.start()
    repo = fleet.join("repo-1", "repo", site="paris")
    room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    folders = publish(fleet, "film", "true")
    apply(fleet, "film")
    room.wait_active("film")
    last = serial(central)
    repo.wait(lambda status: status["storage"]["trees"] == 3, what="replication")
    for node in (repo, room, central):
        node.process.stop()

    restore(central, backup)
    central.process.start()
    while serial(central) <= last:
        fleet.publish(folders["loop"], f"other-{serial(central)}", "loop")
    parted = serial(central)
    for node in (repo, room):
        node.process.start()
        node.wait(lambda status: status["trust"]["serial"] == parted, what="the greater head")
        assert node.status()["storage"]["trees"] == 3
        node.run("verify")
    for kind, folder in folders.items():
        check_arrived(folder, room.scripts / "releases" / "film" / kind)
