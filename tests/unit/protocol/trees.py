"""Trees to make manifests from: drawn by hypothesis, or large and regular."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3
from hypothesis import strategies as st

from protocol.ids import FleetId, PieceId
from protocol.limits import MAX_CHUNK_BYTES
from protocol.manifest import ManifestRoot
from protocol.manifest_builder import ManifestBuilder

FLEET = FleetId(b"f" * 32)


@dataclass(frozen=True)
class DrawnFile:
    """What the builder is told about a file."""

    executable: bool
    mtime_ns: int
    chunks: tuple[tuple[bytes, int], ...]


DrawnTree = dict[str, DrawnFile | str | None]
"""By path: a file, a link's target, or None for a folder."""


def chunk_id(seed: str | int) -> bytes:
    """The id of some chunk."""
    return blake3(str(seed).encode()).digest()


def build(
    tree: DrawnTree, *, name: str = "x", version: int = 1
) -> tuple[ManifestRoot, dict[PieceId, bytes]]:
    """The manifest of a tree, in path order."""
    builder = ManifestBuilder(FLEET, "feature", name, version)
    for path in sorted(tree, key=str.encode):
        entry = tree[path]
        if entry is None:
            builder.add_folder(path)
        elif isinstance(entry, str):
            builder.add_link(path, entry)
        else:
            builder.add_file(
                path, executable=entry.executable, mtime_ns=entry.mtime_ns, chunks=entry.chunks
            )
    return builder.finish()


def regular_tree(
    files: int, *, per_folder: int = 100, chunks: int = 1, changed: int | None = None
) -> DrawnTree:
    """Many small files in folders; the content of file number `changed` is another one."""
    tree: DrawnTree = {}
    for n in range(files):
        folder = f"folder {n // per_folder:04}"
        tree[folder] = None
        path = f"{folder}/file {n:06}.dat"
        salt = " changed" if n == changed else ""
        rows = tuple((chunk_id(f"{path}{k}{salt}"), 16_000 + k) for k in range(chunks))
        tree[path] = DrawnFile(
            executable=False, mtime_ns=1_700_000_000_123_456_789 + len(salt), chunks=rows
        )
    return tree


_NAMES = st.sampled_from(["a", "b", "b c", "d-e", "é", "日本", "z.dat", "0"])


@st.composite
def trees(draw: st.DrawFn) -> DrawnTree:
    """Small trees with every kind of entry; chunks come from a small set, so they repeat."""
    folders = {""}
    for _ in range(draw(st.integers(0, 6))):
        above = draw(st.sampled_from(sorted(folders)))
        folders.add(f"{above}/{draw(_NAMES)}".lstrip("/"))
    tree: DrawnTree = dict.fromkeys(folders - {""})
    for _ in range(draw(st.integers(0, 10))):
        above = draw(st.sampled_from(sorted(folders)))
        path = f"{above}/{draw(_NAMES)} {draw(st.integers(0, 99))}".lstrip("/")
        if draw(st.integers(0, 4)) == 0:
            tree[path] = draw(_NAMES)
            continue
        # A chunk's length follows from its id, as it does where ids are digests.
        seeds = draw(st.lists(st.integers(0, 40), max_size=60))
        tree[path] = DrawnFile(
            executable=draw(st.booleans()),
            mtime_ns=draw(st.integers(0, 2**63 - 1)),
            chunks=tuple(
                (chunk_id(seed), 1 + seed * (MAX_CHUNK_BYTES - 1) // 40) for seed in seeds
            ),
        )
    return tree
