"""Keeping the chunk index at the trees that stand, beside what they have to wait for.

A tree is added while the disk is busy with making it stand, or when it stands, and nobody waits
for the end of that: the index only saves work. Whoever asks it waits, and finds all of it. What a
crash leaves in the index of a tree that never stood is removed at the next start
(`ChunkIndex.follow`); what it leaves out of one that stands is added then.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from archid.errors import ArchidError
from archid.log import get_logger
from archid.store.errors import storage_error
from archid.store.file_objects import FileObjects
from archid.store.index import ChunkIndex, Location
from archid.store.index_rows import Standing
from archid.store.tree_folder import TreeFolder
from protocol.ids import ChunkId, ManifestId
from protocol.layout import Layout

log = get_logger(__name__)

_LOOK_S: Final = 0.1
Found: TypeAlias = dict[ChunkId, list[Location]]


class Indexing:
    """Adds trees to an index in order, and takes them out; any thread may ask.

    `close` it before the index.
    """

    def __init__(self, index: ChunkIndex) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._adding: list[threading.Thread] = []
        self._closing = threading.Event()

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

        If the block fails the tree is taken out again.
        """
        thread = self.begin(manifest, layout, tree, seen=seen)
        try:
            yield
        except BaseException:
            if thread is not None:
                thread.join()
            with contextlib.suppress(ArchidError):
                self._index.remove_tree_blocking(manifest)
            raise

    def begin(
        self,
        manifest: ManifestId,
        layout: Callable[[], Layout],
        tree: Path,
        *,
        seen: FileObjects | None = None,
    ) -> threading.Thread | None:
        """Begin to add the finished tree at `tree`, which may be moved from now on.

        `layout` is called in the thread that adds it, which is given; `seen` are the files that
        need not be looked at, and is that thread's from now on. An index that fails is only logged,
        and does without the tree until the next start.
        """
        try:
            # Held open, since it may be moved.
            folder = TreeFolder.at(tree)
        except OSError as error:
            log.error("index_unusable", why=storage_error(error, tree).sentence)
            return None

        def add() -> None:
            known = layout()
            objects = FileObjects.unknown(known) if seen is None else seen
            try:
                objects.look(known, folder)
            except OSError as error:
                raise storage_error(error, tree) from error
            standing = Standing(manifest, known, objects)
            self._index.add_files_blocking(standing, stopped=self._closing.is_set)

        return self._start(manifest, add, folder)

    def require(self, manifest: ManifestId, layout: Callable[[], Layout], tree: Path) -> None:
        """Add a tree that stands unless it is there. An index that fails is only logged.

        Raises what `layout` raises.
        """
        self.settle()
        known = layout()
        with _logging():
            if not self._index.has_tree_blocking(manifest):
                self._index.add_tree_blocking(manifest, known, tree)

    def remove(self, manifest: ManifestId) -> None:
        """Take a tree out, also one that is being added; raises StorageError."""
        self.settle()
        self._index.remove_tree_blocking(manifest)

    def finder(self, stopped: Callable[[], bool]) -> Callable[[Sequence[ChunkId]], Found]:
        """`ChunkIndex.find_blocking` of all trees that have begun to be added when it is asked.

        Waiting for them ends early, and nothing is found then, when `stopped` says so.
        """
        settled = False

        def find(chunks: Sequence[ChunkId]) -> Found:
            nonlocal settled
            settled = settled or self.settle(stopped)
            return self._index.find_blocking(chunks) if settled else {}

        return find

    def settle(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Return when everything is added that has begun to be; False if it was `stopped`."""
        with self._lock:
            adding = list(self._adding)
        for thread in adding:
            while thread.is_alive():
                if stopped():
                    return False
                thread.join(_LOOK_S)
        return True

    def close(self) -> None:
        """End what has begun, soon; the index may be closed then, and is mended when it opens."""
        self._closing.set()
        self.settle()

    def _start(
        self, manifest: ManifestId, add: Callable[[], None], folder: TreeFolder
    ) -> threading.Thread | None:
        """The thread that adds a tree when those before are added; None if there can be none."""

        def run() -> None:
            try:
                with contextlib.closing(folder):
                    for earlier in before:
                        earlier.join()
                    with _logging():
                        add()
            except Exception:
                # Nobody asks this thread how it ended, and what stands must not fall with it.
                log.exception("index_failed", manifest=manifest.short)
            finally:
                with self._lock:
                    self._adding.remove(thread)

        thread = threading.Thread(target=run, name="archid-index")
        with self._lock:
            before = list(self._adding)
            try:
                # Whoever finds it in the list may join it, which takes one that was started.
                thread.start()
            except RuntimeError as error:
                folder.close()
                log.error("index_unusable", why=str(error))
                return None
            self._adding.append(thread)
        return thread


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    try:
        yield
    except ArchidError as error:
        # The index only saves work; what it misses is added at the next start.
        log.error("index_unusable", why=error.sentence)
