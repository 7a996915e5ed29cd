"""Limits on real nodes: what went is never more than they let through, whoever changes them when.

Nothing here says how fast a transfer must be: bytes are compared with the time that has passed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from archid.net.token_bucket import BURST_S
from archid.rates import parse_rate
from tests.fleet.events import EventTap
from tests.fleet.local import CommandFailed, FleetNode, LocalFleet
from tests.fleet.scripts import LOOP, ScriptShape, write_script
from tests.fleet.watched import watched_fleet

FILM: Final = ScriptShape(reels=1, panel_bytes=1_500_000, cues=4)
KINDS: Final = ("feature", "sas", "loop")
SLOW: Final = "1Mbit/s"
BRISK: Final = "40Mbit/s"
SLACK_BYTES: Final = 300_000
"""A slice, and what nodes say to one another while they are not admitted yet."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path) as fleet:
        fleet.found()
        yield fleet


class Sent:
    """What a node has sent since this was made, against the time that has passed."""

    def __init__(self, node: FleetNode) -> None:
        self._node = node
        self._began_s = time.monotonic()
        self._before = self._total()

    def _total(self) -> int:
        return int(self._node.status()["traffic"]["sent_bytes"])

    def keeps_to(self, rate: str) -> int:
        """How many bytes; fails when the rate does not let that many through."""
        sent = self._total() - self._before
        passed_s = time.monotonic() - self._began_s
        bytes_per_s = parse_rate(rate)
        assert bytes_per_s is not None
        assert sent <= bytes_per_s * (1.05 * passed_s + BURST_S) + SLACK_BYTES
        return sent


def publish(fleet: LocalFleet, shape: ScriptShape = FILM) -> int:
    """A film for every cinema called lyon; its size."""
    size = 0
    for kind in KINDS:
        folder = fleet.base / "sources" / kind
        write_script(folder, "film", kind, shape if kind == "feature" else LOOP)
        size += fleet.publish(folder, f"film-{kind}", kind)["size_bytes"]
    fleet.apply(
        "film",
        scripts={kind: f"film-{kind}" for kind in KINDS},
        prefetch="2026-01-01T00:00:00Z",
        start="2026-01-02T00:00:00Z",
        end="2126-01-02T00:00:00Z",
        sites='["lyon"]',
    )
    return size


def in_force(node: FleetNode, key: str) -> dict[str, Any]:
    shown = node.json("limits", "show")
    [found] = [one for one in shown["limits"] if one["key"] == key]
    assert isinstance(found, dict)
    return found


def sent_at_least(size_bytes: int) -> Any:
    return lambda status: status["traffic"]["sent_bytes"] >= size_bytes


def test_a_limit_holds_a_transfer_and_another_one_counts_in_the_middle_of_it(
    fleet: LocalFleet,
) -> None:
    central = fleet.central
    central.run("limits", "set", f"up={SLOW}")
    salle = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    slow = Sent(central)
    size = publish(fleet)
    # The first spans are here: the transfer is under way.
    salle.wait(lambda status: status["traffic"]["span_bytes_received"] > 0, what="the first span")
    begun = slow.keeps_to(SLOW)
    assert begun < size

    brisk = Sent(central)
    # At the first rate all of it would take more than a minute and a half.
    central.run("limits", "set", f"up={BRISK}", "--until", "2h")
    salle.wait_active("film", timeout_s=60)
    rest = brisk.keeps_to(BRISK)
    assert begun + rest >= size

    # What was set outlives the daemon, and says who did it and until when.
    central.process.stop()
    central.process.start()
    held = in_force(central, "up")
    assert (held["rate_bytes_per_s"], held["origin"]) == (5_000_000, "set")
    assert held["by"]
    assert held["until_s"] > time.time()
    told = central.run("log", "--kind", "limits").stdout
    assert "limited up to 1Mbit/s" in told
    assert "limited up to 40Mbit/s until" in told
    central.run("limits", "clear")
    assert in_force(central, "up")["origin"] == "default"


def test_a_receiver_limits_what_comes_over_the_line_of_its_site_and_not_what_stays_inside(
    fleet: LocalFleet,
) -> None:
    limits = '[limits]\noutside_down = "16Mbit/s"\n'
    salle = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle", extra=limits)
    sas = fleet.join(
        "lyon-1-sas", "ice", site="lyon", room="1", kind="sas", start=False,
        extra='[limits]\noutside_down = "1Mbit/s"\n',
    )  # fmt: skip
    began_s = time.monotonic()
    before = salle.status()["traffic"]["received_bytes"]
    size = publish(fleet)
    salle.wait_active("film")
    received = salle.status()["traffic"]["received_bytes"] - before
    passed_s = time.monotonic() - began_s
    assert size <= received <= 2_000_000 * (1.05 * passed_s + BURST_S) + SLACK_BYTES
    # A neighbour that comes now has nearly all of it from inside, at another pace.
    sas.process.start()
    sas.wait_active("film")
    came = {one["name"]: one["received_bytes"] for one in sas.status()["traffic"]["nodes"]}
    assert came[salle.name] > size / 2


def test_a_reload_takes_up_the_limits_and_a_mistake_changes_nothing(tmp_path: Path) -> None:
    with watched_fleet(tmp_path, expect=("config_not_reloaded",)) as fleet:
        central = fleet.found()
        reload(
            central,
            '[limits]\nper_site_up = "4Mbit/s"\nweekly = ["daily per_site_up=2Mbit/s"]\n',
            "config.reloaded",
        )
        assert central.status()["limits"][4] == {
            "key": "per_site_up",
            "rate_bytes_per_s": 250_000,
        }
        held = in_force(central, "per_site_up")
        assert (held["origin"], held["line"]) == ("weekly", "daily per_site_up=2Mbit/s")
        told = reload(central, '[limits]\nper_site_up = "4Mb/s"\n', "config.not_reloaded")
        assert "[limits] per_site_up: '4Mb/s' may mean bits or bytes" in told["sentence"]
        assert central.status()["limits"][4]["rate_bytes_per_s"] == 250_000


def reload(node: FleetNode, extra: str, event: str) -> dict[str, Any]:
    """Let a daemon read its configuration again; returns what it says of it."""
    with EventTap(node) as tap:
        node.extra = extra
        node.write_config()
        os.kill(node.process.pid, signal.SIGHUP)
        return tap.wait(event)


def test_a_limit_that_cannot_be_is_refused_with_what_to_write(fleet: LocalFleet) -> None:
    with pytest.raises(CommandFailed) as failed:
        fleet.central.run("limits", "set", "upp=2Mbit/s")
    assert failed.value.code == 2
    assert "did you mean 'up'?" in failed.value.err
