"""The finished trees of a node: what is here, served span by span, verified, repaired, removed.

Every byte that leaves is hashed on its way: what no longer is what the manifest says is not
served but remembered as rotten until it was repaired. Putting trees together is staging's; who
may read one is judged where the peer is.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from archid.errors import NotFound
from archid.log import get_logger
from archid.store import repairing, syscalls
from archid.store.damage import DamageBook
from archid.store.errors import ChunkCorrupt, storage_error
from archid.store.layouts import Layouts
from archid.store.syscalls import Buffer
from archid.store.tree_folder import FOLDER_MODE, TreeFolder, remove_tree
from archid.store.verify import Damage, verify_tree
from protocol.entries import FileEntry
from protocol.errors import FormatError
from protocol.ids import DIGEST_BYTES, ManifestId, PieceId
from protocol.layout import Layout, Place, Span, asked

log = get_logger(__name__)


@dataclass
class _OpenTree:
    folder: TreeFolder
    piece_index: dict[PieceId, int]
    readers: int = 0
    released: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open_file(self, path: str) -> int:
        with self.lock:
            return self.folder.open_file(path)


class TreeStore:
    """The trees in one folder; methods block and are safe in any thread."""

    def __init__(self, trees: Path, layouts: Layouts, damage: DamageBook | None = None) -> None:
        self.trees = trees
        self.damage = damage or DamageBook()
        self.layouts = layouts
        self._lock = threading.Lock()
        self._open: dict[ManifestId, _OpenTree] = {}
        self._idle: set[ManifestId] = set()

    def path(self, manifest: ManifestId) -> Path:
        return self.trees / manifest.hex()

    def has(self, manifest: ManifestId) -> bool:
        """Whether the tree was placed; it appears only when every byte was verified."""
        path = self.path(manifest)
        return path.is_dir() and not path.is_symlink()

    def manifests(self) -> list[ManifestId]:
        """Every tree that is here, in order."""
        found: list[ManifestId] = []
        try:
            names = sorted(os.listdir(self.trees))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, self.trees) from error
        for name in names:
            try:
                manifest = ManifestId.from_hex(name)
            except FormatError:
                continue
            if self.has(manifest):
                found.append(manifest)
        return found

    # -- serving

    def span(self, manifest: ManifestId, piece: PieceId, n: int) -> tuple[Layout, Span]:
        """The span that a peer named; raises NotFound (code unknown_span), DocumentMissing."""
        layout = self.layouts.get(manifest)
        try:
            with self._reading(manifest, layout) as tree:
                index = tree.piece_index[piece]
            return layout, layout.spans[layout.span_index(index, n)]
        except (KeyError, FormatError):
            raise NotFound(
                f"The manifest {manifest.short} has no span {n} of a piece {piece.short}",
                code="unknown_span",
            ) from None

    def read_span(
        self, layout: Layout, span: Span, skip: bytes = b"", room: memoryview | None = None
    ) -> list[memoryview]:
        """The bytes of a span's chunks, without those whose bit in `skip` is set, in order.

        They are put into `room`, which has room for the largest span, if it is given.

        Raises ChunkCorrupt when a chunk does not hold at any of its places, NotFound when the
        tree is not here, StorageError.
        """
        wanted = asked(span, skip)
        stretches = [stretch for chunks in wanted for stretch in layout.stretches(chunks)]
        total_bytes = sum([stretch.size_bytes for stretch in stretches])
        view = memoryview(bytearray(total_bytes)) if room is None else room[:total_bytes]
        with self._reading(layout.manifest, layout) as tree:
            start = 0
            for file, offset, _, size_bytes in stretches:
                # What cannot be read is left as it was: its hash will not hold.
                place = Place(file, offset)
                self._read(tree, layout, place, view[start : start + size_bytes])
                start += size_bytes
            start = 0
            for chunks in wanted:
                ids, lengths = layout.keys(chunks, DIGEST_BYTES), layout.lengths(chunks)
                for at, id_bytes, length in zip(chunks, ids, lengths, strict=True):
                    part = view[start : start + length]
                    if blake3(part).digest() != id_bytes:
                        self._mark(layout, at)
                        self._fill_from_repeat(tree, layout, at, part)
                    start += length
        return [view] if view else []

    def rotten(self, manifest: ManifestId) -> frozenset[int]:
        """The numbers of chunks that were found damaged here and not repaired since."""
        return self.damage.chunks(manifest)

    def read_chunk(self, layout: Layout, at: int) -> memoryview | None:
        """A chunk from whichever of its places holds it, None when none does.

        Raises NotFound when the tree is not here.
        """
        part = memoryview(bytearray(layout.length(at)))
        with self._reading(layout.manifest, layout) as tree:
            try:
                self._fill_from_repeat(tree, layout, at, part, including_itself=True)
            except ChunkCorrupt:
                return None
        return part

    def release_idle(self, now: float) -> bool:
        """Close trees that were not served since the last call, and forget idle layouts.

        Returns whether any layout was forgotten: much memory became free.
        """
        released = self.layouts.release_idle(now)
        with self._lock:
            for manifest in self._idle & self._open.keys():
                self._release(self._open.pop(manifest))
            self._idle = set(self._open)
        return released

    def close(self) -> None:
        """Close every tree; those that are being read when their readers are done."""
        with self._lock:
            while self._open:
                self._release(self._open.popitem()[1])

    # -- damage

    def reopen(self, manifest: ManifestId) -> None:
        """Something in the tree was made anew: what is open of it may be of the old."""
        with self._lock:
            tree = self._open.pop(manifest, None)
            if tree is not None:
                self._release(tree)

    def verify(
        self,
        manifest: ManifestId,
        *,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[Damage]:
        """Compare the tree with its manifest; empty when all is well. See `verify_tree`.

        Raises DocumentMissing when the manifest is not here whole, StorageError.
        """
        return self._look(manifest, lambda _: True, progress, stopped)

    def survey(
        self, manifest: ManifestId, *, stopped: Callable[[], bool] = lambda: False
    ) -> list[Damage]:
        """`verify` that reads only what is known to be damaged or looks changed."""
        known = self.damage.of(manifest)
        layout = self.layouts.get(manifest)
        numbers = () if known is None else known.chunks
        files = {place.file for at in numbers for place in layout.places(at)}
        if known is not None:
            files.update(layout.place(at).file for damage in known.entries for at in damage.chunks)
        everything = known is not None and known.unread
        return self._look(manifest, lambda file: everything or file.number in files, None, stopped)

    def _look(
        self,
        manifest: ManifestId,
        reads: Callable[[FileEntry], bool],
        progress: Callable[[int], None] | None,
        stopped: Callable[[], bool],
    ) -> list[Damage]:
        layout = self.layouts.get(manifest)
        damages = verify_tree(
            layout, self.path(manifest), progress=progress, stopped=stopped, reads=reads
        )
        rotten = {layout.home(at) for damage in damages for at in damage.chunks}
        if damages:
            log.warning("tree_damaged", manifest=manifest.hex(), entries=len(damages),
                        chunks=len(rotten))  # fmt: skip
        if not stopped():
            self.damage.found(manifest, rotten, damages)
        elif rotten:
            self.damage.mark(manifest, rotten)
        return damages

    def repair(
        self,
        manifest: ManifestId,
        *,
        chunks: Mapping[int, Buffer] | None = None,
        damages: Sequence[Damage] = (),
    ) -> None:
        """Write verified chunks in place and mend entries that need no bytes.

        Raises ChunkCorrupt, DocumentMissing, StorageError.
        """
        layout = self.layouts.get(manifest)
        path = self.path(manifest)
        if damages:
            repairing.mend_entries(layout, path, damages)
            self.reopen(manifest)
        if chunks:
            repairing.write_chunks(layout, path, chunks)
            self.damage.healed(manifest, {layout.home(at) for at in chunks})
            log.info("tree_repaired", manifest=manifest.hex(), chunks=len(chunks))

    def remove(self, manifest: ManifestId) -> None:
        """Remove a tree; readers that have files open keep them. Raises StorageError."""
        self.set_aside(manifest)
        self.remove_set_aside(manifest)

    def set_aside(self, manifest: ManifestId) -> None:
        """Let a tree be no more, by one rename; its bytes stay until `remove_set_aside`.

        A tree that is half removed must not pass for a whole one. Raises StorageError.
        """
        self.layouts.forget(manifest)
        self.reopen(manifest)
        self.damage.clear(manifest)
        path = self.path(manifest)
        try:
            remove_tree(self._aside(manifest))
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
                return
            path.rename(self._aside(manifest))
        except OSError as error:
            raise storage_error(error, path) from error

    def remove_set_aside(self, manifest: ManifestId) -> None:
        """Free the bytes of a tree that was set aside, if there is one. Raises StorageError."""
        try:
            remove_tree(self._aside(manifest))
        except OSError as error:
            raise storage_error(error, self._aside(manifest)) from error

    def _aside(self, manifest: ManifestId) -> Path:
        return self.trees / f".removed-{manifest.hex()}"

    def remove_leftovers(self) -> None:
        """Finish what a killed process began: removals, and the last step of placing a tree.

        Raises StorageError.
        """
        try:
            for name in os.listdir(self.trees):
                if name.startswith(".removed-"):
                    remove_tree(self.trees / name)
            for manifest in self.manifests():
                path = self.path(manifest)
                if stat.S_IMODE(path.lstat().st_mode) != FOLDER_MODE:
                    path.chmod(FOLDER_MODE)
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, self.trees) from error

    # -- inside

    @contextlib.contextmanager
    def _reading(self, manifest: ManifestId, layout: Layout) -> Iterator[_OpenTree]:
        """The opened tree, which stays open until the last reader is done."""
        with self._lock:
            self._idle.discard(manifest)
            tree = self._open.get(manifest)
            if tree is None:
                tree = self._open[manifest] = self._opened(manifest, layout)
            tree.readers += 1
        try:
            yield tree
        finally:
            with self._lock:
                tree.readers -= 1
                if tree.released and not tree.readers:
                    tree.folder.close()

    def _release(self, tree: _OpenTree) -> None:
        tree.released = True
        if not tree.readers:
            tree.folder.close()

    def _opened(self, manifest: ManifestId, layout: Layout) -> _OpenTree:
        try:
            folder = TreeFolder.at(self.path(manifest))
        except OSError as error:
            raise self._not_here(manifest) from error
        pieces = [ref.id for ref in layout.root.pieces]
        # A piece that occurs again has its spans where it occurs first.
        return _OpenTree(folder, {piece: n for n, piece in reversed(list(enumerate(pieces)))})

    def _not_here(self, manifest: ManifestId) -> NotFound:
        return NotFound(
            f"The tree of the manifest {manifest.short} is not here", code="unknown_manifest"
        )

    def _read(self, tree: _OpenTree, layout: Layout, place: Place, view: memoryview) -> None:
        path = layout.files.path(place.file)
        try:
            fd = tree.open_file(path)
            try:
                syscalls.pread_into(fd, view, place.offset)
            finally:
                os.close(fd)
        except OSError as error:
            log.warning("tree_file_unreadable", manifest=layout.manifest.hex(), path=path,
                        reason=error.strerror)  # fmt: skip

    def _fill_from_repeat(
        self,
        tree: _OpenTree,
        layout: Layout,
        at: int,
        part: memoryview,
        *,
        including_itself: bool = False,
    ) -> None:
        ref = layout.chunk(at)
        for place in layout.places(at):
            if including_itself or place != layout.place(at):
                self._read(tree, layout, place, part)
                if blake3(part).digest() == ref.id:
                    return
        if not self.has(layout.manifest):
            # Removed while it was being read, which is no damage.
            self.damage.clear(layout.manifest)
            raise self._not_here(layout.manifest)
        path = layout.files.path(layout.place(at).file)
        raise ChunkCorrupt(ref.id, f"in {self.path(layout.manifest) / path}")

    def _mark(self, layout: Layout, at: int) -> None:
        if self.damage.mark(layout.manifest, [layout.home(at)]):
            place = layout.place(at)
            log.warning("chunk_rotten", manifest=layout.manifest.hex(),
                        path=layout.files.path(place.file), offset=place.offset)  # fmt: skip
