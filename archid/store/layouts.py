"""Layouts of manifests at hand, built when needed and let go when idle.

A layout costs tens of bytes a chunk and the time to check every piece, so the last few stay in
memory while something uses them; a node at rest keeps none. Callers say when time has passed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing, ManifestUnfit
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.ids import ManifestId
from protocol.layout import Layout
from protocol.manifest import ManifestRoot
from protocol.publication import MAX_PUBLICATION_BYTES

MAX_CHUNKS: Final = 1_000_000
"""Chunks in all layouts together; one layout may have more and is then the only one."""
MAX_LAYOUTS: Final = 16
IDLE_S: Final = 30.0


class Layouts:
    """Builds layouts from the document store; safe in any thread, blocking."""

    def __init__(self, documents: DocumentStore) -> None:
        self.on_missing: Callable[[ManifestId], None] = lambda _: None
        """Told, in whichever thread, of a manifest whose documents are not here."""
        self._documents = documents
        self._lock = threading.Lock()
        self._kept: OrderedDict[ManifestId, Layout] = OrderedDict()
        self._used_at: dict[ManifestId, float | None] = {}

    def get(self, manifest: ManifestId) -> Layout:
        """The layout of a manifest.

        Raises DocumentMissing when the root or a piece is not here, ManifestUnfit when they are
        and make no tree.
        """
        try:
            with self._lock:
                layout = self._kept.get(manifest)
                if layout is None:
                    layout = self._build(manifest)
                    self._kept[manifest] = layout
                self._kept.move_to_end(manifest)
                self._used_at[manifest] = None
                self._shrink()
                return layout
        except ManifestUnfit:
            raise
        except DocumentMissing:
            self.on_missing(manifest)
            raise

    def at_hand(self, manifest: ManifestId) -> Layout | None:
        """The layout if that takes no time: it is built, and nobody is building another."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            layout = self._kept.get(manifest)
            if layout is not None:
                self._used_at[manifest] = None
            return layout
        finally:
            self._lock.release()

    def release_idle(self, now: float) -> bool:
        """Forget layouts that were idle for IDLE_S; to be called every few seconds.

        Idle time counts from the first call after a use. Returns whether there were any.
        """
        released = False
        with self._lock:
            for manifest, used_at in list(self._used_at.items()):
                if used_at is None:
                    self._used_at[manifest] = now
                elif now - used_at >= IDLE_S:
                    self._drop(manifest)
                    released = True
        return released

    def forget(self, manifest: ManifestId) -> None:
        """Forget one layout, if it is here."""
        with self._lock:
            self._drop(manifest)

    def _build(self, manifest: ManifestId) -> Layout:
        # What the store gives is what was signed, to the bit: it says so itself.
        data = self._documents.get_manifest(manifest)
        script = f"the version {manifest.short}"
        try:
            envelope = Envelope.decode(data, max_bytes=MAX_PUBLICATION_BYTES)
            root = ManifestRoot.decode(envelope.payload)
            script = f"'{root.name}', version {root.version},"
            return Layout(root, (self._documents.get_piece(ref.id) for ref in root.pieces))
        except ProtocolError as error:
            raise ManifestUnfit(manifest.hex(), script, str(error)) from error

    def _shrink(self) -> None:
        while len(self._kept) > 1 and (
            len(self._kept) > MAX_LAYOUTS
            or sum(layout.chunk_count for layout in self._kept.values()) > MAX_CHUNKS
        ):
            self._drop(next(iter(self._kept)))

    def _drop(self, manifest: ManifestId) -> None:
        self._kept.pop(manifest, None)
        self._used_at.pop(manifest, None)
