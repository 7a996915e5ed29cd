"""The demo as people run it, with small scripts: it ends well, and it can end badly.

Each fault that DEMO_BREAK injects must be noticed by the demo's own eyes; a demo that ends with 0
whatever happens would prove nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import pytest

from tests.demo.cast import NAMES, OTHER, REPO, ROOM, Fault
from tests.demo.summary import SCHEMA

pytestmark = pytest.mark.timeout(300)

IN_THE_TREE = (Fault.BYTES, Fault.FILE, Fault.MODE, Fault.LINK, Fault.FOLDER)
SENTENCES = {
    Fault.BYTES: "has other bytes",
    Fault.FILE: "is missing",
    Fault.MODE: "is not executable there",
    Fault.LINK: "points to elsewhere",
    Fault.FOLDER: "the folder stills is missing",
    Fault.REFUSAL: f"gave {OTHER.name} what it may not have",
    Fault.ACTIVATION: "has not switched to it: it starts on 2090-01-01",
}


class Stage:
    """Where one demo runs."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "demo"
        number = os.getpid()
        subnet = f"127.{192 + number // 250 % 60}.{1 + number % 250}"
        self.command = [sys.executable, "-m", "tests.demo", "--small", "--json"]
        self.command += ["--folder", str(self.folder), "--subnet", subnet]

    def begin(self, *faults: Fault) -> subprocess.Popen[str]:
        broken = ",".join(fault.value for fault in faults)
        return subprocess.Popen(
            self.command,
            env={**os.environ, "DEMO_BREAK": broken},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def play(self, *faults: Fault) -> tuple[int, dict[str, Any]]:
        """Run it to its end: the exit code, and what standard output holds, which is JSON."""
        with self.begin(*faults) as process:
            out, err = process.communicate()
        assert out, err
        summary: dict[str, Any] = json.loads(out)
        jsonschema.validate(summary, SCHEMA)
        assert summary["errors_logged"] == 0, err
        return process.returncode, summary

    def processes(self) -> list[int]:
        """Every process that has the folder on its command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(str(self.folder)) in line:
                found.append(int(entry.name))
        return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    with TemporaryDirectory(prefix="archid-") as base:  # short: sockets lie deep in it
        stage = Stage(Path(base))
        yield stage
        assert stage.processes() == [], "no process of the demo may be left"


def test_a_demo_that_ends_well_has_observed_everything(stage: Stage) -> None:
    code, summary = stage.play()
    assert (code, summary["ok"], summary["failures"]) == (0, True, [])
    assert [node["name"] for node in summary["nodes"]] == list(NAMES)
    assert len({node["pid"] for node in summary["nodes"]}) == len(NAMES)

    files = sum(script["files"] for script in summary["scripts"])
    size_bytes = sum(script["size_bytes"] for script in summary["scripts"])
    assert {one["kind"] for one in summary["scripts"]} == {"feature", "sas", "loop"}

    members = [member.name for member in ROOM]
    assert [one["node"] for one in summary["comparisons"]] == members
    for one in summary["comparisons"]:
        assert (one["files"], one["bytes"]) == (files, size_bytes)
        assert one["links"] == 3
        assert one["differences"] == []

    deliveries = {one["node"]: one for one in summary["deliveries"]}
    assert deliveries.keys() == {*members, REPO.name}
    for one in deliveries.values():
        assert one["held_bytes"] == size_bytes
        assert sum(one["by_source"].values()) == one["received_bytes"] > 0.9 * size_bytes

    assert [one["peer"] for one in summary["refusals"]] == ["central", REPO.name]
    for one in summary["refusals"]:
        assert one["asker"] == OTHER.name
        assert one["questions"] == one["refused"] == sum(one["codes"].values()) > 40
        assert one["payload_bytes"] == 0
    assert summary["answered"]["payload_bytes"] > 100_000
    assert summary["content_at_other"] == 0
    assert not stage.folder.exists(), "a demo that is not kept leaves nothing"


def test_what_is_not_equal_and_what_is_not_refused_makes_it_fail(stage: Stage) -> None:
    code, summary = stage.play(*IN_THE_TREE, Fault.REFUSAL)
    assert (code, summary["ok"]) == (1, False)
    spoilt, whole = summary["comparisons"]
    assert spoilt["node"] == ROOM[0].name
    assert len(spoilt["differences"]) == len(IN_THE_TREE)
    for fault in IN_THE_TREE:
        assert any(SENTENCES[fault] in one for one in spoilt["differences"]), fault
    assert whole["differences"] == []
    told = [one for one in summary["failures"] if SENTENCES[Fault.REFUSAL] in one]
    assert [one.split()[0] for one in told] == ["central", REPO.name]
    assert any("that are not granted to its cinema" in one for one in summary["failures"])


@pytest.mark.long
def test_a_release_that_does_not_become_active_makes_it_fail(stage: Stage) -> None:
    code, summary = stage.play(Fault.ACTIVATION)
    assert (code, summary["ok"]) == (1, False)
    [failure] = summary["failures"]
    assert SENTENCES[Fault.ACTIVATION] in failure
    assert summary["comparisons"] == []


@pytest.mark.long
@pytest.mark.parametrize("fault", [*IN_THE_TREE, Fault.REFUSAL])
def test_every_other_fault_alone_makes_it_fail(stage: Stage, fault: Fault) -> None:
    code, summary = stage.play(fault)
    assert (code, summary["ok"]) == (1, False)
    assert any(SENTENCES[fault] in failure for failure in summary["failures"])


def test_an_unknown_fault_is_refused_before_anything_starts(stage: Stage) -> None:
    environment = {**os.environ, "DEMO_BREAK": "bites"}
    done = subprocess.run(
        stage.command, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "DEMO_BREAK=bites is not known; there are bytes, file" in done.stderr
    assert done.stdout == ""
    assert not stage.folder.exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_stops_every_process_and_leaves_nothing(
    stage: Stage, number: signal.Signals
) -> None:
    with stage.begin() as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Start the fleet")
        assert len(stage.processes()) > len(NAMES)
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert out == ""
    assert not stage.folder.exists()


@pytest.mark.long
def test_a_kept_fleet_runs_on_until_it_is_stopped(stage: Stage) -> None:
    done = subprocess.run([*stage.command, "--keep"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(stage.processes()) == len(NAMES)
    for line in done.stderr.splitlines():
        if "archid.toml" in line:
            told = subprocess.run(line.split(), capture_output=True, text=True, check=False)
            assert told.returncode == 0, told.stderr
    again = subprocess.run(stage.command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "the fleet of an earlier demo still runs" in again.stderr
    assert len(stage.processes()) == len(NAMES)
    stopped = subprocess.run(
        [*stage.command, "--stop"], capture_output=True, text=True, check=False
    )
    assert stopped.returncode == 0, stopped.stderr
    assert not stage.folder.exists()
