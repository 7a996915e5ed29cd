"""Pieces of a manifest, told by what they have in common with those of a version before.

Both sides' part of SPEC.md 5.7 that touches the documents: which pieces the asker names as bases,
and what a server makes of them. Functions block; call them from worker threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from archid.store.errors import DocumentMissing
from archid.store.library import Library
from protocol.ids import ManifestId, PieceId
from protocol.manifest import ManifestRoot
from protocol.piece_delta import Delta, DeltaMaker, apply_delta


def pieces_before(library: Library, root: ManifestRoot) -> list[PieceId]:
    """All pieces of the version here that is likely to be most like this one; maybe none."""
    versions = []
    for manifest in library.held():
        about = library.about(manifest)
        if about is not None and about.name == root.name and manifest != root.id:
            # The one just before, or else the nearest of the later ones.
            versions.append(
                (about.version > root.version, abs(about.version - root.version), manifest)
            )
    if versions:
        with contextlib.suppress(DocumentMissing):
            return [ref.id for ref in library.root(min(versions)[2]).pieces]
    return []


def deltas(
    library: Library, manifest: ManifestId, pieces: Sequence[PieceId], bases: Sequence[PieceId]
) -> list[Delta]:
    """The pieces as deltas against those of the bases that are here; raises DocumentMissing."""
    known: dict[int, bytes] = {}
    for number, base in enumerate(bases):
        with contextlib.suppress(DocumentMissing):
            known[number] = library.documents.get_piece(base)
    maker = DeltaMaker(known)
    return [maker.delta(library.seeding.piece(manifest, piece)) for piece in pieces]


def undo_delta(
    library: Library,
    ranges: Sequence[tuple[int, int, int]],
    data: bytes,
    bases: Sequence[PieceId],
    length: int,
) -> bytes:
    """A piece of `length` bytes from a delta; what it is, its id must tell.

    Raises DocumentMissing when a base was lost since it was named, FormatError.
    """
    used = {source for source, _, _ in ranges}
    known = [
        library.documents.get_piece(base) if number in used else b""
        for number, base in enumerate(bases, 1)
    ]
    return apply_delta(ranges, data, known, length)
