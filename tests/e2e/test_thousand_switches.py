"""A player never sees two versions at once, however often a release is switched under it.

One opens the release anew for each round, another opens it once and stays with what it found. The
same players, with the same check, do see a mix when the links are moved one after the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.local import FleetNode
from tests.fleet.player import AGAIN, ONCE, playing
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")
SWITCHES = 1000
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetNode]:
    """A server that was given a second version of all three scripts after the first."""
    with watched_fleet(tmp_path_factory.mktemp("fleet")) as made:
        made.found()
        room = made.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        for generation, content in enumerate(("one", "two"), 1):
            for kind in KINDS:
                folder = made.base / "src" / kind
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "cue").write_text(f"{content} {kind}")
                made.publish(folder, kind, kind)
            made.apply(
                "film",
                scripts={kind: kind for kind in KINDS},
                sites='["lyon"]',
                prefetch="2026-01-01T00:00:00Z",
                start="2026-01-02T00:00:00Z",
                end="2098-01-01T00:00:00Z",
            )
            room.wait_active("film", generation=generation)
        yield room


@pytest.mark.long
def test_a_thousand_switches_never_show_a_player_two_versions_at_once(room: FleetNode) -> None:
    played = (room.scripts / "releases", "film", *KINDS)
    with playing(AGAIN, *played) as player, playing(ONCE, *played) as staying:
        for _ in range(SWITCHES // 2):
            room.call("rollback", release="film", reason="")
            assert room.call("activate", release="film", early=False)["changed"]
            assert not player.has_ended, "it saw a mix"
            assert not staying.has_ended, "what it had opened changed"
    assert player.report["wrong"] is None
    assert player.report["seen"] == ["one", "two"]
    assert staying.report["wrong"] is None
    assert staying.report["seen"] == ["two"]
    assert min(player.report["rounds"], staying.report["rounds"]) > 1
    [delivery] = room.status()["deliveries"]
    assert delivery["state"] == "active"


@pytest.mark.long
@pytest.mark.parametrize("how", [AGAIN, ONCE])
def test_the_same_player_sees_a_mix_when_links_are_moved_one_by_one(
    room: FleetNode, tmp_path: Path, how: str
) -> None:
    active = (room.scripts / "releases" / "film").resolve()
    room.call("rollback", release="film", reason="")
    previous = (room.scripts / "releases" / "film").resolve()
    room.call("activate", release="film", early=False)
    naive = tmp_path / "film"
    naive.mkdir()
    for kind in KINDS:
        (naive / kind).symlink_to((active / kind).resolve())
    deadline = time.monotonic() + PATIENCE_S
    with playing(how, tmp_path, "film", *KINDS) as player:
        while not player.has_ended and time.monotonic() < deadline:
            for bundle in (previous, active):
                for kind in KINDS:
                    new = naive / ".new"
                    new.symlink_to((bundle / kind).resolve())
                    os.replace(new, naive / kind)
    assert player.report["wrong"] is not None
    assert {"one", "two"} <= set(player.report["wrong"].split())
