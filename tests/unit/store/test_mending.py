"""Mending a placed tree: what lacks, where it comes from, and what a reader can see meanwhile."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from archid.store.damage import DamageBook
from archid.store.database import Database
from archid.store.errors import ChunkCorrupt, NotMended
from archid.store.index import MIGRATIONS, ChunkIndex
from archid.store.mending import Mending, mark_damaged
from archid.store.upkeep import Upkeep
from tests.unit.store.test_tree_store import Node, damage
from tests.unit.store.trees import File, Version, assert_tree, random_bytes


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.store.close()


def bring(mending: Mending, version: Version) -> None:
    """What a fetch does: ask for what lacks, span by span."""
    for span in version.layout.spans:
        if not mending.is_span_held(span):
            skip = mending.skip(span)
            wanted = [
                at for n, at in enumerate(span.chunks) if not (skip and skip[n // 8] >> n % 8 & 1)
            ]
            data = b"".join(version.chunk_bytes(at) for at in wanted)
            mending.write_span(span, skip, data)


def test_only_what_is_damaged_is_asked_for_and_the_book_is_closed(node: Node) -> None:
    version = node.add({"a": File(random_bytes(1, 100_000)), "b": File(random_bytes(2, 50_000))})
    path = node.store.path(version.manifest) / "a"
    damage(path, 50_000, b"rotten")
    assert node.store.verify(version.manifest)
    [known] = node.store.damage.all()
    mending = Mending.open(version.layout, node.store)
    assert mending.missing_chunks() == sorted(known.chunks) == [50_000 // 4096]
    assert mending.missing_bytes == 4096
    with pytest.raises(NotMended):
        mending.finish()
    bring(mending, version)
    assert mending.is_complete
    assert [span for span in mending.mended_spans() if 12 in span.chunks]
    mending.finish()
    assert node.store.damage.all() == []
    assert_tree(node.store.path(version.manifest), version.tree)


def test_wrong_bytes_mend_nothing(node: Node) -> None:
    version = node.add({"a": File(random_bytes(1, 20_000))})
    damage(node.store.path(version.manifest) / "a", 0, b"rotten")
    node.store.verify(version.manifest)
    mending = Mending.open(version.layout, node.store)
    [span] = version.layout.spans
    skip = mending.skip(span)
    with pytest.raises(ChunkCorrupt):
        mending.write_span(span, skip, bytes(4096))
    assert mending.missing_chunks() == [0]


def test_a_file_that_was_gone_cannot_be_opened_before_it_is_whole(node: Node) -> None:
    version = node.add({"a": File(random_bytes(1, 20_000)), "b": File(b"b")})
    path = node.store.path(version.manifest) / "a"
    path.parent.chmod(0o755)
    path.unlink()
    node.store.verify(version.manifest)
    mending = Mending.open(version.layout, node.store)
    missing = mending.missing_chunks()
    mending.write_chunks([(at, version.chunk_bytes(at)) for at in missing[:-1]])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    mending.write_chunks([(missing[-1], version.chunk_bytes(missing[-1]))])
    mending.finish()
    assert_tree(node.store.path(version.manifest), version.tree)


def test_what_stands_elsewhere_on_the_disk_need_not_be_fetched(node: Node, tmp_path: Path) -> None:
    shared, other = random_bytes(1, 40_960), random_bytes(2, 4096)
    index = ChunkIndex(Database(tmp_path / "node.db", MIGRATIONS))
    first = node.add({"a": File(shared)}, 1)
    second = node.add({"a": File(other + shared), "again": File(shared[8192:20_480])}, 2)
    for version in (first, second):
        path = node.store.path(version.manifest)
        index.add_tree_blocking(version.manifest, version.layout, path)
    tree = node.store.path(second.manifest)
    for offset in (0, 9000, 30_000):
        damage(tree / "a", offset, b"rotten")
    node.store.verify(second.manifest)
    mending = Mending.open(second.layout, node.store)
    mending.take_local(index.find_blocking)
    # Only what nobody else here holds is left to be fetched.
    assert mending.missing_chunks() == [0]
    bring(mending, second)
    mending.finish()
    assert_tree(tree, second.tree)
    assert node.store.verify(first.manifest) == []


def test_a_file_that_did_not_hold_when_it_was_to_be_reused_is_marked(node: Node) -> None:
    version = node.add({"a": File(random_bytes(1, 20_000)), "b": File(random_bytes(2, 9000))})
    tree = node.store.path(version.manifest)
    mark_damaged(node.store, version.manifest, "a")
    mark_damaged(node.store, version.manifest, "not there")
    assert node.store.damage.all() == []
    damage(tree / "a", 5000, b"rotten")
    mark_damaged(node.store, version.manifest, "a")
    assert node.store.rotten(version.manifest) == {1}
    tree.chmod(0o755)
    (tree / "b").unlink()
    mark_damaged(node.store, version.manifest, "b")
    assert node.store.rotten(version.manifest) == {1, 5, 6, 7}


def test_that_a_tree_is_damaged_outlives_the_process(node: Node, tmp_path: Path) -> None:
    version = node.add({"a": File(random_bytes(1, 20_000))})
    with Database(tmp_path / "node.db", MIGRATIONS) as database:
        book = DamageBook(Upkeep(database), clock=lambda: 1000)
        assert book.mark(version.manifest, [1])
        assert not book.mark(version.manifest, [1])
        later = DamageBook(Upkeep(database), clock=lambda: 2000)
        [known] = later.all()
        assert (known.manifest, known.since_s, known.unread) == (version.manifest, 1000, True)
        later.found(version.manifest, (), ())
        assert later.all() == []
        assert DamageBook(Upkeep(database)).all() == []
