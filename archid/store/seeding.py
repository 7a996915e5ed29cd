"""What others can have of the versions here: pieces, have-maps and spans.

A version is read from its tree, or from its staging folder while it is put together; either may
turn into the other, or be gone, between two questions. Methods block; call them from worker
threads. That the asker may have it is judged before, by the session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from archid.errors import NotFound
from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing
from archid.store.staged_reading import bitmaps_without, held_bitmaps, read_staged_span, span_of
from archid.store.staging import Staging
from archid.store.stagings import Stagings
from archid.store.syscalls import Buffer
from archid.store.tree_store import TreeStore
from protocol.errors import FormatError
from protocol.ids import ManifestId, PieceId
from protocol.layout import Layout


class Seeding:
    """Reads what a `Library` holds, for others."""

    def __init__(
        self,
        documents: DocumentStore,
        trees: TreeStore,
        stagings: Stagings,
        *,
        holds: Callable[[ManifestId], bool],
        look_again: Callable[[ManifestId], None],
    ) -> None:
        """`look_again` is told of a tree that was not where it should stand."""
        self._documents = documents
        self._trees = trees
        self._stagings = stagings
        self._holds = holds
        self._look_again = look_again

    def _layout(self, manifest: ManifestId) -> Layout:
        return self._trees.layouts.get(manifest)

    def piece(self, manifest: ManifestId, piece: PieceId) -> bytes:
        """A piece of a version that is here, be it in part; raises DocumentMissing otherwise."""
        here = self._holds(manifest) or self._stagings.shared(manifest) is not None
        if not here or all(ref.id != piece for ref in self._layout(manifest).root.pieces):
            raise DocumentMissing("pieces", piece.hex())
        return self._documents.get_piece(piece)

    def shared_bitmaps(self, manifest: ManifestId) -> list[tuple[int, bytes]] | None:
        """What can be read of a version that is not here whole; None when nothing can.

        One that is being fetched, or whose tree is damaged.
        """
        staging = self._stagings.shared(manifest)
        if staging is not None:
            return held_bitmaps(staging)
        if not self._trees.has(manifest):
            return None
        return bitmaps_without(self._layout(manifest), self._trees.rotten(manifest))

    def read_span(
        self,
        manifest: ManifestId,
        piece: PieceId,
        n: int,
        skip: bytes,
        room: memoryview | None = None,
    ) -> Buffer:
        """The wanted chunks of a span, every one hashed just now; in `room` if that is given.

        Raises NotFound, ChunkCorrupt, StorageError.
        """
        staging = self._stagings.shared(manifest)
        if staging is not None:
            try:
                span = span_of(staging.layout, piece, n)
                return read_staged_span(staging, span, skip, room)
            except NotFound as error:
                if error.code != "unknown_manifest":
                    raise
                # It has just become a tree.
        try:
            layout, span = self._trees.span(manifest, piece, n)
            parts = self._trees.read_span(layout, span, skip, room)
        except NotFound as error:
            if error.code == "unknown_manifest":
                self._look_again(manifest)
            raise
        return parts[0] if parts else b""

    def readable(
        self, manifest: ManifestId, wanted: Iterable[tuple[int, int]]
    ) -> tuple[Layout, list[int]]:
        """Those of some spans, named (piece index, n), that can be read here, by their indexes.

        Raises NotFound (unknown_manifest), DocumentMissing.
        """
        staging = self._stagings.shared(manifest)
        if staging is None and not self._trees.has(manifest):
            raise NotFound(f"The manifest {manifest.short} is not here", code="unknown_manifest")
        layout = self._layout(manifest) if staging is None else staging.layout
        return layout, self._readable(layout, staging, wanted)

    def readable_at_hand(
        self, manifest: ManifestId, wanted: Iterable[tuple[int, int]]
    ) -> tuple[Layout, list[int]] | None:
        """The same where memory alone tells, which does not block; None where it does not."""
        staging = self._stagings.shared(manifest)
        if staging is not None:
            layout: Layout | None = staging.layout
        else:
            layout = self._trees.layouts.at_hand(manifest) if self._holds(manifest) else None
        return None if layout is None else (layout, self._readable(layout, staging, wanted))

    def _readable(
        self, layout: Layout, staging: Staging | None, wanted: Iterable[tuple[int, int]]
    ) -> list[int]:
        indexes = []
        last, first, count = -1, 0, 0
        for piece_index, n in wanted:
            if piece_index != last:
                try:
                    spans = layout.spans_of_piece(piece_index)
                except FormatError:
                    spans = range(0)
                last, first, count = piece_index, spans.start, len(spans)
            if n < count:
                indexes.append(first + n)
        if staging is not None:
            return [n for n in indexes if staging.is_span_held(layout.spans[n])]
        rotten = self._trees.rotten(layout.manifest)
        if not rotten:
            return indexes
        return [n for n in indexes if rotten.isdisjoint(layout.spans[n].chunks)]
