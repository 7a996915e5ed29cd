"""The benchmarks run: tiny ones here, so that they cannot rot. What they measure is not judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import idle
from bench.__main__ import BENCHMARKS, main
from bench.inputs import InputShape, write_input
from bench.measuring import ProcessMeter, Spread, family_switches, resident_mb, warm_memory
from bench.pair import compare
from bench.syncthing import seconds_of
from bench.transfer import TransferFailed
from tests.fleet.scripts import ScriptShape


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: there is not much room for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)


def test_a_pair_is_measured_and_a_peer_that_is_not_here_is_said_to_be_absent(
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    diff = shutil.which("diff")
    assert diff is not None
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "diff").symlink_to(diff)
    monkeypatch.setenv("PATH", str(tools))
    figures = tmp_path / "figures.json"
    arguments = ["--size", "1MiB", "--rounds", "1", "--folder", str(short)]
    assert main(["pair", *arguments, "--peers", "syncthing", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    programs = found["benchmarks"]["pair"]["programs"]
    assert programs["syncthing"] is None
    assert programs["archid"]["seconds"]["median"] > 0
    assert programs["archid"]["peak_mb"]["destination"] > 10
    assert "| syncthing | absent |" in capsys.readouterr().out
    assert not list(short.iterdir()), "its files are left behind"


@pytest.mark.long
def test_a_server_at_rest_is_measured(short: Path) -> None:
    shape = ScriptShape(reels=1, panel_bytes=70_000, cues=2)
    found = idle.run(short, shape, peers=(), rest_s=0, watch_s=1)
    assert set(found) == {"archid, fresh", "archid"}
    for rest in found.values():
        assert rest is not None
        assert rest.resident_mb > 10


@pytest.mark.long
def test_publishing_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--files", "20", "--rounds", "1", "--folder", str(tmp_path)]
    assert main(["ingest", *arguments, "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["benchmarks"]["ingest"]


def test_a_destination_that_differs_is_no_success(tmp_path: Path) -> None:
    for name in ("source", "destination"):
        write_input(tmp_path / name, InputShape(3, 100))
    compare(tmp_path / "source", tmp_path / "destination")
    (tmp_path / "destination" / "0001" / "000001.bin").write_bytes(bytes(100))
    with pytest.raises(TransferFailed, match="differs"):
        compare(tmp_path / "source", tmp_path / "destination")


def test_an_unknown_name_is_refused_and_the_known_ones_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["pairs"])
    told = capsys.readouterr().err
    assert all(name in told for name in BENCHMARKS)


def test_a_figure_tells_its_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]).text() == "2.0 (1.0 to 3.0)"


def test_the_cpu_and_the_memory_of_a_child_count() -> None:
    program = (
        "import sys; sys.stdin.readline(); block = bytearray(b'x') * 40_000_000\n"
        "sum(range(3_000_000)); print(len(block), flush=True); sys.stdin.readline()"
    )
    shell = ["/bin/sh", "-c", '"$0" -c "$1"; true', sys.executable, program]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        meter = ProcessMeter(process.pid)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        process.stdout.readline()
        usage = meter.read()
        assert usage.cpu_s > 0
        assert usage.peak_mb > 40
        assert resident_mb(process.pid) > 40
        assert family_switches(process.pid) > 0
        process.stdin.close()


def test_memory_is_touched_and_given_back() -> None:
    warm_memory(8 << 20)
    assert resident_mb(os.getpid()) > 10


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-22T03:09:21.123456789Z", 1_795_316_961.123456),
        ("2026-11-22T04:09:21.5+01:00", 1_795_316_961.5),
        ("2026-11-22T03:09:21Z", 1_795_316_961.0),
    ],
)
def test_times_as_go_writes_them_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds, abs=1e-6)
