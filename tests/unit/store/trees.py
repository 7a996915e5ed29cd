"""Small trees for the store's tests: described as a dictionary, chunked, laid out, compared."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from archid.store.documents import DocumentStore
from archid.store.filling import SpanBytes
from archid.store.staging import Staging
from protocol.entries import FileEntry
from protocol.envelope import Envelope
from protocol.ids import FleetId, ManifestId, PieceId
from protocol.layout import Layout, Span
from protocol.manifest import ManifestRoot
from protocol.manifest_builder import ManifestBuilder

FLEET = FleetId(b"F" * 32)
MTIME_NS = 1_700_000_000_123_456_789


@dataclass(frozen=True)
class File:
    """A file's bytes; mode and time as the manifest will say them."""

    data: bytes
    executable: bool = False
    mtime_ns: int = MTIME_NS


@dataclass(frozen=True)
class Link:
    target: str


FOLDER = None
Tree = Mapping[str, "File | Link | None"]


@dataclass(frozen=True)
class Version:
    """A tree with its manifest."""

    tree: Tree
    root: ManifestRoot
    pieces: dict[PieceId, bytes]
    layout: Layout

    @property
    def manifest(self) -> ManifestId:
        return self.root.id

    def span_bytes(self, span: Span, skip: bytes = b"") -> bytes:
        """What an honest peer answers."""
        parts = []
        for n, at in enumerate(span.chunks):
            if n // 8 < len(skip) and skip[n // 8] >> n % 8 & 1:
                continue
            parts.append(self.chunk_bytes(at))
        return b"".join(parts)

    def chunk_bytes(self, at: int) -> bytes:
        place = self.layout.place(at)
        entry = self.tree[self.layout.files[place.file].path]
        assert isinstance(entry, File)
        return entry.data[place.offset : place.offset + self.layout.chunk(at).length]

    def file(self, path: str) -> FileEntry:
        return next(file for file in self.layout.files if file.path == path)

    def keep_documents(self, documents: DocumentStore) -> None:
        documents.put_manifest(Envelope(self.root.payload, ()).encode())
        documents.put_pieces(self.pieces.values())


def cut(data: bytes, chunk_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Chunks of one size: where real ones would be cut does not matter to the store."""
    for start in range(0, len(data), chunk_bytes):
        chunk = data[start : start + chunk_bytes]
        yield blake3(chunk).digest(), len(chunk)


def version_of(tree: Tree, *, version: int = 1, chunk_bytes: int = 4096) -> Version:
    builder = ManifestBuilder(FLEET, "feature", "A film", version)
    for path in sorted(tree, key=str.encode):
        entry = tree[path]
        if entry is None:
            builder.add_folder(path)
        elif isinstance(entry, Link):
            builder.add_link(path, entry.target)
        else:
            builder.add_file(
                path,
                executable=entry.executable,
                mtime_ns=entry.mtime_ns,
                chunks=cut(entry.data, chunk_bytes),
            )
    root, pieces = builder.finish()
    return Version(dict(tree), root, pieces, Layout.from_pieces(root, pieces))


def random_bytes(seed: int, size: int) -> bytes:
    return blake3(seed.to_bytes(8, "big")).digest(length=size)


def a_film(seed: int = 1) -> dict[str, File | Link | None]:
    """Large and small files, an empty one, folders, links, repeats and an executable."""
    shared = random_bytes(seed + 100, 8192)
    return {
        "big.bin": File(random_bytes(seed, 3_000_001)),
        "empty": File(b""),
        "empty folder": FOLDER,
        "panels": FOLDER,
        "panels/left.dat": File(random_bytes(seed + 1, 50_000)),
        "panels/latest": Link("left.dat"),
        "panels/repeat.dat": File(shared + random_bytes(seed + 2, 4096) + shared),
        "panels/right.dat": File(shared + random_bytes(seed + 3, 777)),
        "run.sh": File(b"#!/bin/sh\n", executable=True),
        "zeros": File(bytes(40_000)),
        "été 日本": FOLDER,
        "été 日本/ü.txt": File(b"small", mtime_ns=1),
    }


def assert_tree(path: Path, tree: Tree) -> None:
    """Every byte, mode and time at `path` is what the manifest says, and there is nothing else."""
    found = set()
    assert stat.S_IMODE(path.stat().st_mode) == 0o555
    for folder, folders, files in os.walk(path):
        for name in [*folders, *files]:
            inner = Path(folder, name)
            relative = str(inner.relative_to(path))
            found.add(relative)
            entry = tree[relative]
            info = inner.lstat()
            if entry is None:
                assert info.st_mode == stat.S_IFDIR | 0o555
            elif isinstance(entry, Link):
                assert os.readlink(inner) == entry.target
            else:
                assert inner.read_bytes() == entry.data
                assert stat.S_IFREG | (0o555 if entry.executable else 0o444) == info.st_mode
                assert info.st_mtime_ns == entry.mtime_ns
    assert found == set(tree)


def stage_all(staging: Staging, version: Version) -> None:
    """Bring every span that is missing, as one batch."""
    batch = []
    for span in version.layout.spans:
        if not staging.is_span_held(span):
            skip = staging.skip(span)
            batch.append(SpanBytes(span, skip, version.span_bytes(span, skip)))
    assert staging.write_spans(batch) == [None] * len(batch)


def place(version: Version, trees: Path, staging_folder: Path) -> Path:
    """The finished tree of a version."""
    staging = Staging.open(staging_folder / version.manifest.hex(), version.layout)
    stage_all(staging, version)
    target = trees / version.manifest.hex()
    staging.finish(target)
    return target
