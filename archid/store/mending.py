"""A placed tree whose damaged chunks are brought again, by the fetcher as by a staging.

What lacks is what the tree was found to lack. Each chunk is written where it belongs as soon as
it was verified, so that every hard link heals and whoever reads meanwhile sees wrong bytes become
right ones; a file that was gone cannot be opened by the player until the last of its bytes is in.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from archid.log import get_logger
from archid.store import repairing
from archid.store.adoption import Find, adopt_chunks
from archid.store.chunk_reading import check_chunks, chunks_of
from archid.store.damage import DamageBook
from archid.store.errors import DatabaseDamaged, DocumentMissing, NotMended
from archid.store.filling import Filling
from archid.store.syscalls import Buffer
from archid.store.tree_folder import TreeFolder
from archid.store.tree_store import TreeStore
from archid.store.verify import Damage, DamageKind
from protocol.entries import FileEntry
from protocol.ids import ManifestId
from protocol.layout import Layout, Span

log = get_logger(__name__)

_MADE_ANEW: Final = frozenset({DamageKind.MISSING, DamageKind.NOT_A_FILE})


class Mending(Filling):
    """One tree being repaired; `open` looks at it and puts right what needs no bytes."""

    def __init__(self, layout: Layout, trees: TreeStore, damages: Sequence[Damage]) -> None:
        self.layout = layout
        self._trees = trees
        self._book: DamageBook = trees.damage
        self._lock = threading.Lock()
        self._missing = {layout.home(at) for damage in damages for at in damage.chunks}
        self._lacked = frozenset(self._missing)
        self.held_bytes = layout.root.size_bytes - sum(
            layout.length(at) * len(layout.places(at)) for at in self._missing
        )
        self._missing_of: dict[int, set[int]] = {}
        for at in self._missing:
            for place in layout.places(at):
                self._missing_of.setdefault(place.file, set()).add(at)
        anew = [layout.entries.find(one.path) for one in damages if one.kind in _MADE_ANEW]
        self._made_anew = {file.number for file in anew if isinstance(file, FileEntry)}

    @classmethod
    def open(
        cls, layout: Layout, trees: TreeStore, *, stopped: Callable[[], bool] = lambda: False
    ) -> Mending:
        """Look at the tree, mend its entries; blocks. Raises DocumentMissing, StorageError."""
        damages = trees.survey(layout.manifest, stopped=stopped)
        trees.repair(layout.manifest, damages=damages)
        return cls(layout, trees, damages)

    def is_held(self, at: int) -> bool:
        return self.layout.home(at) not in self._missing

    def missing_chunks(self) -> list[int]:
        with self._lock:
            return sorted(self._missing)

    def take_local(self, find: Find, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Bring what stands whole elsewhere on this disk; blocks. Raises StorageError."""
        for at in self.missing_chunks():
            if len(self.layout.places(at)) > 1 and not stopped():
                data = self._trees.read_chunk(self.layout, at)
                if data is not None:
                    self.write_chunks([(at, data)])
        try:
            adopt_chunks(self, find, self._trees.trees, stopped=stopped)
        except DatabaseDamaged as error:
            # The index only saves work: what it cannot tell is fetched.
            log.error("index_damaged", why=str(error))

    def finish(self) -> None:
        """Look at the tree again, in which nothing lacks any more; blocks.

        Raises NotMended when the disk does not give back what was written to it, DocumentMissing,
        StorageError.
        """
        damages = self._trees.survey(self.layout.manifest)
        if damages:
            raise NotMended(self._trees.path(self.layout.manifest), damages[0].sentence)

    def mended_spans(self) -> list[Span]:
        """The spans that lacked something, and lack nothing any more."""
        with self._lock:
            spans = self.layout.spans
            return [
                span
                for span in spans
                if not self._lacked.isdisjoint(span.chunks)
                and self._missing.isdisjoint(span.chunks)
            ]

    def write_chunks(self, chunks: Iterable[tuple[int, Buffer]]) -> None:
        layout = self.layout
        with self._lock:
            lacking = {
                layout.home(at): data for at, data in chunks if layout.home(at) in self._missing
            }
            if not lacking:
                return
            unfinished = {
                number
                for number in self._made_anew
                if self._missing_of.get(number, set()) - lacking.keys()
            }
            tree = self._trees.path(layout.manifest)
            repairing.write_chunks(layout, tree, lacking, unfinished=unfinished)
            for at in lacking:
                self._missing.discard(at)
                for place in layout.places(at):
                    self._missing_of[place.file].discard(at)
                    self.held_bytes += layout.length(at)
        self._trees.reopen(layout.manifest)
        self._book.healed(layout.manifest, lacking)


def mark_damaged(trees: TreeStore, manifest: ManifestId, path: str) -> None:
    """Read one file of a tree, of which something did not hold, and mark what does not; blocks."""
    with contextlib.suppress(DocumentMissing):
        layout = trees.layouts.get(manifest)
        file = layout.entries.find(path)
        if not isinstance(file, FileEntry):
            return
        good: set[int] = set()
        with contextlib.suppress(OSError), TreeFolder.at(trees.path(manifest)) as folder:
            fd = folder.open_file(path)
            try:
                checked = check_chunks(fd, layout, chunks_of(file))
                good = {at for at, data in checked if data is not None}
            finally:
                os.close(fd)
        if bad := {layout.home(at) for at in chunks_of(file) if at not in good}:
            trees.damage.mark(manifest, bad)
