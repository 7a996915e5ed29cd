"""Central's disk is lost: a backup and the REPOs make it whole, and the rooms notice nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from archid.control.schema import document
from archid.errors import Conflict
from tests.e2e.test_central_comes_back import KINDS, accepted_serials, apply, publish, serial
from tests.e2e.test_rotation import with_root_keys
from tests.fleet.desk import wait_until_open
from tests.fleet.events import EventTap
from tests.fleet.local import CommandFailed, LocalFleet
from tests.fleet.trees import check_arrived, sha256_sums
from tests.fleet.watched import watched_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def stopping(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path, expect=("keys_behind", "central_stopped")) as fleet:
        yield fleet


@pytest.mark.long
def test_a_central_whose_disk_is_lost_comes_back_from_its_backup_and_the_repos(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris")
    room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    publish(fleet, "before", "first")
    apply(fleet, "before")
    room.wait_active("before")
    secret = tmp_path / "backup-passphrase"
    secret.write_text("to be kept elsewhere\n")
    secret.chmod(0o600)
    file = tmp_path / "central.backup"
    taken = central.json("backup", str(file), "--passphrase-file", str(secret))
    jsonschema.validate(taken, document("backup"))
    assert taken["sealed"]
    assert taken["head"]["serial"] == serial(central)

    # The backup knows nothing of what follows, two starts of central included.
    central.process.stop()
    central.process.start()
    wait_until_open(central)
    with EventTap(repo) as tap:
        latest = publish(fleet, "before", "second")
        after = publish(fleet, "after", "first")
        apply(fleet, "before")
        apply(fleet, "after")
        room.wait_active("before", generation=2)
        room.wait_active("after")
        last = serial(central)
        tap.wait("listings.complete", lambda event: event["serial"] == last)
    repo.wait(lambda status: status["storage"]["trees"] == 9, what="replication")
    scripts = {(one["name"], one["version"]) for one in central.call("scripts")["scripts"]}
    releases = central.call("release.list")["releases"]
    node = central.status()["node"]

    central.process.kill()
    central.remove()
    central.folder.mkdir()
    central.peers = (repo.address,)
    central.write_config()
    restored = central.json("restore", str(file), "--passphrase-file", str(secret))
    jsonschema.validate(restored, document("restore"))
    assert restored["node"] == node
    with pytest.raises(CommandFailed) as refusal:
        central.run("restore", str(file), "--passphrase-file", str(secret))
    assert refusal.value.code == Conflict.exit_code

    with EventTap(room) as tap:
        central.process.start()
        # Scripts too are back, from the REPO.
        central.wait(
            lambda status: (
                status["trust"]["serial"] == last
                and status["health"]["level"] == "ok"
                and status["storage"]["trees"] == 9
            ),
            what="importing what is newer and fetching the scripts",
        )
        central.run("verify")
        listed = {(one["name"], one["version"]) for one in central.call("scripts")["scripts"]}
        assert listed == scripts
        assert central.call("release.list")["releases"] == releases
        newest = publish(fleet, "after", "second")
        apply(fleet, "after")
        room.wait_active("after", generation=2)
        # Above what was signed before, and above what may have been signed and seen by nobody.
        assert tap.wait("head.accepted")["serial"] > last + 1000
    for film, folders in (("before", latest), ("after", newest)):
        for kind in KINDS:
            check_arrived(folders[kind], room.scripts / "releases" / film / kind)
    for other in (repo, room):
        serials = accepted_serials(other)
        assert serials == sorted(set(serials))
        assert "head_forked" not in other.log.read_text()
    assert after["loop"] == newest["loop"]

    assert "to be kept elsewhere" not in central.log.read_text()


@pytest.mark.long
def test_a_backup_of_a_stopped_central_is_the_same_and_a_node_has_none(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris", start=False)
    publish(fleet, "film", "first")
    file = tmp_path / "backup"
    central.process.stop()
    said = central.run("backup", str(file))
    assert "not encrypted" in said.stderr
    for node, words in ((repo, "only a central"), (central, "not overwritten")):
        with pytest.raises(CommandFailed) as refusal:
            node.run("backup", str(file))
        assert words in refusal.value.err
    data = file.read_bytes()
    file.write_bytes(data[:-7])
    before = sha256_sums(central.state)
    with pytest.raises(CommandFailed, match=r"is there already|damaged"):
        central.run("restore", str(file))
    assert sha256_sums(central.state) == before


@pytest.mark.long
def test_a_backup_from_before_the_keys_were_replaced_needs_the_root_keys(
    stopping: LocalFleet, tmp_path: Path
) -> None:
    fleet = stopping
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris")
    publish(fleet, "film", "first")
    file = tmp_path / "central.backup"
    central.run("backup", str(file))
    central.run(*with_root_keys(fleet, "root", "rotate"))
    with EventTap(repo) as tap:
        publish(fleet, "film", "second")
        last = serial(central)
        tap.wait("listings.complete", lambda event: event["serial"] == last)
    repo.wait(lambda status: status["storage"]["trees"] == 6, what="replication")

    central.process.stop()
    passphrase = (central.folder / "passphrase").read_text()
    central.remove()
    central.folder.mkdir()
    (central.folder / "passphrase").write_text(passphrase)
    (central.folder / "passphrase").chmod(0o600)
    central.peers = (repo.address,)
    central.write_config()
    central.run("restore", str(file))
    central.process.start()
    # It knows all that was signed since, and has nothing to sign with.
    status = central.wait(
        lambda status: (
            "central_stopped" in {one["code"] for one in status["health"]["reasons"]}
            and status["trust"]["serial"] == last
        ),
        what="noticing that its keys are old",
    )
    [stopped] = [one for one in status["health"]["reasons"] if one["code"] == "central_stopped"]
    assert "root rotate" in stopped["remedy"]
    assert {one["version"] for one in central.call("scripts")["scripts"]} == {1, 2}
    with pytest.raises(CommandFailed):
        publish(fleet, "film", "third")
    made = central.json(*with_root_keys(fleet, "root", "rotate"))
    assert made["version"] == 3
    assert made["head"]["serial"] > last + 1000
    publish(fleet, "film", "third")
    told = serial(central)
    repo.wait(lambda status: status["trust"]["serial"] == told, what="the newest head")
    assert repo.status()["trust"]["root_version"] == 3
