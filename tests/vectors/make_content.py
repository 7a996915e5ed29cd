"""Makes `chunking.json` and `manifest.json`: golden vectors of how content is cut and described.

Frozen like the other vectors: a test makes them again in memory and compares. The input streams
come from a generator that any language can have: block n of 32 bytes is the BLAKE3 digest of the
seed, a colon and n in decimal. `python -m tests.vectors.make_content` prints nothing and compares,
`--write` makes the files where there are none, `--replace` overwrites.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from blake3 import blake3
from pyfastcdc.py.constants import GEAR, MASKS

from archid.store.chunking import Cutter
from protocol.chunking_profile import PROFILES
from protocol.ids import FleetId
from protocol.layout import Layout
from protocol.limits import MAX_CHUNK_BYTES
from protocol.manifest_builder import ManifestBuilder

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

FOLDER: Final = Path(__file__).parent
CHUNKING: Final = FOLDER / "chunking.json"
MANIFEST: Final = FOLDER / "manifest.json"
FLEET: Final = FleetId(b"\x11" * 32)


def stream(seed: str, size_bytes: int) -> bytes:
    """Bytes that compress as badly as random ones and are the same everywhere."""
    blocks = [blake3(f"{seed}:{n}".encode()).digest() for n in range(-(-size_bytes // 32))]
    return b"".join(blocks)[:size_bytes]


def streams() -> list[tuple[str, str, bytes]]:
    """What is cut: a name, what it is made of, and the bytes."""
    base = stream("archid", 1 << 20)
    return [
        ("empty", "", b""),
        ("one byte", "the byte 0", b"\0"),
        ("the minimum", "stream(archid, 8192)", base[:8192]),
        ("one over the minimum", "stream(archid, 8193)", base[:8193]),
        ("a mebibyte", "stream(archid, 1048576)", base),
        ("an odd length", "stream(odd, 300001)", stream("odd", 300_001)),
        ("zeros", "300000 bytes 0: nothing but the maximum cuts them", bytes(300_000)),
        (
            "a byte inserted",
            "stream(archid, 1048576) with a byte 0x2a inserted at 100000",
            base[:100_000] + b"\x2a" + base[100_000:],
        ),
    ]


def chunking_vectors() -> Json:
    """The tables of the profile, and the streams with the chunks they are cut into."""
    rows: list[Json] = []
    for name, made_of, data in streams():
        chunks: list[Json] = [
            [chunk.length, chunk.id.hex()] for chunk in Cutter(1).cut(io.BytesIO(data))
        ]
        rows.append(
            {
                "name": name,
                "input": made_of,
                "sha256": hashlib.sha256(data).hexdigest(),
                "chunks": chunks,
            }
        )
    bits = PROFILES[1].average_bytes.bit_length() - 1
    step = PROFILES[1].normalization
    return {
        "profile": 1,
        "mask before the average": f"{MASKS[bits + step]:016x}",
        "mask after the average": f"{MASKS[bits - step]:016x}",
        "gear": [f"{value:016x}" for value in GEAR],
        "streams": rows,
    }


def _small(builder: ManifestBuilder) -> None:
    one = (blake3(b"one").digest(), 3)
    two = (blake3(b"two").digest(), 131_072)
    builder.add_file("empty", executable=False, mtime_ns=0, chunks=())
    builder.add_folder("folder")
    builder.add_folder("folder/empty folder")
    builder.add_link("folder/link", "../empty")
    builder.add_file(
        "folder/run.sh", executable=True, mtime_ns=1_700_000_000_000_000_001, chunks=[one]
    )
    builder.add_file("nfc \u00e9", executable=False, mtime_ns=2**63 - 1, chunks=[two, one, two])
    builder.add_file("other e\u0301", executable=False, mtime_ns=1, chunks=[one])


def _long_file(builder: ManifestBuilder) -> None:
    chunks = [(blake3(f"chunk {n}".encode()).digest(), 20_000 + n) for n in range(3_000)]
    builder.add_file("before", executable=False, mtime_ns=1, chunks=chunks[:2])
    builder.add_file("long", executable=False, mtime_ns=2, chunks=chunks)
    builder.add_file("then", executable=False, mtime_ns=3, chunks=chunks[-1:])


def _many_entries(builder: ManifestBuilder) -> None:
    for n in range(600):
        builder.add_folder(f"folder {n:04}")
        builder.add_link(f"folder {n:04}/link", "../folder 0000")
        chunk = (blake3(f"file {n}".encode()).digest(), 1 + n)
        builder.add_file(f"folder {n:04}/x", executable=n % 2 == 0, mtime_ns=n, chunks=[chunk])


def _equal_chunks(builder: ManifestBuilder) -> None:
    chunk = (b"\xff" * 32, MAX_CHUNK_BYTES)
    builder.add_file("zeros", executable=False, mtime_ns=1, chunks=[chunk] * 6_000)


def _nothing(_: ManifestBuilder) -> None:
    """An empty tree."""


TREES: Final[dict[str, Callable[[ManifestBuilder], None]]] = {
    "nothing": _nothing,
    "small": _small,
    "a file over several pieces": _long_file,
    "many entries": _many_entries,
    "a run of equal chunks": _equal_chunks,
}


def manifest_vectors() -> Json:
    """Trees, as the functions above build them, with roots, pieces and spans."""
    rows: list[Json] = []
    for version, (name, fill) in enumerate(TREES.items(), 1):
        builder = ManifestBuilder(FLEET, "feature", "Vector", version)
        fill(builder)
        root, pieces = builder.finish()
        layout = Layout.from_pieces(root, pieces)
        refs: list[Json] = [
            [ref.id.hex(), ref.length, ref.chunk_count, ref.size_bytes] for ref in root.pieces
        ]
        spans: list[Json] = [
            [span.piece_index, span.n, span.chunk_count, span.size_bytes, layout.wanted_bytes(span)]
            for span in layout.spans
        ]
        row: dict[str, Json] = {
            "tree": name,
            "manifest": root.id.hex(),
            "root": root.payload.hex(),
            "pieces": refs,
            "spans": spans,
        }
        if len(pieces) == 1:
            row["piece"] = next(iter(pieces.values())).hex()
        rows.append(row)
    return {
        "pieces": "id, length in bytes, chunks, bytes of content",
        "spans": "piece index, n, chunks, bytes, bytes of chunks that have their home there",
        "trees": rows,
    }


def text(vectors: Json) -> str:
    """What the files hold."""
    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Compare, write or replace; 1 when a file differs."""
    differs = False
    for path, vectors in ((CHUNKING, chunking_vectors()), (MANIFEST, manifest_vectors())):
        made = text(vectors)
        if "--replace" in sys.argv or ("--write" in sys.argv and not path.exists()):
            path.write_text(made)
        differs |= not path.exists() or path.read_text() != made
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
