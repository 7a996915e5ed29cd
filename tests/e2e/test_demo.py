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
from typing import Any, Final

import jsonschema
import pytest

from tests.demo.cast import LATE, NAMES, OTHERS, REPOS, REVOKED, ROOMS, ROTTEN, Fault
from tests.demo.summary import SCHEMA

pytestmark = pytest.mark.timeout(300)

IN_THE_TREE = (Fault.BYTES, Fault.FILE, Fault.MODE, Fault.LINK, Fault.FOLDER)
SENTENCES = {
    Fault.BYTES: "has other bytes",
    Fault.FILE: "is missing",
    Fault.MODE: "is not executable there",
    Fault.LINK: "points to elsewhere",
    Fault.FOLDER: "the folder stills is missing",
    Fault.REFUSAL: f"gave {OTHERS[1].name} what it may not have",
    Fault.ACTIVATION: "has not switched to it: it starts on 2090-01-01",
    Fault.SHARING: "neither had anything from the other",
    Fault.DELTA: "for a change of 65.5 kB",
    Fault.MIX: f"{ROOMS[1].name} played a mix of two versions",
    Fault.ROT: f"{ROTTEN.name} answered {LATE.name}, which asked for the flipped byte",
    Fault.REPAIR: "is not repaired",
    Fault.CENTRAL: "central is still alive",
    Fault.LATE: f"At {LATE.name} the file",
    Fault.REVOKE: f"did not cut {REVOKED.name} off",
}
END_IT: Final = (Fault.ACTIVATION, Fault.CENTRAL)
"""After these there is nothing more to see."""


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
            try:
                out, err = process.communicate()
            except BaseException:  # it took too long, or Ctrl-C; what it has seen is worth reading
                process.terminate()
                sys.stderr.write(process.communicate()[1])
                raise
        assert out, err
        summary: dict[str, Any] = json.loads(out)
        jsonschema.validate(summary, SCHEMA)
        assert summary["errors_logged"] == 0, "\n".join([*summary["failures"], err])
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

    first = [script for script in summary["scripts"] if script["version"] == 1]
    files = sum(script["files"] for script in first)
    size_bytes = sum(script["size_bytes"] for script in first)
    assert {one["kind"] for one in first} == {"feature", "sas", "loop"}

    rooms = [member.name for member in ROOMS]
    assert [one["node"] for one in summary["comparisons"]] == [*rooms, LATE.name]
    for one in summary["comparisons"]:
        assert one["files"] == files
        assert one["links"] == 3
        assert one["differences"] == []
    assert {one["bytes"] for one in summary["comparisons"][:-1]} == {size_bytes}

    deliveries = {one["node"]: one for one in summary["deliveries"]}
    assert deliveries.keys() == {*rooms, *(repo.name for repo in REPOS)}
    for one in deliveries.values():
        assert one["held_bytes"] == size_bytes
        assert sum(one["by_source"].values()) == one["received_bytes"] > 0.9 * size_bytes

    assert sum(one["received_bytes"] for one in summary["sharing"]) > 0
    for one in summary["sharing"]:
        assert one["received_bytes"] <= one["sent_bytes"]

    asked = [one["peer"] for one in summary["refusals"]]
    assert asked == ["central", *(repo.name for repo in REPOS), *rooms, OTHERS[0].name]
    for one in summary["refusals"]:
        assert one["asker"] == OTHERS[1].name
        assert one["questions"] == one["refused"] == sum(one["codes"].values()) > 40
        assert one["payload_bytes"] == 0
    assert summary["answered"]["payload_bytes"] > 100_000
    assert summary["content_at_other"] == 0

    assert [one["node"] for one in summary["renewals"]] == rooms
    for one in summary["renewals"]:
        assert 0 < one["received_bytes"] < size_bytes / 10
        assert one["mixed"] == 0 < one["looks"]
    assert (summary["rot"]["node"], summary["rot"]["repaired"]) == (ROTTEN.name, True)
    assert "is damaged" in summary["rot"]["alarm"]
    sources = summary["orphaned"]["by_source"]
    assert "central" not in sources
    assert sum(sources.values()) > 0.9 * size_bytes
    revoked = summary["revoked"]
    assert 0 < revoked["received_bytes"] < revoked["size_bytes"]
    assert not stage.folder.exists(), "a demo that is not kept leaves nothing"


@pytest.mark.long
def test_whatever_is_not_as_it_should_be_makes_it_fail(stage: Stage) -> None:
    """All at once but for those after which the others could not be seen."""
    faults = [one for one in Fault if one not in (*END_IT, Fault.ROT)]
    code, summary = stage.play(*faults)
    assert (code, summary["ok"]) == (1, False)
    spoilt, *whole, late = summary["comparisons"]
    assert spoilt["node"] == ROOMS[0].name
    assert len(spoilt["differences"]) == len(IN_THE_TREE)
    for fault in IN_THE_TREE:
        assert any(SENTENCES[fault] in one for one in spoilt["differences"]), fault
    assert [one["differences"] for one in whole] == [[], []]
    assert len(late["differences"]) == 1
    for fault in faults:
        if fault not in IN_THE_TREE:
            assert any(SENTENCES[fault] in one for one in summary["failures"]), fault
    told = [one for one in summary["failures"] if SENTENCES[Fault.REFUSAL] in one]
    assert [one.split()[0] for one in told][:3] == ["central", *(repo.name for repo in REPOS)]
    assert any("that are not granted to its cinema" in one for one in summary["failures"])


@pytest.mark.parametrize(
    "fault", [Fault.ACTIVATION, pytest.param(Fault.CENTRAL, marks=pytest.mark.long)]
)
def test_what_leaves_nothing_more_to_see_ends_it(stage: Stage, fault: Fault) -> None:
    code, summary = stage.play(fault)
    assert (code, summary["ok"]) == (1, False)
    [failure] = summary["failures"]
    assert SENTENCES[fault] in failure


@pytest.mark.long
@pytest.mark.parametrize("fault", [one for one in Fault if one not in END_IT])
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
        assert len(stage.processes()) >= len(NAMES), "one is off, and there is the demo itself"
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
