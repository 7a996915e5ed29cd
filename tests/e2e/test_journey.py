"""One script travels: published on central, carried by a REPO, played in the rooms.

Real processes, real TLS, real files; what arrived is judged by sha256sum and find.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fleet.desk import at_the_desk
from tests.fleet.events import EventTap
from tests.fleet.inotify import CREATE, DELETE, MOVED_TO, FileWatch
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.trees import check_arrived, listing, write_varied
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")
PLAYER_GROUP = "games"
DAY_S = 86_400
MOVED_FROM = 0x40

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="running a program as another user")


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    """Central, a REPO and a room in Lyon; a server in Nice is enrolled and switched off."""
    # Not below pytest's own folder, which only its owner may pass through: a player reads here.
    with tempfile.TemporaryDirectory(prefix="archid-journey-") as base:
        os.chmod(base, 0o711)  # noqa: S103 - the point of it
        with watched_fleet(Path(base)) as fleet:
            fleet.found()
            fleet.join("repo-1", "repo", site="paris")
            player = f'[player]\ngroup = "{PLAYER_GROUP}"\n'
            fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle", extra=player)
            fleet.join("nice-1-salle", "ice", site="nice", room="1", kind="salle", start=False)
            yield fleet


@pytest.fixture
def room(fleet: LocalFleet) -> FleetNode:
    return fleet.nodes["lyon-1-salle"]


def moment(offset_s: float) -> str:
    """A TOML date and time, so many seconds from now."""
    when = datetime.datetime.fromtimestamp(int(time.time() + offset_s), datetime.UTC)
    return when.isoformat()


def publish_film(fleet: LocalFleet, base: Path, film: str) -> dict[str, Path]:
    """Write and publish a small script of each kind; returns the source folders by kind."""
    folders = {kind: base / kind for kind in KINDS}
    for kind, folder in folders.items():
        if not folder.exists():
            folder.mkdir()
            (folder / "index.json").write_text(f"{film} {kind}")
        fleet.publish(folder, f"{film}-{kind}", kind)
    return folders


def apply_film(
    fleet: LocalFleet, film: str, *, start_s: float = -DAY_S, sites: str = '["lyon"]'
) -> None:
    fleet.apply(
        film,
        scripts={kind: f"{film}-{kind}" for kind in KINDS},
        prefetch=moment(min(start_s, -DAY_S)),
        start=moment(start_s),
        end=moment(start_s + 30 * DAY_S),
        sites=sites,
    )


def test_a_script_arrives_whole_at_repo_and_room(
    fleet: LocalFleet, room: FleetNode, tmp_path: Path
) -> None:
    repo = fleet.nodes["repo-1"]
    write_varied(tmp_path / "feature", "journey")
    folders = publish_film(fleet, tmp_path, "journey")
    with EventTap(room) as tap:
        apply_film(fleet, "journey")
        tap.wait("release.activated", lambda event: event["name"] == "journey")
    repo.wait(lambda status: status["storage"]["trees"] == len(KINDS), what="replication")
    for kind, folder in folders.items():
        check_arrived(folder, room.scripts / "releases" / "journey" / kind)
        for node in (fleet.central, repo, room):
            link = node.scripts / "scripts" / f"journey-{kind}"
            assert not os.readlink(link).startswith("/")
            check_arrived(folder, link)
    assert room.run("verify").returncode == 0
    assert repo.run("verify").returncode == 0


def test_a_second_version_switches_by_one_rename_and_moves_little(
    fleet: LocalFleet, room: FleetNode, tmp_path: Path
) -> None:
    feature = tmp_path / "feature"
    write_varied(feature, "second")
    publish_film(fleet, tmp_path, "second")
    apply_film(fleet, "second")
    room.wait_active("second")
    link = room.scripts / "releases" / "second"
    before = link.resolve()
    old_files = {path.name: path.stat().st_ino for path in (before / "feature/cues").iterdir()}
    opened = os.open(link, os.O_RDONLY | os.O_DIRECTORY)

    os.truncate(feature / "cues" / "cue-007.json", 100)
    with (feature / "reels" / "01" / "panel-left.led").open("r+b") as file:
        file.seek(2_500_000)
        file.write(b"another cue")
    (feature / "cues" / "none.json").unlink()
    received = room.status()["traffic"]["received_bytes"]
    published = fleet.publish(feature, "second-feature", "feature")
    assert published["version"] == 2
    names = ["index.json"] * 2
    with FileWatch(link.parent, CREATE | DELETE | MOVED_FROM | MOVED_TO) as watch:
        apply_film(fleet, "second")
        room.wait_active("second", generation=2)
        (link.parent / "the end").touch()
        happened = []
        while (event := watch.wait()).name != "the end":
            happened.append(event)
    (link.parent / "the end").unlink()

    assert [event.mask for event in happened if event.name == "second"] == [MOVED_TO]
    check_arrived(feature, link / "feature")
    assert names == [path.name for kind in ("sas", "loop") for path in (link / kind).iterdir()]
    # Whoever opened the release before goes on to see all of it as it was.
    assert os.stat("feature/cues/cue-007.json", dir_fd=opened).st_size == 707
    assert os.stat("feature/cues/none.json", dir_fd=opened).st_size == 0
    os.close(opened)
    new_files = {path.name: path.stat().st_ino for path in (link / "feature/cues").iterdir()}
    changed = {"cue-007.json", "none.json"}
    assert {name: ino for name, ino in old_files.items() if name not in changed} == {
        name: ino for name, ino in new_files.items() if name not in changed
    }
    assert room.status()["traffic"]["received_bytes"] - received < 700_000
    assert (room.scripts / "scripts" / "second-feature").resolve() == (link / "feature").resolve()


def test_publishing_the_same_again_makes_no_version(fleet: LocalFleet, tmp_path: Path) -> None:
    write_varied(tmp_path / "loop", "same")
    assert fleet.publish(tmp_path / "loop", "same-loop", "loop")["version"] == 1
    head = fleet.central.status()["trust"]["serial"]
    again = fleet.publish(tmp_path / "loop", "same-loop", "loop")
    assert again["unchanged"]
    assert again["version"] == 1
    assert fleet.central.status()["trust"]["serial"] == head


def test_a_release_that_starts_later_is_ready_before_and_switches_at_its_start(
    fleet: LocalFleet, room: FleetNode, tmp_path: Path
) -> None:
    folders = publish_film(fleet, tmp_path, "later")
    with EventTap(room) as tap:
        apply_film(fleet, "later", start_s=3600)
        tap.wait("release.ready", lambda event: event["name"] == "later")
        [delivery] = [one for one in room.status()["deliveries"] if one["name"] == "later"]
        assert delivery["state"] == "ready"
        assert not os.path.lexists(room.scripts / "releases" / "later")

        start_s = int(time.time()) + 3
        apply_film(fleet, "later", start_s=start_s - time.time() + 0.5)
        switched = tap.wait("release.activated", lambda event: event["name"] == "later")
    [delivery] = [one for one in room.status()["deliveries"] if one["name"] == "later"]
    assert delivery["start_s"] >= start_s
    assert switched["at_s"] >= delivery["start_s"]
    assert switched["generation"] == delivery["generation"] == 2
    assert delivery["state"] == "active"
    for kind, folder in folders.items():
        check_arrived(folder, room.scripts / "releases" / "later" / kind)


def test_a_release_before_its_prefetch_is_not_fetched(
    fleet: LocalFleet, room: FleetNode, tmp_path: Path
) -> None:
    publish_film(fleet, tmp_path, "early")
    trees = room.status()["storage"]["trees"]
    fleet.apply(
        "early",
        scripts={kind: f"early-{kind}" for kind in KINDS},
        prefetch=moment(3600),
        start=moment(7200),
        end=moment(DAY_S),
        sites='["lyon"]',
    )
    planned = room.wait(
        lambda status: any(one["name"] == "early" for one in status["deliveries"]),
        what="hearing of the release",
    )
    [delivery] = [one for one in planned["deliveries"] if one["name"] == "early"]
    assert delivery["state"] == "planned"
    assert planned["storage"]["trees"] == trees


def test_a_server_that_is_no_longer_targeted_switches_the_release_off_and_keeps_the_rest(
    fleet: LocalFleet, room: FleetNode, tmp_path: Path
) -> None:
    for film in ("moved", "staying"):
        (tmp_path / film).mkdir()
        publish_film(fleet, tmp_path / film, film)
        apply_film(fleet, film)
        room.wait_active(film)
    with EventTap(room) as tap:
        apply_film(fleet, "moved", sites='["nice"]')
        tap.wait("release.withdrawn", lambda event: event["name"] == "moved")
    assert not os.path.lexists(room.scripts / "releases" / "moved")
    check_arrived(tmp_path / "staying" / "loop", room.scripts / "releases" / "staying" / "loop")


def test_a_withdrawn_release_is_switched_off_everywhere(
    fleet: LocalFleet, room: FleetNode, tmp_path: Path
) -> None:
    publish_film(fleet, tmp_path, "withdrawn")
    apply_film(fleet, "withdrawn")
    room.wait_active("withdrawn")
    with EventTap(room) as tap:
        at_the_desk(
            fleet, lambda service: service.withdraw_release("withdrawn", confirm=True, by="test")
        )
        tap.wait("release.withdrawn", lambda event: event["name"] == "withdrawn")
    assert not os.path.lexists(room.scripts / "releases" / "withdrawn")
    [delivery] = [one for one in room.status()["deliveries"] if one["name"] == "withdrawn"]
    assert delivery["state"] == "withdrawn"
    shown = fleet.central.call("release.show", release="withdrawn")
    assert shown["state"] == "withdrawn"


@as_root
def test_the_players_group_may_read_what_plays_and_change_nothing(
    fleet: LocalFleet, room: FleetNode, tmp_path: Path
) -> None:
    write_varied(tmp_path / "feature", "player")
    publish_film(fleet, tmp_path, "player")
    apply_film(fleet, "player")
    room.wait_active("player")
    release = room.scripts / "releases" / "player"
    cue = release / "feature" / "cues" / "cue-000.json"
    tree = (release / "feature").resolve()

    everything = f"cd {release} && find -L feature sas loop -type f -exec cat {{}} + | wc -c"
    total = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    assert int(as_player(everything).stdout) >= total
    assert as_player(f"{release}/feature/bin/empty-tool").returncode == 0
    assert as_player(f"ls -l {room.scripts}/releases {room.scripts}/scripts").returncode == 0
    for attempt in (
        f"echo x > {cue}",
        f"echo x > {tree}/new",
        f"rm -f {cue}",
        f"chmod u+w {cue}",
        f"mv {tree}/cues {tree}/other",
        f"rm {release}",
        f"ln -sfn /tmp {release}",
        f"touch {room.scripts}/releases/other",
        f"rm -rf {room.state}/trees/*",
        f"rm -rf {room.state}/bundles/*",
        f"mkdir {room.state}/more",
    ):
        assert as_player(attempt).returncode != 0, attempt
    for private in (
        f"cat {room.state}/identity/key.pem",
        f"ls {room.state}/identity",
        f"ls {room.state}/documents",
        f"ls {room.state}/staging",
        f"ls {room.state}",
        f"cat {room.state}/trust",
        f"cat {room.state}/journal.db",
        f"cat {room.state}/node.db",
    ):
        done = as_player(private)
        assert done.returncode != 0, private
        assert not done.stdout, private
    assert as_player(f"cat {cue}", group="nogroup").returncode != 0
    check_arrived(tmp_path / "feature", release / "feature")


def as_player(command: str, *, group: str = PLAYER_GROUP) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command as a user who is only in the player's group."""
    no_groups: Sequence[str] = []
    return subprocess.run(
        ["sh", "-c", command],
        user="nobody",
        group=group,
        extra_groups=no_groups,
        capture_output=True,
        check=False,
        cwd="/",
    )


def test_nothing_is_left_in_staging(fleet: LocalFleet, room: FleetNode) -> None:
    for node in (fleet.central, fleet.nodes["repo-1"], room):
        assert listing(node.state / "staging") == ["", "d . -> "]
