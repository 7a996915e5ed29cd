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

from bench import comparing, delta, floor, history, idle, limits, plots, responsive, results
from bench.__main__ import BENCHMARKS, main
from bench.benchmark import Chart, Outcome
from bench.inputs import InputShape, discard, write_input
from bench.measuring import (
    ProcessMeter,
    Spread,
    family_switches,
    resident_mb,
    run_metered,
    switches_between,
    warm_memory,
)
from bench.network import network
from bench.pair import SMALL_FILE_BYTES, compare, goal_list
from bench.syncthing import seconds_of
from bench.transfer import TransferFailed
from tests.fleet.hosts import require_tools
from tests.fleet.namespaces import namespaces


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
    kept = tmp_path / "history.jsonl"
    arguments = ["--size", "1MiB", "--rounds", "1", "--folder", str(short), "--history", str(kept)]
    assert main(["pair", *arguments, "--peers", "syncthing", "--json", str(figures)]) == 0
    assert [entry.benchmark for entry in history.read(kept)] == ["pair"]
    found = json.loads(figures.read_text())
    programs = found["benchmarks"]["pair"]["programs"]
    assert programs["syncthing"] is None
    assert programs["archid"]["seconds"]["median"] > 0
    assert programs["archid"]["peak_mb"]["destination"] > 10
    assert "| syncthing | absent |" in capsys.readouterr().out
    assert not list(short.iterdir()), "its files are left behind"


@pytest.mark.long
def test_a_server_at_rest_is_measured(short: Path) -> None:
    found = idle.run(short, 20, 5, peers=(), rest_s=0, watch_s=1)
    assert set(found) == {"archid, fresh", "archid"}
    for rest in found.values():
        assert rest is not None
        assert (rest["resident_mb"] or 0) > 10


