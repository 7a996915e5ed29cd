"""The versions that are being put together: which are open, which others may read from.

What nobody has open can be thrown away; opening and throwing away never meet.
"""

from __future__ import annotations

import contextlib
import os
import threading

from archid.store.errors import storage_error
from archid.store.layout import StatePaths
from archid.store.staging import Staging
from archid.store.tree_folder import remove_tree
from protocol.errors import FormatError
from protocol.ids import ManifestId
from protocol.layout import Layout


class Stagings:
    """The folder of staged versions; methods block and are safe in any thread."""

    def __init__(self, paths: StatePaths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._discarding = threading.Lock()
        self._open: dict[ManifestId, int] = {}
        self._shared: dict[ManifestId, Staging] = {}

    def open(self, layout: Layout) -> Staging:
        """Start or resume putting a version together; hashes what is there already."""
        manifest = layout.manifest
        with self._discarding, self._lock:
            self._open[manifest] = self._open.get(manifest, 0) + 1
        try:
            return Staging.open(self._paths.staging_of(manifest), layout)
        except BaseException:
            self._closed(manifest)
            raise

    def share(self, staging: Staging) -> None:
        """Let others have what is verified of a version from now on, until `end`."""
        with self._lock:
            self._shared[staging.layout.manifest] = staging

    def end(self, staging: Staging) -> None:
        """Let go of a staging; what was written stays and can be resumed."""
        manifest = staging.layout.manifest
        with self._lock:
            if self._shared.get(manifest) is staging:
                del self._shared[manifest]
        staging.close()
        self._closed(manifest)

    def placed(self, manifest: ManifestId) -> None:
        """What was staged has become a tree."""
        with self._lock:
            self._open.pop(manifest, None)

    def shared(self, manifest: ManifestId) -> Staging | None:
        """A version that is being fetched and that others may read from."""
        with self._lock:
            return self._shared.get(manifest)

    def in_use(self) -> frozenset[ManifestId]:
        """What is open now."""
        with self._lock:
            return frozenset(self._open)

    def manifests(self) -> list[ManifestId]:
        """Every version of which something is staged."""
        try:
            names = sorted(os.listdir(self._paths.staging))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, self._paths.staging) from error
        found = []
        for name in names:
            with contextlib.suppress(FormatError):
                found.append(ManifestId.from_hex(name))
        return found

    def discard(self, manifest: ManifestId) -> bool:
        """Throw away what is staged of a version that nobody has open; whether it is gone."""
        path = self._paths.staging_of(manifest)
        with self._discarding:
            if manifest in self.in_use():
                return False
            try:
                remove_tree(path)
            except OSError as error:
                raise storage_error(error, path) from error
        return True

    def _closed(self, manifest: ManifestId) -> None:
        with self._lock:
            left = self._open.get(manifest, 1) - 1
            if left:
                self._open[manifest] = left
            else:
                self._open.pop(manifest, None)
