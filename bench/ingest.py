"""How fast a folder is published, against FastCDC and BLAKE3 alone.

What is compared is CPU time, of work that is nothing but CPU on warm files, since neighbours on
the machine make wall-clock time say little. The rest is wall-clock time: the copy and the sync are
the disk's business. Every round runs all measurements one after the other on the same files, as
such machines drift by a factor of two within minutes: only ratios within a round mean something.

    python -m bench.ingest [--large-mib 256] [--files 20000] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

from blake3 import blake3

from archid.store import syscalls
from archid.store.chunking import Cutter
from archid.store.ingest import Ingest
from archid.store.intake import SourceFile
from archid.store.layout import StatePaths
from archid.store.tree_folder import TreeFolder, remove_tree
from protocol.ids import FleetId, PieceId
from protocol.layout import Layout
from protocol.manifest import ManifestRoot

FLEET: Final = FleetId(b"b" * 32)
BATCH_FILES: Final = 128
GOAL: Final = 0.5
"""Of FastCDC and BLAKE3 alone, the copy and the sync left out."""

Timings = dict[str, float]


def make_large(folder: Path, mib: int) -> None:
    """One file of random bytes."""
    folder.mkdir()
    with (folder / "film").open("wb") as file:
        for n in range(mib):
            file.write(blake3(n.to_bytes(4, "big")).digest(length=1 << 20))


def make_small(folder: Path, files: int) -> None:
    """Files of 16 KiB, a hundred in a folder."""
    for n in range(files):
        inner = folder / f"{n // 100:04}"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{n:06}").write_bytes(blake3(b"s" + n.to_bytes(4, "big")).digest(length=16384))


def measure(source: Path, work: Path) -> Timings:
    """Seconds for each part, once."""
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    for path in paths:
        path.read_bytes()
    room = sum(path.stat().st_size for path in paths) * 5 // 4
    began = time.process_time()
    _cut_all(paths)
    found: Timings = {"alone (CPU)": time.process_time() - began}
    copied = work / "copied"
    _touch_memory(room)
    found["copy"] = _timed(lambda: _copy_all(source, copied))
    found["copy sync"] = _timed(lambda: _sync(work))
    state = StatePaths(work / "state", work / "scripts")
    state.prepare()
    found["ingest, not copying (CPU)"] = _without_copying(state, source, work / "scratch")
    _touch_memory(room)
    first, layout = _publish(state, source, None)
    found |= {"ingest": first["read"], "ingest sync": first["placed"] - first["read"]}
    again, _ = _publish(state, source, layout)
    found["unchanged"] = again["read"]
    # Nothing is deleted in between: ext4 is slow to give out inodes that were freed seconds ago.
    return found


def _publish(
    state: StatePaths, source: Path, previous: Layout | None
) -> tuple[Timings, Layout | None]:
    """Publish as the daemon does; `read` is up to the sync, `placed` to the end."""
    began = time.perf_counter()
    marks: Timings = {}

    def keep(root: ManifestRoot, pieces: Mapping[PieceId, bytes]) -> None:
        del root, pieces
        marks["read"] = time.perf_counter() - began

    with Ingest(state, FLEET, "feature", "Bench", 1, previous=previous) as ingest:
        _feed(ingest, str(source), "")
        done = ingest.finish(keep)
    marks["placed"] = time.perf_counter() - began
    marks.setdefault("read", marks["placed"])
    return marks, None if done.unchanged else Layout.from_pieces(done.root, done.pieces)


def _without_copying(state: StatePaths, source: Path, scratch: Path) -> float:
    """CPU seconds of all that publishing does up to the sync, but making and writing files."""

    class Enough(Exception):
        pass

    def stop(*_: object) -> None:
        raise Enough

    def make_nothing(folder: TreeFolder, path: str, mode: int) -> int:
        del folder, path, mode
        return os.dup(fd)

    fd = os.open(scratch, os.O_RDWR | os.O_CREAT)
    began = time.process_time()
    with (
        mock.patch.object(TreeFolder, "create_file", make_nothing),
        mock.patch.object(syscalls, "pwrite_all", _write_nothing),
        mock.patch.object(syscalls, "clone_file", _clone_nothing),
        contextlib.suppress(Enough),
        Ingest(state, FLEET, "feature", "Bench", 1) as ingest,
    ):
        _feed(ingest, str(source), "")
        ingest.finish(stop)
    seconds = time.process_time() - began
    os.close(fd)
    return seconds


def _write_nothing(fd: int, data: object, offset: int) -> None:
    del fd, data, offset


def _clone_nothing(source_fd: int, target_fd: int) -> bool:
    del source_fd, target_fd
    return False


def _feed(ingest: Ingest, folder: str, prefix: str) -> None:
    batch: list[SourceFile] = []
    with os.scandir(folder) as listing:
        found = sorted(listing, key=lambda entry: entry.name)
    for entry in found:
        name = prefix + entry.name
        if entry.is_dir():
            ingest.add_folder(name)
            _feed(ingest, entry.path, name + "/")
            continue
        batch.append(SourceFile(name, os.open(entry.path, os.O_RDONLY), False, 0))
        if len(batch) == BATCH_FILES:
            _flush(ingest, batch)
    _flush(ingest, batch)


def _flush(ingest: Ingest, batch: list[SourceFile]) -> None:
    ingest.add_files(batch)
    for source in batch:
        os.close(source.descriptor)
    batch.clear()


def _touch_memory(size_bytes: int) -> None:
    """Make the kernel hold this much free memory: a virtual machine gives it back to its host, and
    getting it again costs more than what is measured."""
    with mmap.mmap(-1, size_bytes) as area:
        for at in range(0, size_bytes, mmap.PAGESIZE):
            area[at] = 1


def _cut_all(paths: list[Path]) -> None:
    cutter = Cutter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            for _ in cutter.cut(file):
                pass


def _copy_all(source: Path, target: Path) -> None:
    """A copy with modes and times and nothing else, written as plainly as it goes."""
    target.mkdir()
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        if entry.is_dir():
            _copy_all(Path(entry.path), target / entry.name)
            continue
        reading = os.open(entry.path, os.O_RDONLY)
        writing = os.open(f"{target}/{entry.name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        info = os.fstat(reading)
        while data := os.read(reading, 1 << 20):
            os.write(writing, data)
        os.utime(writing, ns=(info.st_mtime_ns, info.st_mtime_ns))
        os.close(writing)
        os.close(reading)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    syscalls.syncfs(fd)
    os.close(fd)


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def summary(rounds: list[Timings], size_bytes: int) -> dict[str, object]:
    """Medians with their extremes, and the ratios, each taken within its round."""
    rows: dict[str, object] = {
        name: {
            "seconds": statistics.median(times := [each[name] for each in rounds]),
            "fastest": min(times),
            "slowest": max(times),
            "mb_per_s": size_bytes / 1e6 / statistics.median(times),
        }
        for name in rounds[0]
    }
    ratios = [each["alone (CPU)"] / each["ingest, not copying (CPU)"] for each in rounds]
    rows["ratio, copy and sync apart"] = statistics.median(ratios)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a table, and return 1 where the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    parser.add_argument("--large-mib", type=int, default=256)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to put the test files")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(arguments)
    results: dict[str, dict[str, object]] = {}
    base = Path(tempfile.mkdtemp(prefix="bench-ingest-", dir=args.folder))
    try:
        make_large(base / "large", args.large_mib)
        make_small(base / "small", args.files)
        sizes = {"large": args.large_mib << 20, "small": args.files * 16384}
        rounds: dict[str, list[Timings]] = {"large": [], "small": []}
        for n in range(args.rounds):
            for kind, timings in rounds.items():
                work = base / f"work {kind} {n}"
                work.mkdir()
                _sync(work)
                timings.append(measure(base / kind, work))
        results = {kind: summary(timings, sizes[kind]) for kind, timings in rounds.items()}
    finally:
        remove_tree(base)
    missed = False
    for kind, rows in results.items():
        print(f"{kind}:")
        for part, row in rows.items():
            if isinstance(row, dict):
                print(
                    f"  {part:26} {row['seconds']:7.2f} s"
                    f" ({row['fastest']:.2f} to {row['slowest']:.2f}), {row['mb_per_s']:6.0f} MB/s"
                )
            else:
                print(f"  {part}: {row:.2f}")
        ratio = rows["ratio, copy and sync apart"]
        missed |= isinstance(ratio, float) and ratio < GOAL
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
