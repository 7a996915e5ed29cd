"""What is known to be wrong with the trees of a node, from being found until it is repaired.

Whoever reads a tree writes in here what does not hold: a span that was asked for, `verify`, the
scrub. Whoever repairs reads it. Chunks that are named here are not offered to peers. Who has to be
told is not decided here: `on_change` is called whenever something came or went.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from archid.store.upkeep import Upkeep
from archid.store.verify import Damage
from protocol.ids import ManifestId


@dataclass(frozen=True)
class TreeDamage:
    """What is wrong with one tree."""

    manifest: ManifestId
    since_s: int
    chunks: frozenset[int] = frozenset()
    """The numbers, at their homes, of chunks that do not hold at every place."""
    entries: tuple[Damage, ...] = ()
    """What is wrong by name, as far as the tree has been looked at."""
    unread: bool = False
    """Found by an earlier process, which does not say what: all of it has to be read."""
    gone: bool = False
    """The whole tree is not there any more; it is fetched as one that never was."""


class DamageBook:
    """Safe in any thread."""

    def __init__(
        self, upkeep: Upkeep | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called in whichever thread, without a lock held."""
        self._upkeep = upkeep
        self._clock = clock
        self._lock = threading.Lock()
        self._damaged: dict[ManifestId, TreeDamage] = {}
        if upkeep is not None:
            for manifest, since_s in upkeep.damaged().items():
                self._damaged[manifest] = TreeDamage(manifest, since_s, unread=True)

    def all(self) -> list[TreeDamage]:
        """Every tree with something wrong, the longest known first."""
        with self._lock:
            return sorted(self._damaged.values(), key=lambda one: (one.since_s, one.manifest))

    def of(self, manifest: ManifestId) -> TreeDamage | None:
        with self._lock:
            return self._damaged.get(manifest)

    def chunks(self, manifest: ManifestId) -> frozenset[int]:
        """The chunks of a tree that are not to be offered to anybody."""
        found = self.of(manifest)
        return frozenset() if found is None else found.chunks

    def mark(self, manifest: ManifestId, chunks: Iterable[int]) -> bool:
        """Chunks, by the numbers of their homes, do not hold; True when that was not known."""
        with self._lock:
            before = self._damaged.get(manifest)
            known = before or TreeDamage(manifest, int(self._clock()))
            after = replace(known, chunks=known.chunks.union(chunks))
            if after == before:
                return False
            self._damaged[manifest] = after
        self._changed(manifest, before, after)
        return True

    def mark_gone(self, manifest: ManifestId) -> None:
        """The tree is not there any more."""
        with self._lock:
            before = self._damaged.get(manifest)
            known = before or TreeDamage(manifest, int(self._clock()))
            after = self._damaged[manifest] = replace(known, gone=True)
        self._changed(manifest, before, after)

    def found(
        self, manifest: ManifestId, chunks: Collection[int], entries: Iterable[Damage]
    ) -> None:
        """A tree was looked at: this is what is wrong with it, and nothing else is."""
        with self._lock:
            before = self._damaged.get(manifest)
            since_s = before.since_s if before is not None else int(self._clock())
            named = tuple(entries)
            after = None
            if chunks or named:
                after = TreeDamage(manifest, since_s, frozenset(chunks), named)
                self._damaged[manifest] = after
            else:
                self._damaged.pop(manifest, None)
        self._changed(manifest, before, after)

    def healed(self, manifest: ManifestId, chunks: Iterable[int]) -> None:
        """These chunks hold again at all of their places; the tree is to be looked at."""
        with self._lock:
            known = self._damaged.get(manifest)
            if known is not None:
                left = known.chunks.difference(chunks)
                self._damaged[manifest] = replace(known, chunks=left)

    def clear(self, manifest: ManifestId) -> None:
        """Another tree stands in its place, or none should: what was wrong is over."""
        with self._lock:
            before = self._damaged.pop(manifest, None)
        self._changed(manifest, before, None)

    def _changed(
        self, manifest: ManifestId, before: TreeDamage | None, after: TreeDamage | None
    ) -> None:
        if before == after:
            return
        if self._upkeep is not None and after is None:
            self._upkeep.forget_damaged(manifest)
        elif self._upkeep is not None and before is None and after is not None:
            self._upkeep.note_damaged(manifest, after.since_s)
        self.on_change()
