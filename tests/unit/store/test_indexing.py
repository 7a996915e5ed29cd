"""A tree is indexed while it comes to stand and after: whoever asks then finds it, or nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from archid.store.database import Database
from archid.store.errors import DiskFull
from archid.store.index import MIGRATIONS, ChunkIndex
from archid.store.indexing import Indexing
from protocol.ids import ChunkId
from protocol.layout import Layout
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import Version, a_film, place, version_of


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "node.db", MIGRATIONS) as database:
        yield database


@pytest.fixture
def index(database: Database) -> ChunkIndex:
    return ChunkIndex(database)


@pytest.fixture
def indexing(index: ChunkIndex) -> Iterator[Indexing]:
    with closing(Indexing(index)) as indexing:
        yield indexing


@pytest.fixture
def film() -> Version:
    return version_of(a_film())


def finished(film: Version, folder: Path) -> Path:
    """A tree that is still where it was put together."""
    for name in ("made", "staging"):
        (folder / name).mkdir()
    return place(film, folder / "made", folder / "staging")


def distinct_ids(film: Version) -> list[ChunkId]:
    return [film.layout.chunk(at).id for at in film.layout.distinct_chunks()]


class Gate:
    """A layout that is not given before the gate is opened."""

    def __init__(self, film: Version) -> None:
        self._film = film
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def layout(self) -> Layout:
        assert self._opened.wait(30)
        return self._film.layout


def opened_when_waited_for(gate: Gate, thread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the gate when somebody waits for the thread that stands before it."""
    join = threading.Thread.join

    def joined(self: threading.Thread, timeout: float | None = None) -> None:
        if self.name == thread:
            gate.open()
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", joined)


@pytest.fixture
def gate(film: Version, monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(film)
    opened_when_waited_for(gate, "archid-index", monkeypatch)
    return gate


def test_nobody_waits_but_who_asks(
    indexing: Indexing, index: ChunkIndex, film: Version, gate: Gate, tmp_path: Path
) -> None:
    tree = finished(film, tmp_path)
    with indexing.beside(film.manifest, gate.layout, tree):
        tree.chmod(0o755)
        tree.rename(tmp_path / "elsewhere")
    # The tree stands, and nothing of it is in the index.
    assert index.find_blocking(distinct_ids(film)) == {}
    found = indexing.finder(lambda: False)(distinct_ids(film))
    assert set(found) == set(distinct_ids(film))


def test_who_asks_can_be_stopped(indexing: Indexing, film: Version, tmp_path: Path) -> None:
    gate = Gate(film)
    with indexing.beside(film.manifest, gate.layout, finished(film, tmp_path)):
        pass
    find = indexing.finder(lambda: True)
    assert find(distinct_ids(film)) == {}
    gate.open()
    indexing.settle()
    assert set(find(distinct_ids(film))) == set(distinct_ids(film))


def test_trees_are_added_one_after_the_other(
    indexing: Indexing, index: ChunkIndex, film: Version, gate: Gate, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    with indexing.beside(film.manifest, gate.layout, finished(film, tmp_path / "one")):
        pass
    newer = version_of(a_film(), version=2)
    (tmp_path / "two").mkdir()

    def only_after_the_first() -> Layout:
        assert index.has_tree_blocking(film.manifest)
        return newer.layout

    with indexing.beside(newer.manifest, only_after_the_first, finished(newer, tmp_path / "two")):
        pass
    indexing.settle()
    assert {one.manifest for one in index.trees_blocking()} == {film.manifest, newer.manifest}


def test_the_end_waits_and_leaves_the_rest_to_the_next_start(
    index: ChunkIndex, film: Version, gate: Gate, tmp_path: Path
) -> None:
    indexing = Indexing(index)
    tree = finished(film, tmp_path)
    with indexing.beside(film.manifest, gate.layout, tree):
        pass
    indexing.close()
    assert not [one for one in threading.enumerate() if one.name == "archid-index"]
    assert not index.has_tree_blocking(film.manifest)
    index.follow({film.manifest: tree}, lambda _: film.layout)
    assert set(index.find_blocking(distinct_ids(film))) == set(distinct_ids(film))


def test_a_tree_that_comes_not_to_stand_leaves_nothing_in_the_index(
    indexing: Indexing, index: ChunkIndex, film: Version, gate: Gate, tmp_path: Path
) -> None:
    tree = finished(film, tmp_path)
    with (
        pytest.raises(DiskFull),
        indexing.beside(film.manifest, gate.layout, tree),
    ):
        raise DiskFull(tree)
    gate.open()
    indexing.settle()
    assert index.trees_blocking() == []
    assert index.find_blocking(distinct_ids(film)) == {}


def test_a_tree_that_is_taken_out_while_it_is_added_is_gone(
    indexing: Indexing, index: ChunkIndex, film: Version, gate: Gate, tmp_path: Path
) -> None:
    with indexing.beside(film.manifest, gate.layout, finished(film, tmp_path)):
        pass
    indexing.remove(film.manifest)
    gate.open()
    indexing.settle()
    assert index.trees_blocking() == []
    assert index.find_blocking(distinct_ids(film)) == {}


def test_an_index_that_fails_says_so_in_the_log(
    indexing: Indexing,
    database: Database,
    film: Version,
    tmp_path: Path,
    expected_errors: ErrorWatch,
) -> None:
    expected_errors.expect("index_unusable")
    # A table that is gone: what a disk that lost a page may come to.
    database.transact(lambda connection: connection.execute("DROP TABLE chunk"))
    with indexing.beside(film.manifest, lambda: film.layout, finished(film, tmp_path)):
        pass
    indexing.settle()


def test_a_layout_that_cannot_be_had_says_so_in_the_log(
    indexing: Indexing,
    index: ChunkIndex,
    film: Version,
    tmp_path: Path,
    expected_errors: ErrorWatch,
) -> None:
    expected_errors.expect("index_failed")

    def layout() -> Layout:
        raise MemoryError

    with indexing.beside(film.manifest, layout, finished(film, tmp_path)):
        pass
    indexing.settle()
    assert not index.has_tree_blocking(film.manifest)


def test_without_a_thread_the_tree_stands_all_the_same(
    indexing: Indexing,
    film: Version,
    tmp_path: Path,
    expected_errors: ErrorWatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected_errors.expect("index_unusable")
    tree = finished(film, tmp_path)

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    open_before = sorted(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with indexing.beside(film.manifest, lambda: film.layout, tree):
            pass
    assert sorted(os.listdir("/proc/self/fd")) == open_before
    assert indexing.settle()


def test_a_tree_that_stands_is_added_once(
    indexing: Indexing, index: ChunkIndex, film: Version, tmp_path: Path
) -> None:
    tree = finished(film, tmp_path)
    indexing.require(film.manifest, lambda: film.layout, tree)
    indexing.require(film.manifest, lambda: film.layout, tmp_path / "not looked at")
    assert [one.manifest for one in index.trees_blocking()] == [film.manifest]
