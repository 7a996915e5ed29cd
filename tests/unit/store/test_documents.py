"""The document store: whole or missing, never something else."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archid.store.documents import DocumentStore
from archid.store.errors import DiskFull, DocumentMissing, StoreReadOnly
from archid.store.shelves import MANIFESTS, PIECES
from protocol import limits
from protocol.envelope import Envelope, Signature
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import DocumentId, KeyId, ListId, ManifestId, NodeId, PageId, PieceId

NODE = NodeId(b"N" * 32)
GRANTS = DocumentId(b"G" * 32)


@pytest.fixture
def documents(tmp_path: Path) -> DocumentStore:
    return DocumentStore(tmp_path / "documents")


def envelope(payload: bytes) -> bytes:
    return Envelope(payload, (Signature(KeyId(b"K" * 32), b"s" * 64),)).encode()


def files_of(documents: DocumentStore) -> list[Path]:
    return [path for path in documents.path.rglob("*") if path.is_file()]


Kind = tuple[Callable[[DocumentStore], object], Callable[[DocumentStore], bytes], bytes]

KINDS: dict[str, Kind] = {
    "manifest": (
        lambda d: d.put_manifest(envelope(b"m")),
        lambda d: d.get_manifest(ManifestId.of(b"m")),
        envelope(b"m"),
    ),
    "piece": (lambda d: d.put_piece(b"p"), lambda d: d.get_piece(PieceId.of(b"p")), b"p"),
    "root": (lambda d: d.put_root(3, envelope(b"r")), lambda d: d.get_root(3), envelope(b"r")),
    "head": (
        lambda d: d.put_head(envelope(b"h")),
        lambda d: d.get_head(DocumentId.of(b"h")),
        envelope(b"h"),
    ),
    "grants": (
        lambda d: d.put_grants(envelope(b"g")),
        lambda d: d.get_grants(DocumentId.of(b"g")),
        envelope(b"g"),
    ),
    "syncs": (
        lambda d: d.put_syncs(envelope(b"s")),
        lambda d: d.get_syncs(DocumentId.of(b"s")),
        envelope(b"s"),
    ),
    "leaf": (
        lambda d: d.put_leaf(NODE, GRANTS, b"leaf"),
        lambda d: d.get_leaf(NODE, GRANTS),
        b"leaf",
    ),
    "list": (lambda d: d.put_list(b"l"), lambda d: d.get_list(ListId.of(b"l")), b"l"),
    "page": (lambda d: d.put_page(b"page"), lambda d: d.get_page(PageId.of(b"page")), b"page"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_what_was_put_is_got_also_after_a_restart(documents: DocumentStore, kind: str) -> None:
    put, get, data = KINDS[kind]
    with pytest.raises(DocumentMissing):
        get(documents)
    put(documents)
    put(documents)
    documents.sync()
    assert get(documents) == data
    assert get(DocumentStore(documents.path)) == data
    assert len(files_of(documents)) == 1


@every_kind
@pytest.mark.parametrize("damage", ["flip first", "flip last", "cut", "empty", "longer", "link"])
@pytest.mark.expect_errors("document_damaged")
def test_a_damaged_document_is_missing_set_aside_and_can_be_put_again(
    documents: DocumentStore, tmp_path: Path, kind: str, damage: str
) -> None:
    put, get, data = KINDS[kind]
    put(documents)
    [file] = files_of(documents)
    stored = file.read_bytes()
    file.chmod(0o600)
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(stored)
        file.unlink()
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.write_bytes(
            {
                "flip first": bytes([stored[0] ^ 1]) + stored[1:],
                "flip last": stored[:-1] + bytes([stored[-1] ^ 1]),
                "cut": stored[:-1],
                "empty": b"",
                "longer": stored + b"x",
            }[damage]
        )
    with pytest.raises(DocumentMissing):
        get(documents)
    with pytest.raises(DocumentMissing):
        get(documents)
    assert len(documents.damaged()) == 1
    put(documents)
    assert get(documents) == data


@pytest.mark.expect_errors("document_damaged")
def test_a_signature_that_rotted_is_noticed_although_the_id_leaves_it_out(
    documents: DocumentStore,
) -> None:
    manifest = documents.put_manifest(envelope(b"m"))
    [file] = files_of(documents)
    file.write_bytes(file.read_bytes().replace(b"s" * 64, b"s" * 63 + b"t"))
    with pytest.raises(DocumentMissing):
        documents.get_manifest(manifest)


@pytest.mark.expect_errors("document_damaged")
def test_a_document_under_another_ones_name_is_not_that_one(documents: DocumentStore) -> None:
    one, two = documents.put_manifest(envelope(b"1")), documents.put_manifest(envelope(b"2"))
    folder = documents.path / "manifests"
    os.replace(folder / one.hex(), folder / two.hex())
    with pytest.raises(DocumentMissing):
        documents.get_manifest(two)


@pytest.mark.expect_errors("document_damaged")
def test_a_folder_in_a_documents_place_is_moved_away(documents: DocumentStore) -> None:
    head = documents.put_head(envelope(b"h"))
    [file] = files_of(documents)
    file.unlink()
    (file / "inner").mkdir(parents=True)
    documents.put_head(envelope(b"h"))
    assert documents.get_head(head) == envelope(b"h")


def test_what_was_put_again_or_is_asked_for_again_is_not_collected(
    documents: DocumentStore,
) -> None:
    pieces = documents.put_pieces([b"1", b"2", b"3"])
    for file in files_of(documents):
        os.utime(file, (1000, 1000))
    assert {one.put_at for one in documents.stored(PIECES)} == {1000}
    documents.put_piece(b"1")
    assert documents.missing_pieces(pieces[:1] + pieces[2:]) == []
    assert documents.missing_pieces([pieces[1]], touch=True) == []
    gone = [documents.remove_unless_touched(PIECES, one.hex(), 2000) for one in pieces]
    assert gone == [False, False, True]


def test_listings_name_what_is_here_and_removal_takes_it_away(documents: DocumentStore) -> None:
    pieces = documents.put_pieces([b"1", b"2", b"3"])
    absent = PieceId.of(b"4")
    assert sorted(documents.pieces()) == sorted(pieces)
    assert documents.missing_pieces([absent, *pieces, absent]) == [absent]
    later = time.time() + 60
    assert documents.remove_unless_touched(PIECES, pieces[0].hex(), later)
    assert not documents.remove_unless_touched(PIECES, pieces[0].hex(), later)
    assert documents.missing_pieces(pieces) == [pieces[0]]
    manifest = documents.put_manifest(envelope(b"m"))
    assert documents.manifests() == [manifest]
    assert documents.remove_unless_touched(MANIFESTS, manifest.hex(), later)
    assert not documents.has_manifest(manifest)
    for version in (1, 2, 10):
        documents.put_root(version, envelope(b"r"))
    assert documents.root_versions() == [1, 2, 10]
    documents.put_leaf(NODE, GRANTS, b"leaf")
    assert documents.leaves() == [(NODE, GRANTS)]
    documents.remove_leaf(NODE, GRANTS)
    assert not documents.has_leaf(NODE, GRANTS)
    head, grants = documents.put_head(envelope(b"h")), documents.put_grants(envelope(b"g"))
    assert (documents.heads(), documents.grants()) == ([head], [grants])
    documents.remove_head(head)
    documents.remove_grants(grants)
    assert not documents.has_grants(grants)
    assert (documents.heads(), documents.grants()) == ([], [])


def test_what_is_no_document_is_refused(documents: DocumentStore) -> None:
    with pytest.raises(FormatError):
        documents.put_manifest(b"not an envelope")
    with pytest.raises(LimitExceeded):
        documents.put_piece(bytes(limits.MAX_PIECE_BYTES + 1))
    assert files_of(documents) == []


def test_what_a_killed_writer_left_is_swept(documents: DocumentStore) -> None:
    piece = documents.put_piece(b"p")
    [file] = files_of(documents)
    (file.parent / ".new-abc").write_bytes(b"half")
    assert documents.pieces() == [piece]
    assert documents.remove_leftovers() == 1
    assert files_of(documents) == [file]


def test_readers_never_see_half_a_document(documents: DocumentStore) -> None:
    both = [b"a" * 200_000, b"b" * 300_000]
    documents.put_leaf(NODE, GRANTS, both[0])
    done = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        while not done.is_set():
            if documents.get_leaf(NODE, GRANTS) not in both:
                wrong.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(100):
        documents.put_leaf(NODE, GRANTS, both[turn % 2])
    done.set()
    reader.join()
    assert wrong == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_and_a_read_only_disk_are_named_and_leave_what_was(tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(mounted)], check=True)
    try:
        documents = DocumentStore(mounted / "documents")
        kept = documents.put_piece(b"kept")
        (mounted / "ballast").write_bytes(bytes(200_000))
        with pytest.raises(DiskFull):
            documents.put_piece(bytes(100_000))
        assert documents.pieces() == [kept]
        assert documents.remove_leftovers() == 0
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
        with pytest.raises(StoreReadOnly):
            documents.put_piece(b"new")
        assert documents.get_piece(kept) == b"kept"
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)
