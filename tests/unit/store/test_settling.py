"""When the facts of a file prove that its bytes are the ones that were read."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from archid.source_listing import facts_of
from archid.store import syscalls
from archid.store.settling import TRUSTED_FILE_SYSTEMS, SettledSources
from tests.unit.store.disks import as_root, small_disk, with_xfs, xfs_disk

HOUR_NS = 3600 * 1_000_000_000


def in_an_hour() -> int:
    return time.time_ns() + HOUR_NS


@pytest.fixture(params=["here", pytest.param("xfs", marks=with_xfs)])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system whose facts count."""
    if request.param == "here":
        fd = os.open(tmp_path, os.O_RDONLY)
        kind = syscalls.file_system_type(fd)
        os.close(fd)
        if kind not in TRUSTED_FILE_SYSTEMS:
            pytest.skip("the folder for temporary files is on another file system")
        yield tmp_path
        return
    with xfs_disk(tmp_path / "xfs") as mounted:
        yield mounted


def ask(settled: SettledSources, path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return settled.is_settled(fd, os.fstat(fd))
    finally:
        os.close(fd)


def test_a_file_that_has_been_at_rest_is_settled(disk: Path) -> None:
    (disk / "reel").write_text("a reel")
    assert ask(SettledSources(in_an_hour), disk / "reel")


def test_a_file_that_was_written_since_the_sync_is_not_settled(disk: Path) -> None:
    (disk / "old").write_text("old")
    settled = SettledSources()
    ask(settled, disk / "old")
    (disk / "new").write_text("new")
    assert not ask(settled, disk / "new")


def test_a_date_that_was_set_back_does_not_make_a_file_old(disk: Path) -> None:
    (disk / "old").write_text("old")
    settled = SettledSources()
    ask(settled, disk / "old")
    (disk / "new").write_text("new")
    os.utime(disk / "new", ns=(0, 0))
    assert not ask(settled, disk / "new")


def test_whole_seconds_are_taken_for_a_coarse_clock(disk: Path) -> None:
    (disk / "reel").write_text("a reel")
    fd = os.open(disk / "reel", os.O_RDONLY)
    found = os.fstat(fd)
    changed_s = int(found.st_ctime)

    class Coarse:
        st_dev = found.st_dev
        st_ctime_ns = changed_s * 1_000_000_000

    for late_ns, expected in ((1_900_000_000, False), (2_100_000_000, True)):
        settled = SettledSources(lambda late=late_ns: Coarse.st_ctime_ns + late)  # type: ignore[misc]
        assert settled.is_settled(fd, Coarse) is expected  # type: ignore[arg-type]
    os.close(fd)


def test_what_is_written_through_a_map_after_the_sync_shows_in_the_facts(disk: Path) -> None:
    path = disk / "mapped"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as view:
        view[0] = 1  # the page is dirty now, and further writes go unnoticed until it is clean
        before = os.fstat(file.fileno())
        assert SettledSources(in_an_hour).is_settled(file.fileno(), before)
        view[0] = 2
        assert path.read_bytes()[0] == 2
        assert facts_of(os.fstat(file.fileno())) != facts_of(before)


@as_root
def test_nothing_is_settled_where_writes_through_maps_are_not_dated(tmp_path: Path) -> None:
    with small_disk(tmp_path / "memory") as memory:
        (memory / "reel").write_text("a reel")
        assert not ask(SettledSources(in_an_hour), memory / "reel")
