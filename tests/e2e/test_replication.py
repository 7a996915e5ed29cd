"""REPOs hold everything and repair one another: of all disks that are lost, one left is enough."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.fleet.events import Event, EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.scripts import noise
from tests.fleet.trees import check_arrived, write_varied
from tests.fleet.watched import watched_fleet

pytestmark = pytest.mark.long

KINDS = ("feature", "sas", "loop")
RATE = "80Mbit/s"
"""Of the room: 80 MB take long enough for what happens in the middle."""
LOST = (
    "trust_file_damaged", "root_damaged", "leaf_damaged", "held_manifest_lost", "index_damaged",
)  # fmt: skip
"""What a node may say at ERROR that finds its folders empty."""


@dataclass(frozen=True)
class Setting:
    fleet: LocalFleet
    sources: dict[str, Path]

    @property
    def central(self) -> FleetNode:
        return self.fleet.central

    @property
    def repos(self) -> list[FleetNode]:
        return [self.fleet.nodes[f"repo-{number}"] for number in (1, 2, 3)]

    @property
    def room(self) -> FleetNode:
        return self.fleet.nodes["lyon-1-salle"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    base = tmp_path_factory.mktemp("replication")
    with watched_fleet(base, allow=LOST) as fleet:
        fleet.found()
        for number in (1, 2, 3):
            fleet.join(f"repo-{number}", "repo", site=f"city-{number}")
        addresses = [fleet.nodes[f"repo-{number}"].address for number in (1, 2, 3)]
        fleet.join(
            "lyon-1-salle", "ice", site="lyon", room="1", kind="salle", peers=addresses,
            extra=f'[limits]\ndown = "{RATE}"\n', start=False,
        )  # fmt: skip
        sources = {kind: base / "sources" / kind for kind in KINDS}
        for kind, source in sources.items():
            write_varied(source, f"replication {kind}")
        with (sources["feature"] / "long.led").open("wb") as file:
            for block in noise("long", 80_000_000):
                file.write(block)
        for kind, source in sources.items():
            fleet.publish(source, f"film-{kind}", kind)
        setting = Setting(fleet, sources)
        with ExitStack() as taps:
            replicated = [taps.enter_context(EventTap(repo)) for repo in setting.repos]
            fleet.apply(
                "film",
                scripts={kind: f"film-{kind}" for kind in KINDS},
                prefetch="2026-01-01T00:00:00Z",
                start="2026-01-02T00:00:00Z",
                end="2126-01-02T00:00:00Z",
                sites='["lyon"]',
            )
            serial = fleet.central.status()["trust"]["serial"]
            for tap in replicated:
                tap.wait("listings.complete", partial(is_of, serial))
        for repo in setting.repos:
            repo.wait(lambda status: status["storage"]["trees"] == 3, what="replication")
        yield setting


def is_of(serial: int, event: Event) -> bool:
    return bool(event["serial"] == serial)


def start_central(setting: Setting) -> None:
    """Start it, and return when it has heard the REPOs and signs again."""
    setting.central.process.start()
    setting.central.wait(
        lambda status: all(one["code"] != "central_asking" for one in status["health"]["reasons"]),
        what="hearing the REPOs",
    )


def replicated(setting: Setting, nodes: Sequence[FleetNode], trees: int) -> None:
    """Return when these hold everything, under central's newest head."""
    for node in nodes:
        node.wait(lambda status: status["storage"]["trees"] == trees, what=f"{trees} trees")
        for kind, source in setting.sources.items():
            check_arrived(source, node.scripts / "scripts" / f"film-{kind}")


def test_a_room_finishes_from_the_third_repo_when_two_are_killed_in_the_middle(
    setting: Setting,
) -> None:
    central, (first, second, third), room = setting.central, setting.repos, setting.room
    central.process.stop()
    os.kill(third.process.pid, signal.SIGSTOP)  # it holds everything, and says nothing yet
    try:
        room.process.launch()
        room.process.wait_ready()
        with EventTap(room) as tap:
            going = tap.wait(
                "fetch.progress",
                lambda event: (
                    0 < event["held_bytes"] < event["size_bytes"]
                    and event["size_bytes"] > 80_000_000
                ),
            )
            for repo in (first, second):
                repo.process.kill()
            scripts = room.status()["deliveries"][0]["scripts"]
            [feature] = [one for one in scripts if one["manifest"] == going["manifest"]]
            assert feature["held_bytes"] < feature["size_bytes"], "it was too fast for this test"
    finally:
        os.kill(third.process.pid, signal.SIGCONT)
    room.wait_active("film")
    for kind, source in setting.sources.items():
        check_arrived(source, room.release_file("film", kind))


def test_the_killed_repos_catch_up_with_what_was_published_meanwhile(setting: Setting) -> None:
    killed = setting.repos[:2]
    for repo in killed:
        repo.process.start()
    start_central(setting)
    for repo in killed:
        repo.process.kill()
    source = setting.sources["sas"]
    (source / "cues" / "cue-007.json").write_text("the second version")
    setting.fleet.publish(source, "film-sas", "sas")
    for repo in killed:
        repo.process.start()
    replicated(setting, setting.repos, 4)


def test_a_repo_that_lost_its_trees_and_documents_has_all_of_it_again_from_the_others(
    setting: Setting,
) -> None:
    setting.central.process.stop()
    first = setting.repos[0]
    first.process.stop()
    lose(first, "trees", "documents", "node.db", "node.db-wal", "node.db-shm", "staging")
    first.process.start()
    replicated(setting, [first], 4)
    assert first.call("verify", script=None, manifest=None)["ok"]


def test_central_has_the_scripts_again_from_the_repos_and_publishes_on(setting: Setting) -> None:
    central = setting.central
    lose(central, "trees", "documents", "node.db", "node.db-wal", "node.db-shm")
    start_central(setting)
    replicated(setting, [central], 4)
    source = setting.sources["loop"]
    (source / "cues" / "cue-007.json").write_text("published after the loss")
    setting.fleet.publish(source, "film-loop", "loop")
    replicated(setting, [central, *setting.repos], 5)
    assert central.call("verify", script=None, manifest=None)["ok"]


def lose(node: FleetNode, *names: str) -> None:
    """As a disk that was replaced: these are not there any more."""
    for name in names:
        path = node.state / name
        for parent, _, _ in os.walk(path):
            os.chmod(parent, 0o700)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
