"""Rot heals itself: what is damaged is fetched again and written in place, while it is in use."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.trees import check_arrived, write_varied
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")
REEL = "reels/01/panel-left.led"


@dataclass(frozen=True)
class Setting:
    fleet: LocalFleet
    sources: dict[str, Path]

    @property
    def central(self) -> FleetNode:
        return self.fleet.central

    @property
    def repo(self) -> FleetNode:
        return self.fleet.nodes["repo-1"]

    @property
    def room(self) -> FleetNode:
        return self.fleet.nodes["lyon-1-salle"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    base = tmp_path_factory.mktemp("heal")
    allowed = ("chunk_rotten", "tree_gone")
    with watched_fleet(base, expect=("tree_damaged",), allow=allowed) as fleet:
        fleet.found()
        repo = fleet.join("repo-1", "repo", site="paris")
        room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        sources = {kind: base / "sources" / kind for kind in KINDS}
        for kind, source in sources.items():
            write_varied(source, f"heal {kind}")
            fleet.publish(source, f"film-{kind}", kind)
        fleet.apply(
            "film",
            scripts={kind: f"film-{kind}" for kind in KINDS},
            prefetch="2026-01-01T00:00:00Z",
            start="2026-01-02T00:00:00Z",
            end="2126-01-02T00:00:00Z",
            sites='["lyon"]',
        )
        room.wait_active("film")
        repo.wait(lambda status: status["storage"]["trees"] == 3, what="replication")
        yield Setting(fleet, sources)


# Ways of damage: each is given the tree


def one_bit_flipped(tree: Path) -> None:
    flip(tree / REEL, 1_234_567)


def cut_short(tree: Path) -> None:
    keeping_time(tree / REEL, lambda path: os.truncate(path, 1_500_000))


def grown(tree: Path) -> None:
    os.truncate(tree / REEL, 5_000_100)


def a_file_removed(tree: Path) -> None:
    opened((tree / REEL).parent)
    (tree / REEL).unlink()


def a_folder_removed(tree: Path) -> None:
    for folder in (tree, *(tree / "cues", tree / "reels", tree / "reels/02")):
        opened(folder)
    shutil.rmtree(tree / "cues")
    shutil.rmtree(tree / "reels" / "02")


def something_added(tree: Path) -> None:
    opened(tree / "cues")
    (tree / "cues" / "notes.txt").write_text("not of this script")
    (tree / REEL).chmod(0o640)
    opened(tree)
    (tree / "current").unlink()
    (tree / "current").symlink_to("reels/02")


def the_tree_removed(tree: Path) -> None:
    for parent, _, _ in os.walk(tree):
        opened(Path(parent))
    shutil.rmtree(tree)


def flip(path: Path, at: int) -> None:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    keeping_time(path, change)


def keeping_time(path: Path, change: Callable[[Path], None]) -> None:
    """As a disk changes bytes: no time and no mode tells of it."""
    info = path.stat()
    path.chmod(0o644)
    change(path)
    path.chmod(info.st_mode & 0o7777)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def opened(folder: Path) -> None:
    folder.chmod(0o755)


WAYS = (
    one_bit_flipped, cut_short, grown, a_file_removed, a_folder_removed, something_added,
    the_tree_removed,
)  # fmt: skip
IN_PLACE = (one_bit_flipped, cut_short, grown, something_added)


def verified(node: FleetNode, script: str | None = None) -> bool:
    """What `archid verify` asks for, without the time that a command takes to start."""
    return bool(node.call("verify", script=script, manifest=None)["ok"])


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        *((way, "repo-1") for way in WAYS),
        *((way, "lyon-1-salle") for way in (one_bit_flipped, a_folder_removed, the_tree_removed)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_verify_finds_damaged_is_whole_again(
    setting: Setting, damage: Callable[[Path], None], name: str
) -> None:
    node = setting.fleet.nodes[name]
    tree = (node.scripts / "scripts" / "film-feature").resolve()
    inode = (tree / REEL).stat().st_ino
    with (tree / REEL).open("rb") as player, EventTap(node) as tap:
        damage(tree)
        assert not verified(node, "film-feature")
        alarm = tap.wait("alarm", lambda event: event["code"] == "tree_damaged")
        assert alarm["manifest"] == tree.name
        assert "film-feature version 1" in alarm["sentence"]
        tap.wait("tree.repaired", lambda event: event["manifest"] == tree.name)
        check_arrived(setting.sources["feature"], tree)
        if damage in IN_PLACE:
            # Whoever had it open reads right bytes again, and every link is healed.
            assert (tree / REEL).stat().st_ino == inode
            assert player.read() == (setting.sources["feature"] / REEL).read_bytes()
    assert node.status()["health"]["level"] == "ok"
    assert verified(node)
    if node is setting.room:
        setting.room.wait_active("film")
        check_arrived(setting.sources["feature"], node.release_file("film", "feature"))


def test_one_repair_heals_every_version_that_shares_the_file(setting: Setting) -> None:
    repo, source = setting.repo, setting.sources["loop"]
    (source / "cues" / "cue-001.json").write_text("changed")
    with EventTap(repo) as tap:
        setting.fleet.publish(source, "film-loop", "loop")
        placed = tap.wait("tree.placed")
    second = Path(placed["path"])
    first = next(
        Path(repo.state / "trees" / one["manifest"])
        for one in repo.json("scripts")["scripts"]
        if one["name"] == "film-loop" and one["version"] == 1
    )
    assert (first / REEL).samefile(second / REEL)
    flip(second / REEL, 4_000_000)
    with EventTap(repo) as tap:
        assert not repo.call("verify", script=None, manifest=first.name)["ok"]
        tap.wait("tree.repaired", lambda event: event["manifest"] == first.name)
    assert verified(repo)
    check_arrived(source, second)


def test_damage_outlives_the_process_that_found_it_until_somebody_has_the_bytes(
    setting: Setting,
) -> None:
    room, others = setting.room, (setting.repo, setting.central)
    for node in others:
        node.process.stop()
    tree = (room.scripts / "scripts" / "film-sas").resolve()
    one_bit_flipped(tree)
    with EventTap(room) as tap:
        assert not verified(room, "film-sas")
        tap.wait("alarm", lambda event: event["code"] == "tree_damaged")
    room.process.kill()
    room.process.start()
    status = room.wait(
        # An alarm once it knows that a release wants it.
        lambda found: any(
            (one["code"], one["level"]) == ("tree_damaged", "alarm")
            for one in found["health"]["reasons"]
        ),
        what="remembering the damage",
    )
    [script] = [one for one in status["deliveries"][0]["scripts"] if one["manifest"] == tree.name]
    assert script["state"] == "damaged"
    room.wait_active("film")  # the room is not dark for it
    with EventTap(room) as tap:
        for node in others:
            node.process.start()
        tap.wait("tree.repaired", lambda event: event["manifest"] == tree.name)
    check_arrived(setting.sources["sas"], tree)


def test_the_scrub_finds_rot_before_anybody_needs_it_and_goes_on_after_a_restart(
    setting: Setting,
) -> None:
    room = setting.room
    assert room.status()["scrub"]["state"] == "waiting"
    tree = max(room.state.glob("trees/*"))  # the last that a pass comes to
    one_bit_flipped(tree)
    # A pass at this rate takes far longer than this test; a reload lets it go.
    room.process.stop()
    room.storage = 'scrub_rate = "1MB"\nscrub_every = "1s"'
    room.write_config()
    room.process.start()
    begun = room.wait(
        lambda status: (
            status["scrub"]["state"] == "running" and status["scrub"]["checked_bytes"] > 0
        ),
        what="beginning a pass",
    )["scrub"]
    room.process.kill()
    room.process.start()
    again = room.status()["scrub"]
    assert (again["state"], again["begun_s"]) == ("running", begun["begun_s"])
    with EventTap(room) as tap:
        room.storage = 'scrub_rate = "1GB"\nscrub_every = "365d"'
        room.write_config()
        os.kill(room.process.pid, signal.SIGHUP)
        alarm = tap.wait("alarm", lambda event: event["code"] == "tree_damaged")
        assert alarm["manifest"] == tree.name
        finished = tap.wait("scrub.finished")
        assert finished["damaged"] == 1
    scrub = room.wait(lambda status: status["scrub"]["damaged"] == 0, what="repair")["scrub"]
    assert scrub["state"] == "waiting"
    assert scrub["found_damaged"] == 1
    assert scrub["repaired"] >= 1
    assert scrub["finished_s"] is not None
    assert verified(room)


def test_rot_that_a_peer_asks_for_is_repaired_and_then_served(setting: Setting) -> None:
    """A room that can reach nobody but the REPO gets the whole of it from there in the end."""
    repo, central, room = setting.repo, setting.central, setting.room
    tree = (repo.scripts / "scripts" / "film-feature").resolve()
    central.process.stop()
    room.process.stop()
    for one in (room.state / "trees").iterdir():
        the_tree_removed(one)
    one_bit_flipped(tree)
    with EventTap(repo) as tap:
        room.process.start()
        alarm = tap.wait("alarm", lambda event: event["code"] == "tree_damaged")
        assert alarm["manifest"] == tree.name
        # A partial holder: the room gets all but the rotten chunk.
        wait_scripts(room, ["fetching", "held", "held"])
        central.process.start()
        tap.wait("tree.repaired", lambda event: event["manifest"] == tree.name)
    wait_scripts(room, ["held"] * 3)
    check_arrived(setting.sources["feature"], room.release_file("film", "feature"))


def wait_scripts(room: FleetNode, states: list[str]) -> None:
    room.wait(
        lambda status: (
            sorted(script["state"] for script in status["deliveries"][0]["scripts"]) == states
        ),
        what=f"scripts being {states}",
    )
