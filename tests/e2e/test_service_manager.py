"""A real daemon and whoever manages it: signs of life, SIGHUP.

What systemd makes of it is tried in `test_systemd.py`, which takes minutes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from archid.control.client import ControlClient
from tests.expected_errors import ErrorWatch
from tests.fleet.local import FleetNode, local_fleet


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetNode]:
    """A central that is to show life every tenth of a second."""
    with local_fleet(tmp_path_factory.mktemp("managed")) as fleet:
        node = fleet.found(start=False)
        node.process = type(node.process)(node.config, node.log, {"WATCHDOG_USEC": "300000"})
        node.process.start()
        yield node


def test_a_daemon_that_is_watched_goes_on_showing_life(central: FleetNode) -> None:
    told = central.process._notify
    told.settimeout(30)
    messages = [told.recv(4096) for _ in range(5)]
    assert messages.count(b"WATCHDOG=1") >= 4


def test_a_hangup_makes_a_daemon_read_its_configuration_again(
    central: FleetNode, expected_errors: ErrorWatch
) -> None:
    expected_errors.watch(central.log)
    expected_errors.expect("config_not_reloaded")
    good = central.config.read_text()

    def reasons() -> set[str]:
        return {reason["code"] for reason in central.status()["health"]["reasons"]}

    assert "disk_nearly_full" not in reasons()
    for text, event in (
        (good.replace('"16MiB"', '"900TB"'), "config.reloaded"),
        (good.replace("keep_free", "kep_free"), "config.not_reloaded"),
    ):
        central.config.write_text(text)
        said = hang_up(central)
        assert said["event"] == event
        assert "disk_nearly_full" in reasons()  # as the good one said, not the bad one
    assert "keep_free" in said["sentence"]
    central.config.write_text(good.replace('listen = ["', 'listen = ["127.0.0.1:0", "'))
    said = hang_up(central)
    assert (said["changed"], said["needs_restart"]) == (["storage.keep_free"], ["network.listen"])
    assert "disk_nearly_full" not in reasons()
    central.config.write_text(good)


def hang_up(node: FleetNode) -> dict[str, Any]:
    """SIGHUP; returns what the daemon says of its configuration."""
    with ControlClient(node.socket).start("events.subscribe", {"prefixes": ["config."]}) as events:
        events.limit_silence(30)
        first = events.next_event()  # that it listens now
        assert first is not None
        os.kill(node.process.pid, signal.SIGHUP)
        said = events.next_event()
    assert said is not None
    return said
