"""How fast `archid publish` takes a folder in: the first time, with nothing changed, with a little.

The real command against a real central, beside `cp -r` and `sync` of the same files and beside
BLAKE3 over them; all in turns, with warm memory and warm files. Large files are also published on
file systems that share extents between files (XFS and btrfs on a loop device; that takes root):
nothing is copied there, so it is read, cut and hashed only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from archid.store.ingest import CACHED_SHARE
from archid.store.syscalls import memory_bytes
from archid.store.tree_folder import remove_tree
from bench.benchmark import Outcome
from bench.inputs import discard
from bench.measuring import ProcessMeter, Spread, say, table, warm_files, warm_memory
from bench.pair import compare
from tests.fleet.local import LocalFleet, local_fleet
from tests.fleet.scripts import noise, write_small_files

FULL_BYTES: Final = 4 << 30
SHORT_BYTES: Final = 256 << 20
LARGE_FILES: Final = 4
FULL_FILES: Final = 50_000
SHORT_FILES: Final = 2_000
SMALL_BYTES: Final = 4096
HASH_THREADS: Final = 2
REFLINKS: Final[Mapping[str, tuple[str, ...]]] = {
    "XFS": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}

Row = dict[str, float]
Rows = dict[str, list[Row]]


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """For `python -m bench ingest`; `args.size` is that of the large files together."""
    size = args.size or (FULL_BYTES if args.full else SHORT_BYTES)
    files = args.files or (FULL_FILES if args.full else SHORT_FILES)
    rounds = args.rounds or 3
    found: dict[str, Any] = {}
    large, small = base / "large", base / "small"
    _write_large(large, size)
    found["large"] = _rounds(base / "on-large", large, size, rounds, changed=False)
    for kind, make in REFLINKS.items():
        found[f"large, {kind}"] = _with_reflinks(base, kind, make, large, size, rounds)
    shutil.rmtree(large)
    write_small_files(small, files, SMALL_BYTES, folders=min(200, files), seed="ingest")
    found["small"] = _rounds(base / "on-small", small, files * SMALL_BYTES, rounds, changed=True)
    shape = {"size": size, "files": files}
    figures = {kind: rows and _summary(rows) for kind, rows in found.items()}
    return Outcome({"shape": shape, "cases": figures}, list(_tables(figures, size, files)))


def _rounds(base: Path, source: Path, size: int, rounds: int, *, changed: bool) -> Rows:
    """Every measurement in turn, `rounds` times; each round publishes a script of its own."""
    base.mkdir()
    found: Rows = {}
    with local_fleet(base / "fleet") as fleet:
        fleet.found()
        for n in range(rounds):
            say(f"{source.name}, {base.name}: round {n + 1} of {rounds}")
            _warm(source)
            found.setdefault("BLAKE3 alone", []).append(_clocked(lambda: _hash_all(source)))
            _warm(source, size + size // 4)
            copy = base / f"copy {n}"
            found.setdefault("cp and sync", []).append(_clocked(partial(_copy, source, copy)))
            discard(copy)
            _warm(source, _publishing_takes(size))
            _publish_all(found, fleet, source, f"script {n}", changed=changed)
    if not changed:
        # Of few large files, so that nothing is slower afterwards (see `discard`).
        remove_tree(base)
    return found


def _publish_all(
    found: Rows, fleet: LocalFleet, source: Path, script: str, *, changed: bool
) -> None:
    steps = ["publish", "again", "nothing changed"]
    for step in steps:
        # "again" reads once more what was written just before the first time.
        row = _published(fleet, source, script)
        if step != "again":
            found.setdefault(step, []).append(row)
    compare(source, fleet.central.scripts / "scripts" / script)
    if changed:
        paths = sorted(path for path in source.rglob("*") if path.is_file())[::100]
        for path in paths:
            path.write_bytes(os.urandom(SMALL_BYTES))
        found.setdefault("1 % changed", []).append(_published(fleet, source, script))


def _published(fleet: LocalFleet, source: Path, script: str) -> Row:
    meter = ProcessMeter(fleet.central.process.pid)
    row = _clocked(lambda: fleet.publish(source, script, "feature"))
    usage = meter.read()
    return {**row, "cpu_s": row["cpu_s"] + usage.cpu_s, "peak_mb": usage.peak_mb}


def _with_reflinks(
    base: Path, kind: str, make: tuple[str, ...], large: Path, size: int, rounds: int
) -> Rows | None:
    """The large files on a disk of their own; None where that cannot be had."""
    if os.geteuid() or shutil.which(make[0]) is None:
        return None
    with _disk(base / kind, make, 2 * size + (1 << 30)) as disk:
        if disk is None:
            return None
        source = disk / "source"
        shutil.copytree(large, source)
        _sync()
        return _rounds(disk / "rounds", source, size, rounds, changed=False)


@contextmanager
def _disk(folder: Path, make: tuple[str, ...], size: int) -> Iterator[Path | None]:
    image = folder.with_name(folder.name + ".image")
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    made = subprocess.run([*make, str(image)], check=False, capture_output=True)
    mount = ["mount", "-o", "loop", str(image), str(folder)]
    if made.returncode or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        image.unlink()


def _write_large(folder: Path, size: int) -> None:
    folder.mkdir()
    for n in range(LARGE_FILES):
        with (folder / f"reel {n + 1}").open("wb") as file:
            for block in noise(f"ingest {n}", size // LARGE_FILES):
                file.write(block)
    _sync()


def _publishing_takes(size: int) -> int:
    """Memory that publishing fills with what it writes: none that it writes past the page cache.

    What is touched and not taken goes back to the host meanwhile, on the cores that are measured.
    """
    past_the_cache = size * CACHED_SHARE >= memory_bytes()
    return 0 if past_the_cache else size + size // 4


def _warm(source: Path, memory: int = 0) -> None:
    _sync()
    warm_files(source)
    if memory:
        warm_memory(memory)


def _sync() -> None:
    subprocess.run(["sync"], check=True)


def _copy(source: Path, target: Path) -> None:
    # Without sharing extents: that would be no copy where the file system can do it.
    subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
    _sync()


def _hash_all(source: Path) -> None:
    paths = [path for path in source.rglob("*") if path.is_file()]

    def work(part: list[Path]) -> None:
        buffer = memoryview(bytearray(1 << 20))
        for path in part:
            hasher = blake3()
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    hasher.update(buffer[:count])
            hasher.digest()

    with ThreadPoolExecutor(HASH_THREADS) as pool:
        parts = [paths[first::HASH_THREADS] for first in range(HASH_THREADS)]
        for _ in pool.map(work, parts):
            pass


def _clocked(work: Callable[[], object]) -> Row:
    """Seconds, and CPU seconds of this process and of those that it waited for."""
    began, before = time.perf_counter(), sum(os.times()[:4])
    work()
    return {"seconds": time.perf_counter() - began, "cpu_s": sum(os.times()[:4]) - before}


def _summary(rows: Rows) -> dict[str, dict[str, Any]]:
    """Spreads, and each step's time over that of `cp` and `sync` in the same round."""
    found: dict[str, dict[str, Any]] = {}
    for step, every in rows.items():
        found[step] = {key: vars(Spread.of(row[key] for row in every)) for key in sorted(every[0])}
        ratios = [
            row["seconds"] / base["seconds"]
            for row, base in zip(every, rows["cp and sync"], strict=True)
        ]
        found[step]["over_cp"] = vars(Spread.of(ratios))
    return found


def _tables(figures: Mapping[str, Any], size: int, files: int) -> Iterator[str]:
    for kind, steps in figures.items():
        if steps is None:
            yield f"{kind}: absent (needs root, loop devices and its mkfs)"
            continue
        amount = files * SMALL_BYTES if kind == "small" else size
        count = f"{files:,} files of 4 KiB" if kind == "small" else f"{LARGE_FILES} files"
        head = (f"{kind}: {count}", "s", "over cp and sync", "MB/s", "CPU s", "peak MB")
        rows = [
            (
                step,
                Spread(**one["seconds"]).text(2),
                Spread(**one["over_cp"]).text(2),
                f"{amount / 1e6 / one['seconds']['median']:.0f}",
                f"{one['cpu_s']['median']:.1f}",
                f"{one['peak_mb']['median']:.0f}" if "peak_mb" in one else "",
            )
            for step, one in steps.items()
        ]
        yield table(head, rows)
