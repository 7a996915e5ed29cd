"""The versions of a node as one: what a start finds, what comes in, what is told of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from archid.errors import NotFound, StorageError
from archid.store.bundles import Bundles
from archid.store.database import Database
from archid.store.documents import DocumentStore
from archid.store.errors import DiskFull, DocumentMissing
from archid.store.index import MIGRATIONS, ChunkIndex
from archid.store.layout import StatePaths
from archid.store.layouts import Layouts
from archid.store.library import Library
from archid.store.tree_store import TreeStore
from protocol.envelope import Envelope
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import (
    File,
    Version,
    a_film,
    assert_tree,
    place,
    stage_all,
    version_of,
)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    paths = StatePaths(tmp_path / "state", tmp_path / "scripts")
    paths.prepare(player_gid=None)
    return paths


@contextmanager
def started(paths: StatePaths) -> Iterator[Library]:
    """A library by what is in the state folder."""
    with ExitStack() as stack:
        documents = DocumentStore(paths.documents)
        trees = TreeStore(paths.trees, Layouts(documents))
        stack.callback(trees.close)
        library = Library(
            paths,
            documents=documents,
            trees=trees,
            index=ChunkIndex(stack.enter_context(Database(paths.node_db, MIGRATIONS))),
            bundles=Bundles(paths),
        )
        stack.callback(library.close)
        library.open()
        yield library


@pytest.fixture
def library(paths: StatePaths) -> Iterator[Library]:
    with started(paths) as library:
        yield library


@pytest.fixture
def film() -> Version:
    return version_of(a_film())


def bring(library: Library, version: Version) -> None:
    version.keep_documents(library.documents)
    staging = library.stage(version.layout)
    try:
        library.adopt(staging)
        stage_all(staging, version)
        library.place(staging)
        # As long as something is added the folder is no other library's.
        library.indexing.settle()
    finally:
        staging.close()


def test_what_was_brought_is_held_after_a_restart(
    library: Library, paths: StatePaths, film: Version
) -> None:
    assert not library.holds(film.manifest)
    bring(library, film)
    with started(paths) as again:
        for here in (library, again):
            assert here.held() == [film.manifest]
            assert_tree(here.tree(film.manifest), film.tree)
            about = here.about(film.manifest)
            assert about is not None
            assert (about.name, about.version) == ("A film", 1)
            assert here.held_bytes() == film.root.size_bytes


@pytest.mark.parametrize("lost", ["manifests", "pieces"])
def test_a_tree_whose_documents_are_gone_does_not_count_until_they_are_back(
    library: Library, paths: StatePaths, film: Version, lost: str
) -> None:
    bring(library, film)
    for path in (paths.documents / lost).rglob("*"):
        if path.is_file():
            path.unlink()
    with started(paths) as again:
        assert not again.holds(film.manifest)
        # Fetching it again moves nothing: the tree itself is taken over.
        film.keep_documents(again.documents)
        staging = again.stage(film.layout)
        again.adopt(staging)
        assert staging.is_complete
        again.place(staging)
        assert again.holds(film.manifest)
        assert_tree(again.tree(film.manifest), film.tree)


def test_a_lost_index_is_built_again_from_the_trees(
    library: Library, paths: StatePaths, film: Version
) -> None:
    bring(library, film)
    for path in paths.state.glob("node.db*"):
        path.unlink()
    with started(paths) as again:
        newer = version_of(a_film(), version=2)
        newer.keep_documents(again.documents)
        staging = again.stage(newer.layout)
        adopted = again.adopt(staging)
        assert staging.is_complete
        assert adopted.linked_bytes == film.root.size_bytes
        staging.close()


def test_what_is_published_is_shared_with_the_next_version_at_once(
    library: Library, paths: StatePaths, film: Version
) -> None:
    film.keep_documents(library.documents)
    place(film, paths.trees, paths.staging)
    library.add_published(film.root, film.pieces)
    assert library.held() == [film.manifest]
    newer = version_of(a_film(), version=2)
    newer.keep_documents(library.documents)
    staging = library.stage(newer.layout)
    # Whether the index has it all by now or not: who asks it waits.
    adopted = library.adopt(staging)
    assert staging.is_complete
    assert adopted.linked_bytes == film.root.size_bytes
    staging.close()


def test_a_tree_that_is_being_recorded_is_held_before_its_manifest_is_kept(
    library: Library, film: Version
) -> None:
    library.expect(film.manifest)
    assert library.holds(film.manifest)
    assert library.held_bytes() == 0
    assert library.about(film.manifest) is None  # whoever looks now finds no fault, and no tree
    assert library.holds(film.manifest)
    assert library.held() == []
    library.drop(film.manifest)
    assert not library.holds(film.manifest)


def test_an_index_that_fails_costs_work_and_nothing_else(
    library: Library, paths: StatePaths, film: Version, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("index_unusable")
    with closing(sqlite3.connect(paths.node_db)) as database:
        database.execute("DROP TABLE tree")
        database.commit()
    bring_without_adopting(library, film)
    assert library.holds(film.manifest)
    with started(paths) as again:
        assert again.holds(film.manifest)


def bring_without_adopting(library: Library, version: Version) -> None:
    version.keep_documents(library.documents)
    staging = library.stage(version.layout)
    stage_all(staging, version)
    library.place(staging)


def test_a_tree_that_somebody_took_away_is_noticed(
    library: Library, film: Version, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("tree_gone")
    bring(library, film)
    library.look_again(film.manifest)
    assert library.holds(film.manifest)
    library.trees.remove(film.manifest)
    library.look_again(film.manifest)
    library.look_again(film.manifest)
    assert not library.holds(film.manifest)


def test_a_tree_that_was_replaced_is_served_from_its_new_place(
    library: Library, film: Version
) -> None:
    bring(library, film)
    span = film.layout.spans[0]
    library.seeding.read_span(film.manifest, span.piece, span.n, b"")  # the tree is open now
    path = library.tree(film.manifest) / "big.bin"
    path.chmod(0o644)
    path.write_bytes(b"gone")
    staging = library.stage(film.layout)
    stage_all(staging, film)
    library.place(staging)
    for one in film.layout.spans:
        data = library.seeding.read_span(film.manifest, one.piece, one.n, b"")
        assert bytes(data) == film.span_bytes(one)
    assert library.trees.rotten(film.manifest) == frozenset()


def test_pieces_are_given_under_their_own_manifest_only(library: Library, film: Version) -> None:
    other = version_of({"other": File(b"other")}, version=2)
    bring(library, film)
    bring(library, other)
    [foreign] = other.pieces
    assert library.seeding.piece(other.manifest, foreign) == other.pieces[foreign]
    with pytest.raises(DocumentMissing):
        library.seeding.piece(film.manifest, foreign)
    with pytest.raises(NotFound):
        library.seeding.read_span(film.manifest, foreign, 0, b"")


def test_what_does_not_fit_is_refused_before_it_is_fetched(library: Library, film: Version) -> None:
    film.keep_documents(library.documents)
    staging = library.stage(film.layout)
    library.require_space(staging)
    library.keep_free_bytes = 1 << 60
    with pytest.raises(DiskFull):
        library.require_space(staging)
    stage_all(staging, film)
    library.require_space(staging)  # nothing is missing: nothing more is needed
    staging.close()


def test_a_name_leads_to_its_latest_version_in_whatever_order_they_come(
    library: Library, film: Version
) -> None:
    newer = version_of(a_film(2), version=2)
    for version in (newer, film):
        bring(library, version)
        library.link_script(library.root(version.manifest))
    assert library.bundles.linked_script("A film") == newer.manifest


def test_adopting_stops_when_it_is_told_to(library: Library, film: Version) -> None:
    bring(library, film)
    newer = version_of(a_film(), version=2)
    newer.keep_documents(library.documents)
    staging = library.stage(newer.layout)
    library.adopt(staging, stopped=lambda: True)
    assert staging.held_bytes == 0
    staging.close()


def test_storage_that_does_not_answer_is_a_named_error(library: Library) -> None:
    library.paths = replace(library.paths, state=library.paths.state / "gone")
    with pytest.raises(StorageError):
        library.available_bytes()


def test_garbage_under_a_manifests_name_is_a_missing_manifest(
    library: Library, film: Version
) -> None:
    junk = library.documents.put_manifest(Envelope(b"no manifest", ()).encode())
    assert library.about(junk) is None
    with pytest.raises(DocumentMissing):
        library.root(junk)
    assert library.manifest_envelope(film.manifest) is None
