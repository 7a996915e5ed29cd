"""A new version for a node that holds the one before: seconds, and bytes on the wire.

Four changes: a large file with ten overwrites of 1 MiB, with 1 MiB inserted near its start, and
renamed; and many small files of which one in a hundred is new. Every round of every program begins
with a destination that has just got the first version from it; that is not measured. Taking in the
new version at the source (publishing, scanning, hashing) is not in the time either, but rsync,
which has nothing like it, does it all while it runs. The wire carries everything: manifests,
indexes, sums, acknowledgements; beside it stands the least that any program would have to send.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.benchmark import Chart, Outcome
from bench.inputs import InputShape, write_input
from bench.measuring import Spread, say, table, warm_files, warm_memory
from bench.pair import SMALL_FILE_BYTES, SPARE_BYTES, compare, goal_list
from bench.peers import chosen, installed_peers, opened
from bench.transfer import Contender, Transfer, counted_transfer
from tests.fleet.scripts import noise

MIB: Final = 1 << 20
OVERWRITES: Final = 10
CHANGED_SHARE: Final = 0.01
SUITED: Final = ("syncthing", "rsync", "rsync-fuzzy", "libtorrent", "casync")
SMALL_CHANGE: Final = "1 % of files"
TAKES_PART: Final = {
    # It does the same as without the option where the name stays.
    "rsync-fuzzy": ("renamed",),
    # To it a file of another name is another file, and the old one stays.
    "libtorrent": ("overwritten", "inserted", SMALL_CHANGE),
}
"""In which changes a program is compared that is not in all of them."""
FOLDER: Final = "film"
"""Every version lies in a folder of this name: to libtorrent it is the torrent's."""


@dataclass(frozen=True)
class Change:
    """One way to get from a version to the next."""

    name: str
    least_bytes: int
    """What has to travel whatever the program."""
    goal_mb: float | None
    """Of archid's bytes on the wire; None where the size is not the one that goals are set for."""


def benchmark(base: Path, args: argparse.Namespace) -> Outcome:
    """Both inputs, every change."""
    size = args.size or (1 << 30 if args.full else 32 * MIB)
    files = args.files or (20_000 if args.full else 1_000)
    rounds = args.rounds or 3
    peers = chosen(args.peers, SUITED)
    large = large_versions(base / "large", size)
    found = run(base / "large-file", large, peers=peers, rounds=rounds)
    shutil.rmtree(base / "large")
    small = small_versions(base / "small", files)
    others = [name for name in peers if SMALL_CHANGE in TAKES_PART.get(name, (SMALL_CHANGE,))]
    found |= run(base / "small-files", small, peers=others, rounds=rounds)
    changes = {change.name: change for change in (*large[1], *small[1])}
    figures: dict[str, Any] = {
        "shape": {"size_bytes": size, "files": files},
        "cases": {
            name: {"least_mb": changes[name].least_bytes / 1e6, "programs": _figures(runs)}
            for name, runs in found.items()
        },
    }
    figures["goals"] = dict(_reached(figures["cases"], changes))
    tables = ["\n".join(report(figures["cases"]))]
    tables += goal_list(figures["goals"])
    return Outcome(figures, tables, list(_charts(figures["cases"], changes)))


Versions = tuple[Path, Mapping[Change, Path]]
"""The first version's folder, and the folder that each change makes of it."""

Runs = dict[str, list[Transfer] | None]


