"""What is left of a fleet on a node that has left it."""

from __future__ import annotations

from pathlib import Path

import pytest

from archid.store.documents import DocumentStore
from archid.store.layout import StatePaths
from archid.store.leaving import forget_membership
from protocol.envelope import Envelope
from protocol.ids import DocumentId, NodeId


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    """A state folder with one of everything that a fleet leaves behind."""
    paths = StatePaths(tmp_path / "state", tmp_path / "scripts")
    paths.prepare()
    documents = DocumentStore(paths.documents)
    envelope = Envelope(b"payload", ()).encode()
    documents.put_root(2, envelope)
    documents.put_head(envelope)
    documents.put_leaf(NodeId.of(b"n"), documents.put_grants(envelope), b"a neighbour's leaf")
    documents.put_list(b"the roster")
    documents.put_page(b"a page of it")
    documents.put_manifest(envelope)
    documents.put_piece(b"a piece")
    for path in (paths.trust, paths.addresses, paths.journal_db, paths.identity / "key.pem"):
        path.write_text("")
    (paths.trees / "aa").mkdir()
    return paths


def test_nothing_that_the_fleet_said_about_itself_stays(paths: StatePaths) -> None:
    forget_membership(paths, purge=False)
    documents = DocumentStore(paths.documents)
    assert documents.root_versions() == []
    assert documents.heads() == []
    assert documents.grants() == []
    assert documents.leaves() == []
    assert not documents.has_grants(DocumentId.of(b"payload"))
    left = sorted(path.name for path in paths.state.rglob("*") if path.is_file())
    assert len(left) == 3, left  # the format, the manifest and its piece
    assert not paths.identity.exists()


def test_what_a_player_may_be_playing_stays_with_its_manifest(paths: StatePaths) -> None:
    forget_membership(paths, purge=False)
    documents = DocumentStore(paths.documents)
    assert len(documents.manifests()) == 1
    assert len(documents.pieces()) == 1
    assert (paths.trees / "aa").is_dir()


def test_leaving_twice_is_no_error(paths: StatePaths) -> None:
    assert forget_membership(paths, purge=False)
    assert forget_membership(paths, purge=False) == []
