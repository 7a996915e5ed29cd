"""The kinds of documents: where each lies, how large it may be, how its bytes answer for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protocol import limits
from protocol.envelope import Envelope
from protocol.ids import DocumentId, ListId, ManifestId, PageId, PieceId
from protocol.publication import MAX_PUBLICATION_BYTES


@dataclass(frozen=True)
class Shelf:
    """One kind of document: its folder, its bound, and how its bytes answer for themselves."""

    folder: str
    max_bytes: int
    identity: Callable[[bytes], bytes] | None
    fan_out: bool = False
    # An id that leaves signatures out, or names by place, cannot tell that a bit flipped in the
    # rest; such documents carry a BLAKE3 of all their bytes at the end of the file.
    checksum: bool = True


def _manifest_id(data: bytes) -> ManifestId:
    return ManifestId.of(Envelope.decode(data, max_bytes=MAX_PUBLICATION_BYTES).payload)


def _document_id(data: bytes) -> DocumentId:
    return DocumentId.of(Envelope.decode(data, max_bytes=limits.MAX_DOCUMENT_BYTES).payload)


MANIFESTS: Final = Shelf("manifests", MAX_PUBLICATION_BYTES, _manifest_id)
PIECES: Final = Shelf("pieces", limits.MAX_PIECE_BYTES, PieceId.of, fan_out=True, checksum=False)
ROOTS: Final = Shelf("roots", limits.MAX_DOCUMENT_BYTES, None)
HEADS: Final = Shelf("heads", limits.MAX_DOCUMENT_BYTES, _document_id)
GRANTS: Final = Shelf("grants", limits.MAX_DOCUMENT_BYTES, _document_id)
SYNCS: Final = Shelf("syncs", limits.MAX_DOCUMENT_BYTES, _document_id)
LEAVES: Final = Shelf("leaves", limits.MAX_DOCUMENT_BYTES, None, fan_out=True)
LISTS: Final = Shelf("lists", limits.MAX_DOCUMENT_BYTES, ListId.of, checksum=False)
PAGES: Final = Shelf("pages", limits.MAX_PAGE_BYTES, PageId.of, fan_out=True, checksum=False)
SHELVES: Final = (
    MANIFESTS, PIECES, ROOTS, HEADS, GRANTS, SYNCS, LEAVES, LISTS, PAGES
)  # fmt: skip

TRUST_SHELVES: Final = tuple(
    shelf.folder for shelf in (ROOTS, HEADS, GRANTS, SYNCS, LEAVES, LISTS, PAGES)
)
"""The folders of what a fleet says about itself; the others hold what content is made of."""
