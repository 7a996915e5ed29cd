"""Taking over the version before by its names: all that is alike and whole, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pytest

from archid.errors import StorageError
from archid.store.adoption import adopt_local
from archid.store.chunk_reading import READ_BYTES
from archid.store.index import Location
from archid.store.relinking import relink
from protocol.ids import ChunkId
from tests.unit.store.test_adoption import Node
from tests.unit.store.trees import (
    MTIME_NS,
    File,
    Tree,
    a_film,
    assert_tree,
    random_bytes,
    stage_all,
    version_of,
)

_OLD: Tree = {"d": None, "d/a": File(random_bytes(1, 5000)), "d/b": File(random_bytes(2, 5000))}


@pytest.fixture
def node(tmp_path: object) -> Node:
    return Node(tmp_path)  # type: ignore[arg-type]


def asks_nobody(chunks: Sequence[ChunkId]) -> Mapping[ChunkId, Sequence[Location]]:
    """An index that nobody may ask."""
    raise AssertionError(f"asked for {len(chunks)} chunks")


def test_an_unchanged_version_of_small_files_is_linked_without_asking_the_index(node: Node) -> None:
    old, new = node.add(_OLD), version_of(_OLD, version=2)
    staging = node.open(new)
    report = adopt_local(staging, asks_nobody, node.trees, before=old.manifest)
    assert (report.linked_files, report.linked_bytes) == (2, new.root.size_bytes)
    assert staging.is_complete
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)
    assert (node.tree(old) / "d/a").samefile(node.tree(new) / "d/a")
    for number, file in enumerate(new.layout.files):
        info = (node.tree(old) / file.path).stat()
        assert staging.objects.inodes[number] == info.st_ino
        assert staging.objects.devices[number] == info.st_dev


@pytest.mark.parametrize(
    "other",
    [
        File(random_bytes(3, 5000)),
        File(random_bytes(1, 4999)),
        File(random_bytes(1, 5000), mtime_ns=MTIME_NS + 1),
        File(random_bytes(1, 5000), executable=True),
    ],
    ids=["content", "size", "time", "mode"],
)
def test_a_file_that_differs_in_anything_is_left(node: Node, other: File) -> None:
    old, new = node.add(_OLD), version_of({**_OLD, "d/a": other}, version=2)
    staging = node.open(new)
    assert relink(staging, node.tree(old)) == (1, 5000)
    assert not (staging.path / "d/a").exists()
    assert not staging.is_file_started(new.file("d/a").number)
    stage_all(staging, new)
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)
    assert_tree(node.tree(old), old.tree)


def test_bytes_that_rotted_under_the_same_time_are_not_taken_and_are_reported(node: Node) -> None:
    old, new = node.add(_OLD), version_of(_OLD, version=2)
    rotten = node.tree(old) / "d/a"
    rotten.chmod(0o644)
    rotten.write_bytes(random_bytes(9, 5000))
    os.utime(rotten, ns=(MTIME_NS, MTIME_NS))
    rotten.chmod(0o444)
    staging = node.open(new)
    report = adopt_local(staging, node.index.find_blocking, node.trees, before=old.manifest)
    assert {(one.manifest, one.path) for one in report.rotten} == {(old.manifest, "d/a")}
    assert report.linked_files == 1
    assert not staging.is_file_complete(new.file("d/a"))


@pytest.mark.parametrize("instead", ["symlink", "pipe", "folder", "nothing", "no folder"])
def test_what_is_no_file_there_is_left_and_nothing_waits_for_it(node: Node, instead: str) -> None:
    old, new = node.add(_OLD), version_of(_OLD, version=2)
    folder = node.tree(old) / "d"
    folder.chmod(0o755)
    path = folder / "a"
    path.rename(node.trees / "aside")
    match instead:
        case "symlink":
            path.symlink_to(node.trees / "aside")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "no folder":
            folder.rename(node.trees / "folder aside")
    staging = node.open(new)
    assert relink(staging, node.tree(old)).files == (0 if instead == "no folder" else 1)
    assert not staging.is_file_started(new.file("d/a").number)


def test_a_tree_that_is_gone_gives_nothing(node: Node) -> None:
    staging = node.open(version_of(_OLD))
    assert relink(staging, node.trees / "gone") == (0, 0)


def test_what_is_here_already_is_not_touched(node: Node) -> None:
    old, new = node.add(_OLD), version_of(_OLD, version=2)
    staging = node.open(new)
    staging.write_chunks((at, new.chunk_bytes(at)) for at in range(new.file("d/a").chunk_count))
    assert relink(staging, node.tree(old)) == (1, 5000)
    assert (staging.path / "d/a").stat().st_nlink == 1
    assert staging.held_bytes == 10_000


def test_large_files_are_left_to_the_index(node: Node) -> None:
    tree: Tree = {"large": File(random_bytes(1, READ_BYTES + 1)), "a": File(b"small")}
    old, new = node.add(tree), version_of(tree, version=2)
    staging = node.open(new)
    assert relink(staging, node.tree(old)) == (1, 5)
    report = adopt_local(staging, node.index.find_blocking, node.trees, before=old.manifest)
    assert report.linked_files == 1
    assert staging.is_complete


def test_nothing_more_is_taken_once_it_is_stopped(node: Node) -> None:
    old, new = node.add(_OLD), version_of(_OLD, version=2)
    assert relink(node.open(new), node.tree(old), stopped=lambda: True) == (0, 0)


def test_a_file_that_is_written_anew_is_another_object(node: Node) -> None:
    old, new = node.add(_OLD), version_of(_OLD, version=2)
    staging = node.open(new)
    relink(staging, node.tree(old))
    at = new.file("d/a").first_chunk
    staging.forget_chunk(at)
    staging.write_chunks([(at, new.chunk_bytes(at))])
    assert not staging.objects.is_known(new.file("d/a").number)
    assert staging.objects.is_known(new.file("d/b").number)


def test_a_file_that_takes_the_name_of_one_that_was_hashed_is_not_taken(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = node.add(_OLD), version_of(_OLD, version=2)
    folder = node.tree(old) / "d"
    folder.chmod(0o755)
    link = os.link

    def late(name: str, *args: object, **kwargs: object) -> None:
        # File systems give the number of an inode that is gone to the next file.
        (folder / name).unlink()
        (folder / name).write_bytes(bytes(5000))
        link(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", late)
    staging = node.open(new)
    assert relink(staging, node.tree(old)) == (0, 0)
    assert staging.held_bytes == 0
    assert os.listdir(staging.path / "d") == []


def test_a_disk_that_takes_no_link_is_an_error(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = node.add(_OLD), version_of(_OLD, version=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StorageError):
        relink(node.open(new), node.tree(old))


def test_a_film_with_everything_in_it_is_taken_over_by_names(node: Node) -> None:
    old, new = node.add(a_film()), version_of(a_film(), version=2)
    staging = node.open(new)
    adopt_local(staging, node.index.find_blocking, node.trees, before=old.manifest)
    assert staging.is_complete
    staging.finish(node.tree(new))
    assert_tree(node.tree(new), new.tree)
