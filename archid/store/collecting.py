"""What nothing needs any more: found here, with its bytes and the reason, and removed.

`survey` changes nothing, so that a dry run tells what a real one removes. What has to stay is
said by whoever knows the node's role (`Needs`); a bundle on disk, a pin and a fetch that runs keep
what they use as well. Order: bundles, trees, staging, manifests, pieces, lists and their pages.
Methods block.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from archid.store.absences import Absence
from archid.store.bundles import BundleId
from archid.store.documents import Stored
from archid.store.errors import DocumentMissing, storage_error
from archid.store.folder_links import locked_alone
from archid.store.library import Library
from archid.store.shelves import LISTS, MANIFESTS, PAGES, PIECES, Shelf
from protocol.errors import ProtocolError
from protocol.ids import ListId, ManifestId, ReleaseId
from protocol.paged import decode_index

GRACE_S: Final = 24 * 3600.0
"""A document that nothing refers to may be on its way to be used: it stays for so long."""

LOCKED: Final = "a player holds a lock on it"


@dataclass(frozen=True)
class Needs:
    """What a node must hold by its role, under one head of the date `issued_s`."""

    granted: Mapping[ManifestId, frozenset[ReleaseId]]
    withdrawn: frozenset[ReleaseId]
    lists: frozenset[ListId]
    issued_s: int


@dataclass(frozen=True)
class Garbage:
    """One thing that can go, or that waits to; `members` are the files of several of a kind."""

    kind: str
    id: str
    name: str
    size_bytes: int
    why: str
    members: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Found:
    """What a survey found: `going` in the order in which it goes, and what stays for now."""

    going: tuple[Garbage, ...]
    waiting: tuple[Garbage, ...]
    at: float

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.going)


class Survey:
    """One look at everything that is here, at the moment `now` (seconds since 1970)."""

    def __init__(
        self,
        library: Library,
        needs: Needs,
        *,
        absences: Mapping[ManifestId, Absence],
        pinned: Collection[ManifestId],
        keep_s: float,
        now: float,
        keep_previous: bool = True,
    ) -> None:
        self._library = library
        self._needs = needs
        self._absences = absences
        self._keep_s = keep_s
        self._now = now
        self._keep_previous = keep_previous
        self._kept = {*needs.granted, *pinned, *library.stagings.in_use()}
        self._going: list[Garbage] = []
        self._waiting: list[Garbage] = []

    def found(self) -> Found:
        """Look; raises StorageError."""
        staying = self._bundles()
        trees = self._trees(staying)
        staged = self._staging()
        self._documents({*trees, *staged})
        self._lists()
        return Found(tuple(self._going), tuple(self._waiting), self._now)

    def _bundles(self) -> set[ManifestId]:
        """The trees of the bundles that stay."""
        bundles = self._library.bundles
        collectable = set(bundles.collectable(self._now, keep_previous=self._keep_previous))
        staying: set[ManifestId] = set()
        for bundle in bundles.bundles():
            path = bundles.path(bundle.id)
            if bundle.id in collectable:
                one = Garbage("bundle", bundle.id.hex(), "", _size(path), "no release uses it")
                if is_free(path):
                    self._going.append(one)
                    continue
                self._waiting.append(_because(one, LOCKED))
            staying.update(bundle.trees.values())
        return staying

    def _trees(self, in_bundles: set[ManifestId]) -> set[ManifestId]:
        """The trees that go."""
        candidates: dict[ManifestId, str] = {}
        for manifest in self._library.trees.manifests():
            if manifest in self._kept or manifest in in_bundles:
                continue
            path = self._library.tree(manifest)
            why, goes = self._judge(manifest)
            if goes and is_free(path):
                candidates[manifest] = why
            else:
                self._waiting.append(self._version("tree", manifest, 0, LOCKED if goes else why))
        freed = _freed({one: self._library.tree(one) for one in candidates})
        for manifest, why in candidates.items():
            self._going.append(self._version("tree", manifest, freed[manifest], why))
        return set(candidates)

    def _staging(self) -> set[ManifestId]:
        """What is staged for nobody."""
        gone = set()
        for manifest in self._library.staged():
            if manifest in self._kept:
                continue
            why, goes = self._judge(manifest)
            size = _size(self._library.paths.staging_of(manifest)) if goes else 0
            one = self._version("staging", manifest, size, why)
            (self._going if goes else self._waiting).append(one)
            if goes:
                gone.add(manifest)
        return gone

    def _judge(self, manifest: ManifestId) -> tuple[str, bool]:
        """Why a version that is not granted goes, or stays for now."""
        absence = self._absences.get(manifest)
        if absence is None:
            return "it is not known for how long nothing has asked for it", False
        if absence.releases and absence.releases <= self._needs.withdrawn:
            return "every release that had it was withdrawn", True
        days = (self._needs.issued_s - absence.since_s) / 86400
        words = f"nothing has asked for it for {days:.1f} days"
        return words, self._needs.issued_s - absence.since_s >= self._keep_s

    def _documents(self, going: set[ManifestId]) -> None:
        """Manifests of what goes or never came, and pieces that none of the others has."""
        documents = self._library.documents
        pieces = documents.stored(PIECES)  # before the manifests: what comes now is in use
        standing = {*self._library.trees.manifests(), *self._library.staged()} - going
        leaving: set[ManifestId] = set()
        used: set[str] = set()
        unused: set[str] = set()
        for stored in documents.stored(MANIFESTS):
            manifest = ManifestId.from_hex(stored.name)
            stays = manifest in self._kept or manifest in standing
            if not stays and (manifest in going or self._is_old(stored)):
                leaving.add(manifest)
                one = self._version("manifest", manifest, stored.size_bytes, "nothing needs it")
                self._going.append(one)
                unused.update(self._pieces_of(manifest))
            else:
                used.update(self._pieces_of(manifest))
        self._batch(
            "pieces", PIECES,
            [one for one in pieces
             if one.name not in used and (one.name in unused or self._is_old(one))],
            "no manifest has them",
        )  # fmt: skip

    def _pieces_of(self, manifest: ManifestId) -> set[str]:
        with contextlib.suppress(DocumentMissing):
            return {ref.id.hex() for ref in self._library.root(manifest).pieces}
        return set()

    def _lists(self) -> None:
        documents = self._library.documents
        used: set[str] = set()
        for list_id in self._needs.lists:
            with contextlib.suppress(DocumentMissing, ProtocolError):
                index = decode_index(documents.get_list(list_id))
                used.update(ref.id.hex() for ref in index.pages)
        wanted = {one.hex() for one in self._needs.lists}
        for kind, shelf, keep in (("lists", LISTS, wanted), ("pages", PAGES, used)):
            old = [
                one for one in documents.stored(shelf) if one.name not in keep and self._is_old(one)
            ]
            self._batch(kind, shelf, old, "no state of the fleet that counts has them")

    def _batch(self, kind: str, shelf: Shelf, gone: Iterable[Stored], why: str) -> None:
        members = sorted(gone)
        if members:
            size = sum(one.size_bytes for one in members)
            names = tuple(one.name for one in members)
            what = f"{len(members)} in {shelf.folder}"
            self._going.append(Garbage(kind, "", what, size, why, names))

    def _is_old(self, stored: Stored) -> bool:
        return self._now - stored.put_at >= GRACE_S

    def _version(self, kind: str, manifest: ManifestId, size: int, why: str) -> Garbage:
        about = self._library.about(manifest)
        name = f"{about.name} v{about.version}" if about is not None else ""
        return Garbage(kind, manifest.hex(), name, size, why)


def remove(library: Library, one: Garbage, at: float) -> bool:
    """Remove what a survey at the moment `at` found; whether it is gone. Raises StorageError.

    Trees are the caller's, who has to hold up whoever might just start to need one.
    """
    documents = library.documents
    match one.kind:
        case "bundle":
            return library.bundles.remove(BundleId.from_hex(one.id))
        case "staging":
            return library.stagings.discard(ManifestId.from_hex(one.id))
        case "manifest":
            return documents.remove_unless_touched(MANIFESTS, one.id, at)
        case "pieces" | "lists" | "pages":
            shelf = {"pieces": PIECES, "lists": LISTS, "pages": PAGES}[one.kind]
            gone = [documents.remove_unless_touched(shelf, name, at) for name in one.members]
            return all(gone)
        case _:
            raise ValueError(f"no such kind: {one.kind}")


def is_free(path: Path) -> bool:
    """Whether no player holds a lock on the folder at this moment."""
    try:
        with locked_alone(path) as alone:
            return alone
    except FileNotFoundError:
        return True
    except OSError as error:
        raise storage_error(error, path) from error


def _because(one: Garbage, why: str) -> Garbage:
    return Garbage(one.kind, one.id, one.name, one.size_bytes, why, one.members)


def _size(path: Path) -> int:
    """The bytes on disk of a folder whose files nobody else has."""
    return sum(blocks for _, _, blocks in _inodes(path))


def _freed(trees: Mapping[ManifestId, Path]) -> dict[ManifestId, int]:
    """What the disk gets back of each tree, if they go in this order.

    A file that is linked from another tree gives its bytes back with its last link.
    """
    freed: dict[ManifestId, int] = {}
    seen: Counter[tuple[int, int]] = Counter()
    for manifest, path in trees.items():
        size = 0
        for inode, links, blocks in _inodes(path):
            seen[inode] += 1
            if seen[inode] >= links:
                size += blocks
        freed[manifest] = size
    return freed


def _inodes(path: Path) -> Iterable[tuple[tuple[int, int], int, int]]:
    """(which, how many links, bytes on disk) of every entry; folders count as linked once."""
    info = path.lstat()
    yield (info.st_dev, info.st_ino), 1, info.st_blocks * 512
    pending = [path]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            info = entry.stat(follow_symlinks=False)
            is_folder = entry.is_dir(follow_symlinks=False)
            links = 1 if is_folder else info.st_nlink
            yield (info.st_dev, info.st_ino), links, info.st_blocks * 512
            if is_folder:
                pending.append(Path(entry.path))
