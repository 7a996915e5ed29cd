"""Pieces of a manifest, told by what they have in common with those of a version before.

Both sides' part of SPEC.md 5.7 that touches the documents: which pieces the asker names as bases,
and what a server makes of them. Functions block; call them from worker threads.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from archid.store.errors import DocumentMissing
from archid.store.library import Library
from protocol.ids import ManifestId, PieceId
from protocol.manifest import ManifestRoot
from protocol.piece_delta import DeltaMaker, Range, apply_delta


@dataclass(frozen=True, slots=True)
class MadeDelta:
    """A delta as it is kept until it is sent: up to 8192 ranges as tuples would take 1 MB."""

    data: bytes
    _numbers: array[int]
    """Source, offset and length of each range, one after the other."""

    @property
    def ranges(self) -> tuple[Range, ...]:
        numbers = iter(self._numbers)
        return tuple(map(Range, numbers, numbers, numbers))

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, nearly."""
        return len(self.data) + len(self._numbers) * self._numbers.itemsize


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
) -> list[MadeDelta]:
    """The pieces as deltas against those of the bases that are here; raises DocumentMissing.

    At the limits of a request it takes some 30 MB and half a second of the interpreter's time.
    """
    # Before the work, so that asking for what is not here makes none.
    wanted = [library.seeding.piece(manifest, piece) for piece in pieces]
    known: dict[int, bytes] = {}
    for number, base in enumerate(bases):
        with contextlib.suppress(DocumentMissing):
            known[number] = library.documents.get_piece(base)
    maker = DeltaMaker(known)
    made = []
    for piece in wanted:
        delta = maker.delta(piece)
        made.append(MadeDelta(delta.data, array("I", chain.from_iterable(delta.ranges))))
    return made


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
