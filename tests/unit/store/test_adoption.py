"""Reusing other versions: links when all agrees, copies otherwise, nothing unhashed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from archid.store.adoption import adopt_local
from archid.store.database import Database
from archid.store.index import MIGRATIONS, ChunkIndex
from archid.store.staging import Staging
from tests.unit.store.trees import (
    MTIME_NS,
    File,
    Tree,
    Version,
    a_film,
    assert_tree,
    place,
    random_bytes,
    stage_all,
    version_of,
)


class Node:
    """A trees folder, a staging folder and an index."""

    def __init__(self, base: Path) -> None:
        self.trees, self.staging = base / "trees", base / "staging"
        self.trees.mkdir()
        self.staging.mkdir()
        self.index = ChunkIndex(Database(base / "node.db", MIGRATIONS))

    def add(self, tree: Tree, number: int = 1) -> Version:
        version = version_of(tree, version=number)
        path = place(version, self.trees, self.staging)
        self.index.add_tree_blocking(version.manifest, version.layout, path)
        return version

    def open(self, version: Version) -> Staging:
        return Staging.open(self.staging / version.manifest.hex(), version.layout)

    def tree(self, version: Version) -> Path:
        return self.trees / version.manifest.hex()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_an_unchanged_version_is_linked_whole(node: Node) -> None:
    old = node.add(a_film())
    new = version_of(a_film(), version=2)
    staging = node.open(new)
    report = adopt_local(staging, node.index.find_blocking, node.trees)
    assert staging.is_complete
    assert (report.linked_bytes, report.copied_bytes) == (new.root.size_bytes, 0)
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)
    assert_tree(node.tree(old), old.tree)
    for path in ("big.bin", "panels/left.dat", "run.sh"):
        assert (node.tree(old) / path).samefile(node.tree(new) / path)


@pytest.mark.parametrize(
    "change", [{"mtime_ns": MTIME_NS + 1}, {"executable": True}, {"mtime_ns": 5}]
)
def test_a_file_of_another_time_or_mode_is_copied_and_the_old_tree_is_left_alone(
    node: Node, change: dict[str, int]
) -> None:
    data = random_bytes(1, 300_000)
    old = node.add({"a": File(data)})
    new = version_of({"a": File(data, **change)}, version=2)  # type: ignore[arg-type]
    staging = node.open(new)
    report = adopt_local(staging, node.index.find_blocking, node.trees)
    assert report.linked_files == 0
    assert report.copied_bytes + report.cloned_bytes == len(data)
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)
    assert_tree(node.tree(old), old.tree)


def test_only_what_changed_is_left_to_fetch(node: Node) -> None:
    data = random_bytes(1, 1_000_000)
    node.add({"a": File(data), "moved": File(random_bytes(2, 9000)), "gone": File(b"gone")})
    changed = data[:409_600] + random_bytes(3, 4096) + data[413_696:]
    new = version_of(
        {"a": File(changed), "elsewhere": File(random_bytes(2, 9000)), "new": File(b"new")},
        version=2,
    )
    staging = node.open(new)
    adopt_local(staging, node.index.find_blocking, node.trees)
    assert staging.missing_bytes == 4096 + 3
    stage_all(staging, new)
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)


def test_rotten_local_bytes_are_reported_and_not_taken(node: Node) -> None:
    old = node.add(a_film())
    rotten = node.tree(old) / "big.bin"
    rotten.chmod(0o644)
    with rotten.open("r+b") as file:
        file.seek(2_000_000)
        file.write(b"rot")
    os.utime(rotten, ns=(MTIME_NS, MTIME_NS))
    rotten.chmod(0o444)
    new = version_of(a_film(), version=2)
    staging = node.open(new)
    report = adopt_local(staging, node.index.find_blocking, node.trees)
    assert [(found.manifest, found.path) for found in report.rotten] == [(old.manifest, "big.bin")]
    assert staging.missing_bytes == 4096
    stage_all(staging, new)
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)
    assert not (node.tree(new) / "big.bin").samefile(rotten)


def test_an_index_that_is_behind_does_no_harm(node: Node, tmp_path: Path) -> None:
    old = node.add(a_film())
    outside = tmp_path / "outside"
    node.tree(old).rename(outside)
    node.tree(old).symlink_to(outside)
    new = version_of(a_film(), version=2)
    staging = node.open(new)
    report = adopt_local(staging, node.index.find_blocking, node.trees)
    assert staging.held_bytes == 0
    assert report.rotten == []
    stage_all(staging, new)
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)


def test_what_cannot_be_linked_is_copied(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.add(a_film())
    new = version_of(a_film(), version=2)
    staging = node.open(new)

    def too_many(*args: object, **kwargs: object) -> None:
        del args, kwargs
        raise OSError(31, "Too many links")

    with monkeypatch.context() as patch:
        patch.setattr("archid.store.adoption.os.link", too_many)
        report = adopt_local(staging, node.index.find_blocking, node.trees)
    assert report.linked_files == 0
    assert staging.is_complete
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)


def test_repeats_within_a_version_are_copied_from_one_old_place(node: Node) -> None:
    block = random_bytes(9, 4096)
    node.add({"old": File(block + b"tail")})
    new = version_of({"a": File(block * 3), "b": File(block + b"x")}, version=2)
    staging = node.open(new)
    adopt_local(staging, node.index.find_blocking, node.trees)
    assert staging.missing_bytes == 1
    stage_all(staging, new)
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)


def test_adoption_killed_and_resumed_links_nothing_twice(node: Node) -> None:
    old = node.add(a_film())
    new = version_of(a_film(), version=2)
    staging = node.open(new)
    adopt_local(staging, node.index.find_blocking, node.trees)
    staging.close()
    staging = node.open(new)
    assert staging.is_complete
    staging.finish(node.tree(new))
    assert_tree(node.tree(old), old.tree)
    assert (node.tree(new) / "big.bin").stat().st_nlink == 2


def test_a_stopped_adoption_does_nothing_more(node: Node) -> None:
    node.add(a_film())
    staging = node.open(version_of(a_film(), version=2))
    report = adopt_local(staging, node.index.find_blocking, node.trees, stopped=lambda: True)
    assert (staging.held_bytes, report.linked_files) == (0, 0)


def test_where_extents_can_be_shared_a_changed_time_copies_nothing(tmp_path: Path) -> None:
    """Needs a file system with reflinks: XFS in a file, mounted by root."""
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    try:
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system with reflinks can be made here: {error}")
    try:
        node = Node(mounted)
        data = random_bytes(1, 3_000_000)
        old = node.add({"a": File(data)})
        new = version_of({"a": File(data, mtime_ns=7)}, version=2)
        staging = node.open(new)
        report = adopt_local(staging, node.index.find_blocking, node.trees)
        assert (report.cloned_bytes, report.copied_bytes) == (len(data), 0)
        staging.finish(node.tree(new))
        assert_tree(node.tree(new), new.tree)
        assert_tree(node.tree(old), old.tree)
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)