@pytest.mark.long
def test_publishing_is_measured(short: Path) -> None:
    figures = short / "figures.json"
    arguments = ["--files", "20", "--rounds", "1", "--folder", str(short)]
    arguments += ["--history", str(short / "history.jsonl")]
    arguments += ["--size", "4MiB"]
    assert main(["ingest", "chunking", *arguments, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["benchmarks"]
    assert found["chunking"]
    small = found["ingest"]["cases"]["small"]
    assert {"cp and sync", "publish", "nothing changed", "1 % changed"} <= small.keys()
    assert small["publish"]["seconds"]["median"] > 0


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


def test_the_exactness_of_a_limit_is_that_of_every_stretch_of_the_busy_time() -> None:
    # A start that takes a while, 200 bytes a second for ten seconds, and an end that does nothing.
    samples = [(n / 10, 0) for n in range(50)]
    samples += [(5 + n / 10, 20 * n) for n in range(101)]
    samples += [(15 + n / 10, 2000) for n in range(1, 50)]
    shares = list(limits.shares_of(samples, 200, 5.0))
    assert len(shares) > 20
    assert shares == pytest.approx([1.0] * len(shares))
    assert list(limits.shares_of(samples, 100, 5.0)) == pytest.approx([2.0] * len(shares))
    assert list(limits.shares_of(samples, 200, 60.0)) == []


@pytest.mark.long
def test_the_exactness_of_limits_is_measured(short: Path) -> None:
    figures = short / "figures.json"
    arguments = ["--size", "3MB", "--folder", str(short)]
    arguments += ["--history", str(short / "history.jsonl")]
    assert main(["limits", *arguments, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["benchmarks"]["limits"]["of_the_limit_share"]
    assert set(found) == {"up=8Mbit/s", "down=8Mbit/s"}
    assert all(0 < one["median"] < 1.5 for one in found.values())


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
        before = family_switches(process.pid)
        assert sum(before.values()) > 0
        assert switches_between({**before, 1: 10**9}, family_switches(process.pid)) >= 0
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


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median * 0.95, "high": median * 1.05}


def a_run(ours: float, theirs: float, size: int = 1) -> dict[str, object]:
    """Figures as `pair` gives them, with these seconds."""
    programs = {"archid": {"seconds": spread(ours)}, "rsync": {"seconds": spread(theirs)}}
    return {"shape": {"size_bytes": size}, "programs": {**programs, "nginx": None}}


def test_the_history_keeps_every_run_and_survives_a_line_that_was_cut_short(tmp_path: Path) -> None:
    kept = tmp_path / "deep" / "history.jsonl"
    for commit in ("aaaa1", "aaaa1+", "bbbb2"):
        history.append(kept, "this machine", commit, "pair", a_run(1, 1))
    with kept.open("a") as file:
        file.write('{"commit":"cccc')
    assert [entry.commit for entry in history.read(kept)] == ["aaaa1", "aaaa1+", "bbbb2"]
    assert [len(runs) for runs in history.of_commit(kept, "aaaa").values()] == [1]
    assert history.of_commit(kept, "cccc") == {}


def test_a_slower_machine_is_no_slowdown_and_a_slower_archid_is_one() -> None:
    [same] = comparing.changes("pair", a_run(1, 2), a_run(2, 4))
    assert (same.drift, same.ratio, same.is_worse) == (2, 1, False)
    [worse] = comparing.changes("pair", a_run(1, 2), a_run(2, 2))
    assert worse.is_worse
    assert not worse.is_better
    [better] = comparing.changes("pair", a_run(1, 2), a_run(1, 4))
    assert better.is_better


def test_a_rate_is_worse_when_it_falls() -> None:
    before, after = ({"programs": {"archid": {"mb_per_s": spread(rate)}}} for rate in (300, 100))
    [change] = comparing.changes("pair", before, after)
    assert change.drift is None
    assert change.is_worse


def test_two_commits_are_compared_by_their_newest_runs_of_the_same_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "history.jsonl"
    for commit, ours, size in (("aaaa1", 9, 1), ("aaaa1", 1, 1), ("aaaa1", 7, 5), ("bbbb2", 3, 1)):
        history.append(kept, "this machine", commit, "pair", a_run(ours, 1, size))
    assert main(["compare", "aaaa1", "bbbb2", "--history", str(kept)]) == 1
    table = capsys.readouterr().out
    assert "| pair | archid seconds | 1.00 (0.95 to 1.05) | 3.00 (2.85 to 3.15) |" in table
    assert "worse" in table
    assert main(["compare", "bbbb2", "aaaa1", "--history", str(kept)]) == 0


def test_a_commit_without_runs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "history.jsonl"
    history.append(kept, "this machine", "aaaa1", "pair", a_run(1, 1))
    with pytest.raises(SystemExit):
        main(["compare", "aaaa1", "dddd4", "--history", str(kept)])
    assert "no run of dddd4" in capsys.readouterr().err


def test_the_commit_of_a_run_says_whether_files_were_changed(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    assert history.commit_id(tmp_path) == history.UNKNOWN
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    clean = history.commit_id(tmp_path)
    assert history.resolve_commit("HEAD", tmp_path) == clean
    (tmp_path / "file").write_text("two")
    assert history.commit_id(tmp_path) == clean + history.CHANGED


def test_a_benchmark_that_runs_again_replaces_its_part_of_the_page(tmp_path: Path) -> None:
    run = {"at": "today", "commit": "aaaa1", "machine": "this machine"}
    for name, table in (("small", "| old |"), ("pair", "| pair |"), ("small", "| new |")):
        results.keep(tmp_path, name, f"what {name} is", Outcome({"n": 1}, [table]), run)
    page = results.write_page(tmp_path, ["pair", "small"]).read_text()
    assert page.index("| pair |") < page.index("| new |")
    assert "| old |" not in page
    assert "commit `aaaa1`" in page


def test_what_passes_a_network_of_its_own_is_counted_and_it_goes_with_the_block() -> None:
    require_tools()
    program = (
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "sending = socket.create_connection(listener.getsockname())\n"
        "receiving, _ = listener.accept()\n"
        "sending.sendall(bytes(100_000)); sending.close()\n"
        "while receiving.recv(65536): pass\n"
    )
    with network("counted") as own:
        assert own.namespace in namespaces()
        before = own.passed()
        subprocess.run([*own.prefix, sys.executable, "-c", program], check=True)
        after = own.passed()
    assert before is not None
    assert after is not None
    assert 100_000 < after - before < 110_000
    assert own.namespace not in namespaces()


def test_a_command_is_measured_with_its_children_and_fails_with_what_it_said() -> None:
    busy = [sys.executable, "-c", "sum(range(3_000_000))"]
    used, seconds = run_metered(["/bin/sh", "-c", '"$0" "$@"; true', *busy])
    assert 0 < used.cpu_s < 60
    assert seconds > 0
    assert used.peak_mb > 1
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run_metered(["/bin/sh", "-c", "echo no such film >&2; exit 3"])
    assert failed.value.returncode == 3
    assert "no such film" in failed.value.output


def test_the_floor_adds_up_its_parts(tmp_path: Path) -> None:
    found = floor.measure(tmp_path / "floor", 4 << 20)
    assert set(found.parts) == {*floor.SENDER, *floor.RECEIVER, floor.SYNC}
    assert not list((tmp_path / "floor").iterdir())
    even = floor.Floor(dict.fromkeys(found.parts, 0.1))
    assert even.sender == pytest.approx(0.3)
    assert even.receiver == pytest.approx(0.4)
    assert even.allowed_with_sync_mb_per_s == pytest.approx(even.allowed_mb_per_s * 7 / 8)
    assert even.one_thread_an_end_mb_per_s == pytest.approx((1 << 30) / 1e6 / 0.4)


def test_versions_differ_by_what_is_said_to_be_the_least_and_are_dated_apart(
    tmp_path: Path,
) -> None:
    before, changes = delta.large_versions(tmp_path / "large", 16 << 20)
    film = (before / "film.led").read_bytes()
    found = {change.name: (change, next(folder.iterdir())) for change, folder in changes.items()}
    change, path = found["overwritten"]
    pairs = zip(film, path.read_bytes(), strict=True)
    # One byte in 256 is the same by chance.
    assert sum(one != other for one, other in pairs) == pytest.approx(change.least_bytes, rel=0.01)
    assert path.stat().st_mtime > (before / "film.led").stat().st_mtime + 1
    change, path = found["inserted"]
    longer = path.read_bytes()
    assert len(longer) - len(film) == change.least_bytes
    assert longer.startswith(film[:5_000_000])
    assert longer.endswith(film[-5_000_000:])
    change, path = found["renamed"]
    assert path.read_bytes() == film
    assert path.name != "film.led"


def test_one_in_a_hundred_files_is_another(tmp_path: Path) -> None:
    before, changes = delta.small_versions(tmp_path / "small", 300)
    [(change, after)] = changes.items()
    differing = [
        path
        for path in before.rglob("*.bin")
        if path.read_bytes() != (after / path.relative_to(before)).read_bytes()
    ]
    assert len(differing) == 3
    assert change.least_bytes == 3 * SMALL_FILE_BYTES


def test_a_goal_is_reached_or_missed_from_its_own_side() -> None:
    [text] = goal_list(
        {
            "times as fast": {"goal": 2, "reached": 2.5},
            "MB": {"goal": 11.5, "reached": 11.6, "at_most": True},
        }
    )
    fast, wire = text.splitlines()
    assert fast.endswith("at least 2: **reached**")
    assert wire.endswith("at most 11.5: **missed**")


def test_quantiles_of_answers_are_answers_that_came() -> None:
    found = responsive.summary([float(value) for value in range(1, 101)])
    assert found == {"p50": 51, "p99": 100, "max": 100, "answers": 100}


def test_a_picture_is_drawn_where_there_is_something_to_draw_with(tmp_path: Path) -> None:
    bars: dict[str, Spread | float] = {"archid": Spread(2, 1, 3), "peer": 900.0}
    charts = [Chart("A title", "s", bars, goal=1), Chart("Another", "MB/s", {"archid": 0.0})]
    picture = tmp_path / "picture.png"
    plots.draw(charts, picture)
    assert picture.exists() == plots.available()
    if picture.exists():
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_a_round_made_gives_its_space_back_and_keeps_its_small_files(tmp_path: Path) -> None:
    inner = tmp_path / "tree" / "inner"
    inner.mkdir(parents=True)
    (inner / "large").write_bytes(bytes(2 << 20))
    (inner / "small").write_bytes(b".")
    (inner / "link").symlink_to("large")
    inner.chmod(0o555)
    discard(tmp_path / "tree")
    assert sorted(path.name for path in inner.iterdir()) == ["link", "small"]


@pytest.mark.long
def test_new_versions_small_files_and_answers_meanwhile_are_measured(
    short: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--size", "4MiB", "--files", "20", "--rounds", "1", "--folder", str(short)]
    arguments += ["--history", str(tmp_path / "history.jsonl"), "--results", str(tmp_path / "page")]
    names = ["small", "delta", "responsive"]
    assert main([*names, *arguments, "--peers", "rsync", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["benchmarks"]
    cases = found["delta"]["cases"]
    assert set(cases) == {"overwritten", "inserted", "renamed", "1 % of files"}
    for case in cases.values():
        assert case["programs"]["archid"]["seconds"]["median"] > 0
    asked = found["responsive"]["answers_ms"]
    assert all(one["answers"] > 0 for one in asked.values())
    page = (tmp_path / "page" / "README.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        f"## {name}: {BENCHMARKS[name].what}" for name in names
    ]
