"""Adding a tree to the chunk index while the disk is busy with making it stand: both take as long.

What a crash leaves in the index of a tree that never stood is removed at the next start
(`ChunkIndex.follow`); what it leaves out of one that stands is added then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from archid.errors import StorageError
from archid.store.errors import storage_error
from archid.store.file_objects import FileObjects
from archid.store.index import ChunkIndex
from archid.store.index_rows import Standing
from archid.store.tree_folder import TreeFolder
from protocol.ids import ManifestId
from protocol.layout import Layout


@contextlib.contextmanager
def index_beside(
    index: ChunkIndex,
    manifest: ManifestId,
    layout: Callable[[], Layout],
    tree: Path,
    *,
    seen: FileObjects | None = None,
) -> Iterator[Callable[[], None]]:
    """Add the finished tree that is now at `tree` while the block syncs and moves it.

    Gives a function that waits for the end of it and raises StorageError if it failed. If the
    block fails the tree is taken out again. `layout` is called in the other thread; `seen` are
    the files that need not be looked at, and is the other thread's from now on.
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
        index.add_files_blocking(Standing(manifest, known, objects))

    with contextlib.closing(folder), ThreadPoolExecutor(1, "archid-index") as beside:
        added = beside.submit(add)
        try:
            yield added.result
        except BaseException:
            with contextlib.suppress(StorageError):
                added.result()
                index.remove_tree_blocking(manifest)
            raise
