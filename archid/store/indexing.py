"""Keeping the chunk index at the trees that stand, beside what they have to wait for.

A tree is added while the disk is busy with making it stand, which takes as long, and nobody waits
for what is left of that then: the index only saves work. Whoever asks it waits, and finds all of
it. What a crash leaves in the index of a tree that never stood is removed at the next start
(`ChunkIndex.follow`); what it leaves out of one that stands is added then.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from archid.errors import StorageError
from archid.log import get_logger
from archid.store.errors import storage_error
from archid.store.file_objects import FileObjects
from archid.store.index import ChunkIndex, Location
from archid.store.index_rows import Standing
from archid.store.tree_folder import TreeFolder
from protocol.ids import ChunkId, ManifestId
from protocol.layout import Layout

log = get_logger(__name__)


class Indexing:
    """Adds trees to an index, and takes them out; any thread may ask. `close` before the index."""

    def __init__(self, index: ChunkIndex) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._adding: set[threading.Thread] = set()

    @contextlib.contextmanager
    def beside(
        self,
        manifest: ManifestId,
        layout: Callable[[], Layout],
        tree: Path,
        *,
        seen: FileObjects | None = None,
    ) -> Iterator[None]:
        """Begin to add the finished tree that is now at `tree`; the block syncs and moves it.

        If the block fails the tree is taken out again. `layout` is called in the other thread;
        `seen` are the files that need not be looked at, and is the other thread's from now on.
        Raises StorageError where the tree cannot be opened; an index that fails is only logged.
        """
        try:
            # Held open, since the block moves it.
            folder = TreeFolder.at(tree)
        except OSError as error:
            raise storage_error(error, tree) from error

        def add() -> None:
            known = layout()
            objects = FileObjects.unknown(known) if seen is None else seen
            try:
                objects.look(known, folder)
            except OSError as error:
                raise storage_error(error, tree) from error
            self._index.add_files_blocking(Standing(manifest, known, objects))

        def run() -> None:
            try:
                with contextlib.closing(folder), _logging():
                    add()
            except Exception:
                log.exception("index_failed", manifest=manifest.short)
            finally:
                with self._lock:
                    self._adding.discard(thread)

        thread = threading.Thread(target=run, name="archid-index")
        with self._lock:
            # Whoever finds it there may join it, which takes one that was started.
            thread.start()
            self._adding.add(thread)
        try:
            yield
        except BaseException:
            thread.join()
            with contextlib.suppress(StorageError):
                self._index.remove_tree_blocking(manifest)
            raise

    def require(self, manifest: ManifestId, layout: Callable[[], Layout], tree: Path) -> None:
        """Add a tree that stands unless it is there. An index that fails is only logged.

        Raises what `layout` raises other than StorageError.
        """
        self.settle()
        with _logging():
            if not self._index.has_tree_blocking(manifest):
                self._index.add_tree_blocking(manifest, layout(), tree)

    def remove(self, manifest: ManifestId) -> None:
        """Take a tree out, also one that is being added; raises StorageError."""
        self.settle()
        self._index.remove_tree_blocking(manifest)

    def find(self, chunks: Sequence[ChunkId]) -> dict[ChunkId, list[Location]]:
        """`ChunkIndex.find_blocking` of all trees that have begun to be added."""
        self.settle()
        return self._index.find_blocking(chunks)

    def settle(self) -> None:
        """Return when everything is added that has begun to be."""
        with self._lock:
            adding = list(self._adding)
        for thread in adding:
            thread.join()

    def close(self) -> None:
        """Wait for what has begun; the index may be closed then."""
        self.settle()


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        # The index only saves work; what it misses is added at the next start.
        log.error("index_unusable", why=error.sentence)
