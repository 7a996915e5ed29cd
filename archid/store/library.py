"""What the rest of the daemon asks of the store: versions coming in, standing, and leaving.

It puts together documents, layouts, staging, trees and the chunk index, which know nothing of one
another's order: who asks the index finds every tree that is said to be here, and a manifest is
kept before anything is staged for it. Methods block; call them from worker threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from archid.log import get_logger
from archid.store.about import About
from archid.store.adoption import Adopted, adopt_local
from archid.store.ballast import Ballast
from archid.store.bundles import Bundles
from archid.store.damage import DamageBook
from archid.store.documents import DocumentStore
from archid.store.errors import DatabaseDamaged, DiskFull, DocumentMissing, storage_error
from archid.store.index import ChunkIndex
from archid.store.indexing import Indexing
from archid.store.layout import StatePaths
from archid.store.mending import Mending, mark_damaged
from archid.store.placing import remove_superseded
from archid.store.reserve import Reserve
from archid.store.seeding import Seeding
from archid.store.staging import Staging
from archid.store.stagings import Stagings
from archid.store.tree_store import TreeStore
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.ids import ManifestId, PieceId
from protocol.layout import Layout
from protocol.manifest import ManifestRoot
from protocol.publication import MAX_PUBLICATION_BYTES

log = get_logger(__name__)


class Library:
    """The versions that this node holds or is putting together."""

    def __init__(
        self,
        paths: StatePaths,
        *,
        documents: DocumentStore,
        trees: TreeStore,
        index: ChunkIndex,
        bundles: Bundles,
        keep_free_bytes: int = 0,
    ) -> None:
        self.paths = paths
        self.documents = documents
        self.trees = trees
        self.bundles = bundles
        self._index = index
        self.indexing = Indexing(index)
        self.keep_free_bytes = keep_free_bytes
        """Nothing is fetched that would leave less; may be set at any time."""
        self._lock = threading.Lock()
        self._linking = threading.Lock()
        self._held: set[ManifestId] = set()
        self._expected: set[ManifestId] = set()
        self._about: dict[ManifestId, About] = {}
        self.stagings = Stagings(paths)
        self.reserve = Reserve(lambda: self.available_bytes()[0] - self.keep_free_bytes)
        self.ballast = Ballast(paths.state / "ballast")
        self.seeding = Seeding(
            documents, trees, self.stagings, holds=self.holds, look_again=self.look_again
        )
        self.on_loss: Callable[[], None] = lambda: None
        """Told, in whichever thread, that something which was held has to be fetched again."""
        trees.layouts.on_missing = self.lose

    def open(self) -> None:
        """Find out what is here and mend what a killed process left; before anything else."""
        self.documents.remove_leftovers()
        self.trees.remove_leftovers()
        self.bundles.remove_leftovers()
        remove_superseded(self.paths.staging, self.paths.trees)
        standing = self.trees.manifests()
        for damaged in self.damage.all():
            if damaged.manifest not in standing:
                self.damage.clear(damaged.manifest)
        self._index.follow({one: self.trees.path(one) for one in standing}, self._layout_at_hand)
        whole = []
        for manifest in standing:
            try:
                self._require_documents(manifest)
                whole.append(manifest)
            except DocumentMissing as error:
                # Its manifest was lost or damaged: it is fetched again, the tree is adopted.
                log.warning("tree_without_manifest", manifest=manifest.short, why=str(error))
        with self._lock:
            self._held = set(whole)

    def close(self) -> None:
        """End what goes on in other threads; before the index is closed."""
        self.indexing.close()

    def _require_documents(self, manifest: ManifestId) -> None:
        """Raise DocumentMissing unless the manifest and all its pieces are here."""
        pieces = [ref.id for ref in self.root(manifest).pieces]
        if missing := self.documents.missing_pieces(pieces):
            raise DocumentMissing("pieces", missing[0].hex())

    def _layout_at_hand(self, manifest: ManifestId) -> Layout | None:
        with contextlib.suppress(DocumentMissing):
            return self.layout(manifest)
        return None

    # What is here

    def holds(self, manifest: ManifestId) -> bool:
        """Whether the whole tree is here."""
        with self._lock:
            return manifest in self._held or manifest in self._expected

    def lose(self, manifest: ManifestId) -> None:
        """Its manifest or a piece of it turned out to be missing: it is no longer held."""
        with self._lock:
            if manifest not in self._held:
                return
            self._held.discard(manifest)
        log.error("held_manifest_lost", manifest=manifest.short)
        self.on_loss()

    def held(self) -> list[ManifestId]:
        """Every version whose tree is here."""
        with self._lock:
            return sorted(self._held)

    def tree(self, manifest: ManifestId) -> Path:
        """Where the tree stands, or will stand."""
        return self.trees.path(manifest)

    def layout(self, manifest: ManifestId) -> Layout:
        """Raises DocumentMissing when the manifest or a piece of it is not here."""
        return self.trees.layouts.get(manifest)

    def root(self, manifest: ManifestId) -> ManifestRoot:
        """The manifest's root; raises DocumentMissing, also for one that is none."""
        data = self.publication(manifest)
        try:
            envelope = Envelope.decode(data, max_bytes=MAX_PUBLICATION_BYTES)
            return ManifestRoot.decode(envelope.payload)
        except ProtocolError as error:
            raise DocumentMissing("manifests", manifest.hex()) from error

    def publication(self, manifest: ManifestId) -> bytes:
        """The envelope as it was signed; raises DocumentMissing."""
        try:
            return self.documents.get_manifest(manifest)
        except DocumentMissing:
            self.lose(manifest)
            raise

    def about(self, manifest: ManifestId) -> About | None:
        """What a manifest says of itself if it is here; these few words stay in memory."""
        with self._lock:
            about = self._about.get(manifest)
        if about is None:
            with contextlib.suppress(DocumentMissing):
                root = self.root(manifest)
                about = About(root.name, root.kind, root.version, root.files, root.size_bytes)
                with self._lock:
                    self._about[manifest] = about
        return about

    # Coming in

    def manifest_envelope(self, manifest: ManifestId) -> bytes | None:
        """The publication as it came, None when it is not here."""
        with contextlib.suppress(DocumentMissing):
            return self.documents.get_manifest(manifest)
        return None

    def keep_manifest(self, envelope: bytes) -> ManifestId:
        """Keep a publication that was verified."""
        return self.documents.put_manifest(envelope)

    def missing_pieces(self, pieces: Sequence[PieceId]) -> list[PieceId]:
        """Those that are not here; the others stay until they are used."""
        return self.documents.missing_pieces(pieces, touch=True)

    def keep_pieces(self, pieces: Iterable[bytes]) -> None:
        """Keep pieces; their ids are computed from the bytes, so nothing wrong gets a name."""
        self.documents.put_pieces(pieces)

    def stage(self, layout: Layout) -> Staging:
        """Start or resume putting a version together; hashes what is there already."""
        return self.stagings.open(layout)

    def staged(self) -> list[ManifestId]:
        """Every version of which something is staged."""
        return self.stagings.manifests()

    def share(self, staging: Staging) -> None:
        """Let others have what is verified of a version from now on, until `end_staging`."""
        self.stagings.share(staging)

    def end_staging(self, staging: Staging) -> None:
        """Let go of a staging; what was written stays and can be resumed."""
        self.reserve.end(staging.layout.manifest)
        self.stagings.end(staging)

    def adopt(
        self, staging: Staging, *, rank: int = 0, stopped: Callable[[], bool] = lambda: False
    ) -> Adopted:
        """Take over what other versions here already hold, until `stopped`.

        What then has to be written is reserved, in the order of `rank`, until `end_staging`: a
        file that changed counts whole, unless the file system shared its extents. Raises
        SpaceShort.
        """
        manifest = staging.layout.manifest

        def admit() -> None:
            self.reserve.admit(manifest, rank, lambda: staging.missing_bytes, staging.path)

        try:
            adopted = adopt_local(
                staging,
                self.indexing.finder(stopped),
                self.paths.trees,
                before=self.bundles.linked_script(staging.layout.root.name),
                stopped=stopped,
                before_copies=admit,
            )
        except DatabaseDamaged as error:
            # The index only saves work: what it cannot tell is fetched.
            log.error("index_damaged", why=str(error))
            admit()
            return Adopted()
        for manifest, path in {(one.manifest, one.path) for one in adopted.rotten}:
            if self.holds(manifest):
                mark_damaged(self.trees, manifest, path)
        return adopted

    def require_space(self, staging: Staging) -> None:
        """Raise DiskFull unless what is missing fits and leaves free what must stay free."""
        staging.require_space()
        free, _ = self.available_bytes()
        needed = staging.missing_bytes + self.keep_free_bytes
        if staging.missing_bytes and needed > free:
            raise DiskFull(staging.path, needed_bytes=needed, available_bytes=free)

    def place(self, staging: Staging) -> None:
        """Let the tree appear; raises ChunkMissing, StorageError.

        It is added to the index while the disk is busy with it, and after.
        """
        manifest, layout = staging.layout.manifest, staging.layout
        staging.seal()
        with self.indexing.beside(manifest, lambda: layout, staging.path, seen=staging.objects):
            self.documents.sync()
            staging.appear(self.trees.path(manifest))
        self.stagings.placed(manifest)
        self._count_placed(manifest)

    def add_published(self, root: ManifestRoot, pieces: Mapping[PieceId, bytes]) -> None:
        """Count a tree that was published and stands, and begin to index it."""
        self._count_placed(root.id)
        layout = partial(Layout.from_pieces, root, pieces)
        self.indexing.begin(root.id, layout, self.trees.path(root.id))

    def add_placed(self, manifest: ManifestId) -> None:
        """Index a tree that stands already, then count it; raises DocumentMissing."""
        self.indexing.require(manifest, partial(self.layout, manifest), self.trees.path(manifest))
        self._count_placed(manifest)

    def _count_placed(self, manifest: ManifestId) -> None:
        self.trees.reopen(manifest)
        with self._lock:
            self._held.add(manifest)
            self._expected.discard(manifest)
        self.damage.clear(manifest)

    def look_again(self, manifest: ManifestId) -> None:
        """Count a tree as missing if somebody took it away."""
        if not self.trees.has(manifest):
            with self._lock:
                gone = manifest in self._held
                self._held.discard(manifest)
            if gone:
                log.error("tree_gone", manifest=manifest.short)
                self.damage.mark_gone(manifest)
                self.on_loss()

    def expect(self, manifest: ManifestId) -> None:
        """A tree that stands is about to be recorded: from now on nobody need fetch it.

        It counts as held without being listed, since its manifest is kept only when it is signed.
        """
        with self._lock:
            self._expected.add(manifest)

    def retire(self, manifest: ManifestId) -> None:
        """A tree that nothing needs stops to be here, at once; `bury` frees its bytes.

        ``scripts/<name>`` leads to the latest version that remains, if it led here.
        """
        with self._linking:
            with self._lock:
                self._held.discard(manifest)
            about = self.about(manifest)
            if about is not None and self.bundles.linked_script(about.name) == manifest:
                others = ((one, self.about(one)) for one in self.held())
                named = [(o.version, one) for one, o in others if o and o.name == about.name]
                if named:
                    self.bundles.link_script(about.name, max(named)[1])
                else:
                    self.bundles.unlink_script(about.name)
            self.trees.set_aside(manifest)

    def bury(self, manifest: ManifestId) -> None:
        """Free the bytes of a tree that was retired."""
        with self._lock:
            self._about.pop(manifest, None)
        self.indexing.remove(manifest)
        self.trees.remove_set_aside(manifest)

    def drop(self, manifest: ManifestId) -> None:
        """Take a tree away again that nobody was told of; raises StorageError."""
        with self._lock:
            self._held.discard(manifest)
            self._expected.discard(manifest)
            self._about.pop(manifest, None)
        self.indexing.remove(manifest)
        self.trees.remove(manifest)

    def unexplained(self) -> list[ManifestId]:
        """Trees that stand, and whose manifest or pieces are not here."""
        return sorted(set(self.trees.manifests()).difference(self.held()))

    def link_script(self, root: ManifestRoot) -> None:
        """Let ``scripts/<name>`` point to this version unless a later one is there already."""
        with self._linking:
            linked = self.bundles.linked_script(root.name)
            if linked is not None and linked != root.id and self.holds(linked):
                about = self.about(linked)
                if about is not None and about.version > root.version:
                    return
            self.bundles.link_script(root.name, root.id)

    @property
    def damage(self) -> DamageBook:
        """What is wrong with the trees here."""
        return self.trees.damage

    def mend(self, layout: Layout, *, stopped: Callable[[], bool] = lambda: False) -> Mending:
        """Put right what needs nobody else; what then lacks is to be brought into the result.

        Raises DocumentMissing, StorageError.
        """
        mending = Mending.open(layout, self.trees, stopped=stopped)
        mending.take_local(self.indexing.finder(stopped), stopped=stopped)
        return mending

    # Room

    def held_bytes(self) -> int:
        """The content of all trees here, what they share counted each time."""
        known = (self.about(manifest) for manifest in self.held())
        return sum(about.size_bytes for about in known if about is not None)

    def available_bytes(self) -> tuple[int, int]:
        """(free, total) bytes of the file system that holds the trees; raises StorageError."""
        try:
            space = os.statvfs(self.paths.trees)
        except OSError as error:
            raise storage_error(error, self.paths.trees) from error
        return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
