"""`archid watch` beside real daemons: changes as lines, a screen on a terminal, and its end."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from archid.control.schema import OUTPUTS
from archid.control.validation import check
from tests.fleet.film import publish_film, release_film
from tests.fleet.local import FleetNode, LocalFleet, local_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with local_fleet(tmp_path_factory.mktemp("watch")) as made:
        made.found()
        made.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        publish_film(made)
        yield made


@contextmanager
def watching(node: FleetNode, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = node.command("watch", "--every", "0.2", *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # it has ended, or the test has failed


def wait_for(process: subprocess.Popen[str], wanted: dict[str, str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        change: dict[str, Any] = json.loads(line)
        check(change, OUTPUTS["watch.line"])
        if wanted.items() <= change.items():
            return change
    raise AssertionError(f"{wanted} was never said")


@pytest.mark.long
def test_central_and_the_server_tell_the_switch_as_lines(fleet: LocalFleet) -> None:
    with watching(fleet.central, "--json") as central:
        wait_for(central, {"who": "lyon-1-salle", "what": "health", "after": "well"})
        with watching(fleet.nodes["lyon-1-salle"], "--json") as salle:
            wait_for(salle, {"what": "peer central", "after": "connected"})
            release_film(fleet)
            wait_for(salle, {"what": "release film", "after": "active"})
            wait_for(central, {"who": "lyon-1-salle", "what": "release film", "after": "active"})
            salle.send_signal(signal.SIGINT)
            assert salle.wait(30) == 0
        central.send_signal(signal.SIGINT)
        assert central.wait(30) == 0


@pytest.mark.long
def test_on_a_terminal_it_is_one_screen_that_q_ends(fleet: LocalFleet) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        fleet.central.command("watch", "--every", "0.2"),
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while not (b"q quits" in shown and b"lyon-1-salle" in shown):  # a screen may come in parts
        shown += os.read(ours, 65536)
    os.write(ours, b"q")
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:
        pass  # the terminal has no writer any more
    assert process.wait(30) == 0
    assert b"\x1b[?1049l" in shown, "the screen from before comes back"
    os.close(ours)


@pytest.mark.long
def test_a_daemon_that_goes_away_is_said_and_its_return_too(fleet: LocalFleet) -> None:
    node = fleet.nodes["lyon-1-salle"]
    with watching(node, "--json") as process:
        wait_for(process, {"what": "health"})
        node.process.stop()
        away = wait_for(process, {"what": "daemon", "before": "here"})
        assert "No archid runs here" in away["after"]
        node.process.start()
        wait_for(process, {"what": "daemon", "after": "back"})
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