def large_versions(base: Path, size: int) -> Versions:
    """One file, and the three changes of it."""
    before = _version(base, "before")
    write_input(before, InputShape(1, size))
    [film] = before.iterdir()
    full = size == 1 << 30
    dice = random.Random("delta")  # noqa: S311 - the same places on every run
    overwritten = _version(base, "overwritten")
    overwritten.mkdir()
    shutil.copyfile(film, overwritten / film.name)
    apart = range(0, max(1, size // MIB - 1), 2)
    places = sorted(dice.sample(apart, min(OVERWRITES, len(apart))))
    with (overwritten / film.name).open("r+b") as file:
        for n, place in enumerate(places):
            # Not on a boundary of anything.
            file.seek(min(place * MIB + dice.randrange(MIB), size - MIB))
            file.write(b"".join(noise(f"overwrite/{n}", MIB)))
    _date_later(overwritten / film.name, film)
    inserted = _version(base, "inserted")
    inserted.mkdir()
    with film.open("rb") as source, (inserted / film.name).open("wb") as file:
        file.write(source.read(min(5_000_011, size // 2)))
        file.write(b"".join(noise("insert", MIB)))
        shutil.copyfileobj(source, file, MIB)
    _date_later(inserted / film.name, film)
    renamed = _version(base, "renamed")
    renamed.mkdir()
    (renamed / f"renamed-{film.name}").hardlink_to(film)
    return before, {
        Change("overwritten", len(places) * MIB, 11.5 if full else None): overwritten,
        Change("inserted", MIB, 1.3 if full else None): inserted,
        Change("renamed", 0, 0.1): renamed,
    }


def small_versions(base: Path, files: int) -> Versions:
    """Many files, and the change of a few."""
    before = _version(base, "before")
    write_input(before, InputShape(files, SMALL_FILE_BYTES))
    after = _version(base, "after")
    shutil.copytree(before, after)
    paths = sorted(path for path in after.rglob("*") if path.is_file())
    dice = random.Random("delta")  # noqa: S311 - the same files on every run
    changed = dice.sample(paths, max(1, round(files * CHANGED_SHARE)))
    for n, path in enumerate(changed):
        path.write_bytes(b"".join(noise(f"changed/{n}", SMALL_FILE_BYTES)))
        _date_later(path, before / path.relative_to(after))
    least = len(changed) * SMALL_FILE_BYTES
    return before, {Change(SMALL_CHANGE, least, 1.1 * least / 1e6): after}


def _date_later(path: Path, before: Path) -> None:
    """rsync takes a file of the same size and the same second for unchanged."""
    changed_ns = before.stat().st_mtime_ns + 60 * 10**9
    os.utime(path, ns=(changed_ns, changed_ns))


def _version(base: Path, name: str) -> Path:
    (base / name).mkdir(parents=True)
    return base / name / FOLDER


def run(
    base: Path,
    versions: Versions,
    *,
    peers: Sequence[str],
    rounds: int,
) -> dict[str, Runs]:
    """The transfers of every program by change, in turns."""
    base.mkdir()
    before, changes = versions
    present = installed_peers(peers)
    absent: Runs = {name: None for name in peers if name not in present}
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(opened(name, base / name, before)) for name in ("archid", *present)
        ]
        found: dict[str, Runs] = {change.name: {} for change in changes}
        for _ in range(rounds):
            for change, after in changes.items():
                for contender in contenders:
                    if change.name not in TAKES_PART.get(contender.name, (change.name,)):
                        continue
                    done = _round(contender, before, after)
                    say(f"{change.name}, {contender.name}: {done.seconds:.2f} s")
                    runs = found[change.name].setdefault(contender.name, [])
                    assert runs is not None
                    runs.append(done)
    return {name: {**runs, **absent} for name, runs in found.items()}


def _round(contender: Contender, before: Path, after: Path) -> Transfer:
    size = sum(path.stat().st_size for path in after.rglob("*") if path.is_file())
    contender.change(before)
    with contender.ready() as destination:
        contender.transfer(destination)
        contender.change(after)
        warm_files(after)
        warm_files(contender.tree(destination))
        warm_memory(2 * size + SPARE_BYTES)
        done = counted_transfer(contender, destination)
        compare(after, contender.tree(destination))
        return done


def _figures(runs: Runs) -> dict[str, Any]:
    return {name: None if one is None else _one(one) for name, one in runs.items()}


def _one(transfers: Sequence[Transfer]) -> dict[str, Any]:
    passed = [one.wire_bytes / 1e6 for one in transfers if one.wire_bytes is not None]
    return {
        "seconds": vars(Spread.of(one.seconds for one in transfers)),
        "cpu_s": {
            "source": vars(Spread.of(one.source.cpu_s for one in transfers)),
            "destination": vars(Spread.of(one.destination.cpu_s for one in transfers)),
        },
        "peak_mb": {
            "source": max(one.source.peak_mb for one in transfers),
            "destination": max(one.destination.peak_mb for one in transfers),
        },
        "wire_mb": vars(Spread.of(passed)) if passed else None,
    }


def _reached(
    cases: Mapping[str, Any], changes: Mapping[str, Change]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, case in cases.items():
        ours, goal = case["programs"]["archid"], changes[name].goal_mb
        if goal is not None and ours["wire_mb"] is not None:
            yield f"MB on the wire, {name}", {
                "goal": goal, "reached": ours["wire_mb"]["median"], "at_most": True
            }  # fmt: skip
        theirs = [
            one["seconds"]["median"]
            for other, one in case["programs"].items()
            if one is not None and other != "archid"
        ]
        if theirs:
            yield f"s, against the fastest peer's, {name}", {
                "goal": min(theirs), "reached": ours["seconds"]["median"], "at_most": True
            }  # fmt: skip


def report(cases: Mapping[str, Any]) -> Iterator[str]:
    """One Markdown table."""
    ends = "source / destination"
    head = ["change", "program", "s", "MB on the wire", "over the least"]
    rows = []
    for name, case in cases.items():
        rows.append([f"**{name}**", "the least possible", "", f"{case['least_mb']:.2f}", *[""] * 3])
        for program, one in case["programs"].items():
            if one is None:
                rows.append(["", program, "absent", *[""] * 4])
                continue
            wire = one["wire_mb"]
            rows.append(
                [
                    "",
                    program,
                    Spread(**one["seconds"]).text(2),
                    Spread(**wire).text(2) if wire else "not counted",
                    f"{wire['median'] / case['least_mb']:.2f}" if wire and case["least_mb"] else "",
                    " / ".join(f"{end['median']:.1f}" for end in one["cpu_s"].values()),
                    " / ".join(f"{peak:.0f}" for peak in one["peak_mb"].values()),
                ]
            )
    yield table([*head, f"CPU s {ends}", f"peak MB {ends}"], rows)


def _charts(cases: Mapping[str, Any], changes: Mapping[str, Change]) -> Iterator[Chart]:
    for name, case in cases.items():
        present = {
            program: one
            for program, one in case["programs"].items()
            if one is not None and one["wire_mb"] is not None
        }
        wire: dict[str, Spread | float] = {
            program: Spread(**one["wire_mb"]) for program, one in present.items()
        }
        least = {"smallest possible": case["least_mb"]} if case["least_mb"] else {}
        yield Chart(f"{name}: on the wire", "MB", {**least, **wire}, goal=changes[name].goal_mb)
        seconds = {program: Spread(**one["seconds"]) for program, one in present.items()}
        yield Chart(f"{name}: time", "s", seconds)
