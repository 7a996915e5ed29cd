"""A tree is indexed while it comes to stand: it is there afterwards, and gone if it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archid.errors import StorageError
from archid.store.database import Database
from archid.store.errors import DiskFull
from archid.store.index import MIGRATIONS, ChunkIndex
from archid.store.indexing import index_beside
from protocol.layout import Layout
from tests.unit.store.trees import Version, a_film, place, version_of


@pytest.fixture
def index(tmp_path: Path) -> ChunkIndex:
    return ChunkIndex(Database(tmp_path / "node.db", MIGRATIONS))


@pytest.fixture
def film() -> Version:
    return version_of(a_film())


def finished(film: Version, folder: Path) -> Path:
    """A tree that is still where it was put together."""
    for name in ("made", "staging"):
        (folder / name).mkdir()
    return place(film, folder / "made", folder / "staging")


def indexed_chunks(index: ChunkIndex, film: Version) -> int:
    ids = [film.layout.chunk(at).id for at in film.layout.distinct_chunks()]
    return len(index.find_blocking(ids))


def test_a_tree_that_moves_meanwhile_is_indexed_whole(
    index: ChunkIndex, film: Version, tmp_path: Path
) -> None:
    tree = finished(film, tmp_path)
    moved = tmp_path / "elsewhere"

    def layout() -> Layout:
        # Only when the tree has gone from where it was is there anything to index.
        while not moved.exists():
            os.sched_yield()
        return film.layout

    with index_beside(index, film.manifest, layout, tree) as done:
        tree.chmod(0o755)
        tree.rename(moved)
    done()
    assert index.has_tree_blocking(film.manifest)
    assert indexed_chunks(index, film) == len(list(film.layout.distinct_chunks()))


def test_a_tree_that_comes_not_to_stand_leaves_nothing_in_the_index(
    index: ChunkIndex, film: Version, tmp_path: Path
) -> None:
    tree = finished(film, tmp_path)
    with (
        pytest.raises(DiskFull),
        index_beside(index, film.manifest, lambda: film.layout, tree),
    ):
        raise DiskFull(tree)
    assert not index.has_tree_blocking(film.manifest)
    assert indexed_chunks(index, film) == 0


def test_an_index_that_fails_says_so_when_it_is_asked(film: Version, tmp_path: Path) -> None:
    tree = finished(film, tmp_path)
    database = Database(tmp_path / "node.db", MIGRATIONS)
    index = ChunkIndex(database)
    # A table that is gone: what a disk that lost a page may come to.
    database.transact(lambda connection: connection.execute("DROP TABLE chunk"))
    with index_beside(index, film.manifest, lambda: film.layout, tree) as done:
        pass
    with pytest.raises(StorageError):
        done()
