"""Small files come whole, many at a time: what stands is right, and what failed is not counted."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from archid.errors import StorageError
from archid.store import syscalls
from archid.store.filling import SpanBytes
from archid.store.staging import Staging
from tests.unit.store.trees import File, Tree, Version, assert_tree, random_bytes, version_of

MANY = 300


def small_files() -> Version:
    tree: Tree = {
        f"reel{n % 7}/{n:03}.led": File(random_bytes(n, 500 + n), executable=n % 10 == 0)
        for n in range(MANY)
    }
    folders: Tree = {f"reel{n}": None for n in range(7)}
    return version_of({**folders, **tree})


def staged(version: Version, base: Path) -> Staging:
    (base / "staging").mkdir(exist_ok=True)
    return Staging.open(base / "staging" / version.manifest.hex(), version.layout)


def everything(version: Version) -> list[SpanBytes]:
    return [SpanBytes(span, b"", version.span_bytes(span)) for span in version.layout.spans]


def test_files_that_come_whole_are_written_by_two_threads_as_they_are_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = small_files()
    threads: set[int] = set()
    write = syscalls.pwrite_all

    def watched(fd: int, data: memoryview, offset: int) -> None:
        threads.add(threading.get_ident())
        write(fd, data, offset)

    monkeypatch.setattr(syscalls, "pwrite_all", watched)
    staging = staged(version, tmp_path)
    for one in everything(version):
        assert staging.write_spans([one]) == [None]
    assert staging.is_complete
    staging.finish(tmp_path / "tree")
    assert_tree(tmp_path / "tree", version.tree)
    assert len(threads) == 2


def test_modes_are_right_whatever_the_umask(tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from tests.unit.store.test_whole_files import everything, small_files, staged
os.umask(0o077)
version = small_files()
staging = staged(version, Path({str(tmp_path)!r}))
assert not any(staging.write_spans(everything(version)))
staging.finish(Path({str(tmp_path / "tree")!r}))
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
    modes = {
        stat.S_IMODE(path.stat().st_mode): path.name for path in (tmp_path / "tree").rglob("*.led")
    }
    assert set(modes) == {0o444, 0o555}


def test_the_same_file_twice_in_one_batch_is_counted_once(tmp_path: Path) -> None:
    version = small_files()
    staging = staged(version, tmp_path)
    both = everything(version) + everything(version)
    assert not any(staging.write_spans(both))
    assert staging.held_bytes == version.root.size_bytes
    staging.finish(tmp_path / "tree")
    assert_tree(tmp_path / "tree", version.tree)


@pytest.mark.parametrize("failing", [0, 5, 170, 299])
def test_what_could_not_be_written_is_missing_and_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    version = small_files()
    write, wrong = syscalls.pwrite_all, version.file(f"reel{failing % 7}/{failing:03}.led")

    def fails_once(fd: int, data: memoryview, offset: int) -> None:
        if len(data) == wrong.size_bytes:
            os.pwrite(fd, data[:10], offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(fd, data, offset)

    monkeypatch.setattr(syscalls, "pwrite_all", fails_once)
    staging = staged(version, tmp_path)
    with pytest.raises(StorageError, match=f"{failing:03}.led"):
        staging.write_spans(everything(version))
    assert not staging.is_file_complete(wrong)
    assert staging.held_bytes < version.root.size_bytes
    monkeypatch.undo()
    held = staging.held_bytes
    staging.close()
    staging = staged(version, tmp_path)  # another process takes it up
    assert staging.held_bytes == held
    assert not any(staging.write_spans(everything(version)))
    assert staging.held_bytes == version.root.size_bytes
    staging.finish(tmp_path / "tree")
    assert_tree(tmp_path / "tree", version.tree)
