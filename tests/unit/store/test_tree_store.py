"""Serving and mending finished trees: nothing leaves unhashed, repair heals every link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from archid.errors import NotFound
from archid.store.documents import DocumentStore
from archid.store.errors import ChunkCorrupt, DocumentMissing
from archid.store.layouts import IDLE_S, Layouts
from archid.store.repairing import mend_entries, write_chunks
from archid.store.tree_store import TreeStore
from archid.store.verify import DamageKind
from protocol.ids import ManifestId, PieceId
from tests.unit.store.trees import (
    MTIME_NS,
    File,
    Tree,
    Version,
    a_film,
    assert_tree,
    place,
    random_bytes,
    version_of,
)


class Node:
    def __init__(self, base: Path) -> None:
        self.trees, self.staging = base / "trees", base / "staging"
        self.trees.mkdir()
        self.staging.mkdir()
        self.documents = DocumentStore(base / "documents")
        self.layouts = Layouts(self.documents)
        self.store = TreeStore(self.trees, self.layouts)

    def add(self, tree: Tree, number: int = 1, chunk_bytes: int = 4096) -> Version:
        version = version_of(tree, version=number, chunk_bytes=chunk_bytes)
        version.keep_documents(self.documents)
        place(version, self.trees, self.staging)
        return version


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.store.close()


def damage(path: Path, offset: int, data: bytes) -> None:
    """Change bytes as a disk does: time and mode stay."""
    info = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))
    path.chmod(info.st_mode & 0o777)


def test_every_span_is_served_as_published(node: Node) -> None:
    version = node.add(a_film())
    assert node.store.manifests() == [version.manifest]
    for wanted in version.layout.spans:
        layout, span = node.store.span(version.manifest, wanted.piece, wanted.n)
        assert span == wanted
        assert b"".join(node.store.read_span(layout, span)) == version.span_bytes(span)
        for skip in (b"\x01", b"\xaa\x55", b"\xff" * ((span.chunk_count + 7) // 8)):
            served = b"".join(node.store.read_span(layout, span, skip))
            assert served == version.span_bytes(span, skip)


def test_a_span_that_is_not_there_has_a_name_of_its_own(node: Node) -> None:
    version = node.add(a_film())
    [first, *_] = version.layout.spans
    for piece, n in ((first.piece, 9999), (PieceId(bytes(32)), 0)):
        with pytest.raises(NotFound) as refused:
            node.store.span(version.manifest, piece, n)
        assert refused.value.code == "unknown_span"
    with pytest.raises(DocumentMissing):
        node.store.span(ManifestId(bytes(32)), first.piece, 0)


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 1_500_000, 3_000_000])
def test_one_flipped_bit_is_neither_served_nor_overlooked(node: Node, offset: int) -> None:
    version = node.add(a_film())
    path = node.store.path(version.manifest) / "big.bin"
    byte = path.read_bytes()[offset]
    damage(path, offset, bytes([byte ^ 1]))
    bad = [
        at
        for at in version.layout.distinct_chunks()
        if version.layout.files[version.layout.place(at).file].path == "big.bin"
        and version.layout.place(at).offset <= offset
        and offset < version.layout.place(at).offset + version.layout.chunk(at).length
    ]
    refused = 0
    for span in version.layout.spans:
        if bad[0] in span.chunks:
            with pytest.raises(ChunkCorrupt, match=r"big\.bin"):
                node.store.read_span(version.layout, span)
            refused += 1
        else:
            node.store.read_span(version.layout, span)
    assert refused == 1
    assert node.store.rotten(version.manifest) == set(bad)
    [found] = node.store.verify(version.manifest)
    assert (found.path, found.kind, list(found.chunks)) == ("big.bin", DamageKind.FLIPPED, bad)


def test_a_repeat_stands_in_for_a_rotten_chunk(node: Node) -> None:
    block = random_bytes(1, 4096)
    version = node.add({"a": File(block), "b": File(block)})
    damage(node.store.path(version.manifest) / "a", 7, b"rot")
    [span] = version.layout.spans
    assert b"".join(node.store.read_span(version.layout, span)) == block * 2
    assert node.store.rotten(version.manifest) == {0}


def test_repair_in_place_heals_every_link_and_keeps_the_time(node: Node) -> None:
    version = node.add({"a": File(random_bytes(1, 100_000)), "b": File(b"b")})
    path = node.store.path(version.manifest) / "a"
    linked = node.trees.parent / "linked"
    os.link(path, linked)
    inode = path.stat().st_ino
    damage(path, 50_000, b"rotten")
    damages = node.store.verify(version.manifest)
    chunks = {at: version.chunk_bytes(at) for found in damages for at in found.chunks}
    node.store.repair(version.manifest, chunks=chunks, damages=damages)
    assert node.store.verify(version.manifest) == []
    assert node.store.rotten(version.manifest) == frozenset()
    assert_tree(node.store.path(version.manifest), version.tree)
    assert path.stat().st_ino == inode
    assert linked.read_bytes() == random_bytes(1, 100_000)
    assert linked.stat().st_mtime_ns == MTIME_NS


def test_repair_refuses_wrong_bytes_and_writes_none(node: Node) -> None:
    version = node.add({"a": File(random_bytes(1, 10_000))})
    good = version.chunk_bytes(0)
    with pytest.raises(ChunkCorrupt):
        node.store.repair(version.manifest, chunks={0: good, 1: bytes(4096)})
    assert_tree(node.store.path(version.manifest), version.tree)


def test_whatever_was_done_to_a_tree_is_named_and_mended(node: Node, tmp_path: Path) -> None:
    version = node.add(a_film())
    tree = node.store.path(version.manifest)
    for folder in (tree, tree / "panels", tree / "empty folder", tree / "été 日本"):
        folder.chmod(0o755)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "ü.txt").write_bytes(b"precious")
    (tree / "big.bin").chmod(0o644)
    os.truncate(tree / "big.bin", 2_000_000)
    with (tree / "panels" / "left.dat").open("ab") as file:
        file.write(b"more")
    (tree / "panels" / "right.dat").unlink()
    (tree / "empty").unlink()
    (tree / "extra").mkdir()
    (tree / "extra" / "file").write_bytes(b"x")
    (tree / "panels" / "latest").unlink()
    (tree / "panels" / "latest").symlink_to("/etc/passwd")
    (tree / "run.sh").chmod(0o777)
    os.utime(tree / "zeros", ns=(1, 1))
    (tree / "empty folder").rmdir()
    (tree / "empty folder").write_bytes(b"")
    (tree / "été 日本" / "ü.txt").unlink()
    (tree / "été 日本").rmdir()
    (tree / "été 日本").symlink_to(outside)
    seen = 0

    def progress(count: int) -> None:
        nonlocal seen
        seen += count

    damages = node.store.verify(version.manifest, progress=progress)
    assert seen > 3_000_000
    kinds = {(found.path, found.kind) for found in damages}
    assert kinds >= {
        ("", DamageKind.MODE),
        ("big.bin", DamageKind.TRUNCATED),
        ("big.bin", DamageKind.MODE),
        ("panels/left.dat", DamageKind.TOO_LONG),
        ("panels/right.dat", DamageKind.MISSING),
        ("empty", DamageKind.MISSING),
        ("extra", DamageKind.EXTRA),
        ("panels/latest", DamageKind.LINK),
        ("run.sh", DamageKind.MODE),
        ("zeros", DamageKind.TIME),
        ("empty folder", DamageKind.NOT_A_FILE),
        ("été 日本", DamageKind.NOT_A_FILE),
        ("été 日本/ü.txt", DamageKind.MISSING),
    }
    assert all(found.sentence for found in damages)
    assert "extra/file" not in {found.path for found in damages}
    chunks = {at: version.chunk_bytes(at) for found in damages for at in found.chunks}
    node.store.repair(version.manifest, chunks=chunks, damages=damages)
    assert node.store.verify(version.manifest) == []
    assert_tree(tree, version.tree)
    assert (outside / "ü.txt").read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_mending_works_for_a_user_that_is_not_root(node: Node) -> None:
    """Read-only files and folders must not be in their owner's way."""
    version = node.add(a_film())
    tree = node.store.path(version.manifest)
    damage(tree / "big.bin", 50_000, b"rotten")
    (tree / "panels" / "right.dat").unlink()
    (tree / "panels" / "latest").unlink()
    (tree / "strange").mkdir(mode=0o500)
    damages = node.store.verify(version.manifest)
    chunks = {at: version.chunk_bytes(at) for found in damages for at in found.chunks}
    for path in (node.trees, tree, *tree.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    child = os.fork()
    if not child:
        code = 1
        try:
            # Relative, since pytest's folder lets nobody else pass.
            os.chdir(node.trees)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            here = Path(tree.name)
            mend_entries(version.layout, here, damages)
            write_chunks(version.layout, here, chunks)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert node.store.verify(version.manifest) == []
    assert_tree(tree, version.tree)


def test_a_file_that_is_gone_is_not_served_and_can_be_made_anew(node: Node) -> None:
    version = node.add(a_film())
    tree = node.store.path(version.manifest)
    tree.chmod(0o755)
    (tree / "big.bin").unlink()
    (tree / "big.bin").symlink_to("/etc/passwd")
    tree.chmod(0o555)
    with pytest.raises(ChunkCorrupt):
        node.store.read_span(version.layout, version.layout.spans[0])
    [found] = node.store.verify(version.manifest)
    assert found.kind is DamageKind.NOT_A_FILE
    chunks = {at: version.chunk_bytes(at) for at in found.chunks}
    node.store.repair(version.manifest, chunks=chunks, damages=[found])
    assert_tree(tree, version.tree)


def test_a_tree_that_is_a_link_to_elsewhere_is_not_here(node: Node, tmp_path: Path) -> None:
    version = node.add(a_film())
    tree = node.store.path(version.manifest)
    tree.rename(tmp_path / "elsewhere")
    tree.symlink_to(tmp_path / "elsewhere")
    assert not node.store.has(version.manifest)
    with pytest.raises(NotFound):
        node.store.read_span(version.layout, version.layout.spans[0])
    [found] = node.store.verify(version.manifest)
    assert found.kind is DamageKind.NOT_A_FILE


def test_a_removed_tree_is_gone_at_once_and_what_it_shares_stays(node: Node) -> None:
    version = node.add(a_film())
    path = node.store.path(version.manifest)
    kept = node.trees.parent / "kept"
    os.link(path / "big.bin", kept)
    node.store.read_span(version.layout, version.layout.spans[0])
    node.store.remove(version.manifest)
    node.store.remove(version.manifest)
    assert list(node.trees.iterdir()) == []
    assert kept.stat().st_size == 3_000_001
    with pytest.raises(NotFound) as refused:
        node.store.read_span(version.layout, version.layout.spans[0])
    assert refused.value.code == "unknown_manifest"


def test_a_removal_that_was_killed_is_finished_later(node: Node) -> None:
    version = node.add(a_film())
    path = node.store.path(version.manifest)
    path.rename(path.with_name(f".removed-{path.name}"))
    assert node.store.manifests() == []
    node.store.remove_leftovers()
    assert list(node.trees.iterdir()) == []


def test_at_rest_nothing_stays_open_or_in_memory(node: Node) -> None:
    version = node.add(a_film())
    before = len(os.listdir("/proc/self/fd"))
    layout, span = node.store.span(version.manifest, *version.layout.spans[0][1:3])
    node.store.read_span(layout, span)
    assert node.layouts.get(version.manifest) is layout
    node.store.release_idle(100.0)
    node.store.release_idle(101.0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert node.layouts.get(version.manifest) is layout
    assert not node.store.release_idle(102.0)
    assert node.store.release_idle(102.0 + IDLE_S)
    assert node.layouts.get(version.manifest) is not layout
    assert b"".join(node.store.read_span(layout, span)) == version.span_bytes(span)


@pytest.mark.expect_errors("document_damaged")
def test_a_damaged_piece_makes_the_layout_missing_not_wrong(node: Node) -> None:
    version = node.add(a_film())
    piece, *_ = version.pieces
    path = node.documents.path / "pieces" / piece.hex()[:2] / piece.hex()
    damage(path, 100, b"rot")
    with pytest.raises(DocumentMissing, match="pieces"):
        node.layouts.get(version.manifest)
    assert node.documents.missing_pieces([piece]) == [piece]
    node.documents.put_pieces(version.pieces.values())
    assert node.layouts.get(version.manifest).manifest == version.manifest
