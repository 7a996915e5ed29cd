"""Clocks that are an hour off: nodes join, fetch and switch all the same, and say so.

libfaketime shifts the clock of a node's processes; monotonic time stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
KINDS = ("feature", "sas", "loop")

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs libfaketime")


def shifted(offset: str) -> dict[str, str]:
    """The environment of processes whose clock is off by `offset`, as "+1h"."""
    return {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A central, right in time, with a release for Lyon that started long ago."""
    base = tmp_path_factory.mktemp("fleet")
    with watched_fleet(base) as fleet:
        fleet.found()
        for kind in KINDS:
            # small, because libfaketime makes every hand-over between threads expensive
            (base / kind).mkdir()
            (base / kind / "cues.json").write_text(f"the cues of a {kind}")
            fleet.publish(base / kind, f"film-{kind}", kind)
        yield fleet


def apply(fleet: LocalFleet, name: str) -> None:
    fleet.apply(
        name,
        scripts={kind: f"film-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2099-01-02T00:00:00Z",
        sites='["lyon"]',
    )


def clock_reasons(status: dict[str, Any]) -> list[tuple[str, str]]:
    """What health says about clocks: codes and sentences."""
    return [
        (one["code"], f"{one['sentence']}. {one['remedy']}")
        for one in status["health"]["reasons"]
        if one["code"].startswith("clock")
    ]


@pytest.mark.parametrize(
    ("offset", "kind", "code", "says"),
    [
        ("+1h", "salle", "clock_ahead", "60 minutes ahead"),
        ("-1h", "sas", "clock_behind", "60 minutes behind"),
    ],
)
def test_a_node_whose_clock_is_an_hour_off_works_and_says_so(
    fleet: LocalFleet, offset: str, kind: str, code: str, says: str
) -> None:
    before = fleet.central.status()["now_s"]
    room = fleet.join(
        f"lyon-1-{kind}", "ice", site="lyon", room="1", kind=kind, env=shifted(offset)
    )
    apply(fleet, "film")
    room.wait_active("film", timeout_s=60)
    for each in KINDS:
        check_arrived(fleet.base / each, room.release_file("film", each))
    status = room.wait(clock_reasons, what="saying that its clock is wrong")  # type: ignore[arg-type]
    assert abs(abs(status["now_s"] - before) - 3600) < 600, "libfaketime did nothing"
    [(found, sentence)] = clock_reasons(status)
    assert found == code
    assert says in sentence
    assert "NTP" in sentence
    assert status["health"]["level"] == "attention"
    # Whoever has the right time is told of nothing.
    assert clock_reasons(fleet.central.status()) == []
    assert says in room.run("status").stdout


def test_a_central_whose_clock_was_an_hour_ahead_goes_on_when_it_is_right_again(
    fleet: LocalFleet,
) -> None:
    central, room = fleet.central, fleet.nodes["lyon-1-salle"]
    _set_clock(room, None)
    assert clock_reasons(room.status()) == []
    _set_clock(central, "+1h")
    apply(fleet, "signed too early")
    room.wait_active("signed too early", timeout_s=60)
    assert [code for code, _ in clock_reasons(room.status())] == ["clock_behind"]
    _set_clock(central, None)
    apply(fleet, "signed in time")
    room.wait_active("signed in time", timeout_s=60)
    assert room.status()["trust"]["serial"] == central.status()["trust"]["serial"]


def _set_clock(node: FleetNode, offset: str | None) -> None:
    node.process.stop()
    node.env.clear()
    if offset is not None:
        node.env.update(shifted(offset))
    node.process.start()
