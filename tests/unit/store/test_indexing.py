"""A tree is indexed while it comes to stand and after: whoever asks then finds it, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def test_nobody_waits_but_who_asks(indexing: Indexing, film: Version, tmp_path: Path) -> None:
    tree = finished(film, tmp_path)
    gate = Gate(film)
    with indexing.beside(film.manifest, gate.layout, tree):
        tree.chmod(0o755)
        tree.rename(tmp_path / "elsewhere")
    # The tree stands and nothing of it is in the index.
    with ThreadPoolExecutor(1) as other:
        found = other.submit(indexing.find, distinct_ids(film))
        assert not found.done()
        gate.open()
        assert set(found.result()) == set(distinct_ids(film))


def test_it_ends_with_what_was_begun(
    indexing: Indexing, index: ChunkIndex, film: Version, tmp_path: Path
) -> None:
    with indexing.beside(film.manifest, lambda: film.layout, finished(film, tmp_path)):
        pass
    indexing.close()
    assert index.has_tree_blocking(film.manifest)
    assert set(index.find_blocking(distinct_ids(film))) == set(distinct_ids(film))


def test_a_tree_that_comes_not_to_stand_leaves_nothing_in_the_index(
    indexing: Indexing, index: ChunkIndex, film: Version, tmp_path: Path
) -> None:
    tree = finished(film, tmp_path)
    with (
        pytest.raises(DiskFull),
        indexing.beside(film.manifest, lambda: film.layout, tree),
    ):
        raise DiskFull(tree)
    assert not index.has_tree_blocking(film.manifest)
    assert index.find_blocking(distinct_ids(film)) == {}


def test_a_tree_that_is_taken_out_while_it_is_added_is_gone(
    indexing: Indexing, index: ChunkIndex, film: Version, tmp_path: Path
) -> None:
    gate = Gate(film)
    with indexing.beside(film.manifest, gate.layout, finished(film, tmp_path)):
        pass
    with ThreadPoolExecutor(1) as other:
        removed = other.submit(indexing.remove, film.manifest)
        gate.open()
        removed.result()
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


def test_a_tree_that_stands_is_added_once(
    indexing: Indexing, index: ChunkIndex, film: Version, tmp_path: Path
) -> None:
    tree = finished(film, tmp_path)

    def asked_again() -> Layout:
        raise AssertionError("it is there already")

    indexing.require(film.manifest, lambda: film.layout, tree)
    indexing.require(film.manifest, asked_again, tree)
    assert [one.manifest for one in index.trees_blocking()] == [film.manifest]
