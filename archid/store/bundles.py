"""What the player sees: bundles of trees, and the links that switch to them.

A bundle is a folder with one relative link for each kind (``feature``, ``sas``, ``loop``) to a
tree. ``releases/<name>`` is a link to a bundle, so that one rename switches everything that plays
together; ``scripts/<name>`` is a link to one tree. Players resolve a link once and may hold a
shared `flock` on the bundle. When to switch, and what a release is, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

from archid.errors import Conflict, NotFound, UsageError
from archid.store import syscalls
from archid.store.errors import storage_error
from archid.store.folder_links import (
    NEW,
    locked_alone,
    new_link,
    put_link,
    remove_link,
    switch_link,
    sync_folder,
)
from archid.store.layout import StatePaths
from archid.store.tree_folder import OPEN_FOLDER_MODE, remove_tree
from protocol.canonical import pack
from protocol.errors import FormatError
from protocol.ids import Digest, ManifestId, ReleaseId
from protocol.paths import PathRefused, check_kind, check_script_name

KEEP_S: Final = 7 * 24 * 3600.0
"""How long a bundle stays after it was switched away from: players need not hold a lock."""

_PREVIOUS: Final = ".previous"
_HEX: Final = re.compile(r"[0-9a-f]{64}")

_D = TypeVar("_D", bound=Digest)


class BundleId(Digest):
    """Names a bundle: what it holds, for which release and generation."""

    CONTEXT = "archid v1 bundle"
    __slots__ = ()

    @classmethod
    def of_release(
        cls, release: ReleaseId, generation: int, trees: Mapping[str, ManifestId]
    ) -> Self:
        """The id of the bundle of `trees` by kind."""
        return cls.of(pack([release, generation, [[kind, trees[kind]] for kind in sorted(trees)]]))


class Bundle(NamedTuple):
    """A bundle as it is on disk; `trees` is by kind."""

    id: BundleId
    trees: dict[str, ManifestId]


class Bundles:
    """The bundles below the state folder and the links below the scripts folder.

    Methods block shortly; one caller at a time. Links are relative, so that state and scripts may
    be mounted elsewhere together.
    """

    def __init__(self, paths: StatePaths) -> None:
        self._paths = paths

    # -- bundles

    def path(self, bundle: BundleId) -> Path:
        return self._paths.bundles / bundle.hex()

    def make(self, bundle: BundleId, trees: Mapping[str, ManifestId]) -> Path:
        """Make the bundle of `trees` by kind; one that is there and right is left as it is.

        Raises UsageError for something that is not a kind, Conflict when a tree is not here,
        StorageError.
        """
        for kind, manifest in trees.items():
            _check(check_kind, kind)
            if not self._paths.tree(manifest).is_dir():
                raise Conflict(
                    f"The {kind} {manifest.short} is not here yet, so no bundle can hold it",
                    remedy="Wait until it has been fetched",
                    code="tree_missing",
                )
        target = self.path(bundle)
        if self._is_right(target, trees):
            return target
        try:
            with _new_folder(self._paths.bundles) as new:
                for kind, manifest in trees.items():
                    (new / kind).symlink_to(f"../../trees/{manifest.hex()}")
                new.chmod(OPEN_FOLDER_MODE)
                sync_folder(new)
                if target.is_dir() and not target.is_symlink():
                    syscalls.exchange(new, target)
                else:
                    target.unlink(missing_ok=True)
                    new.rename(target)
            sync_folder(self._paths.bundles)
        except OSError as error:
            raise storage_error(error, target) from error
        return target

    def bundles(self) -> list[Bundle]:
        """Every bundle on disk, in order of their ids."""
        folder = self._paths.bundles
        return [
            self.inspect(BundleId.from_hex(name))
            for name in sorted(_names(folder))
            if _HEX.fullmatch(name) and (folder / name).is_dir()
        ]

    def inspect(self, bundle: BundleId) -> Bundle:
        """What a bundle holds, by kind; raises NotFound."""
        path = self.path(bundle)
        if not path.is_dir():
            raise NotFound(f"There is no bundle {bundle.short} here", code="unknown_bundle")
        trees = {}
        for kind in sorted(_names(path)):
            manifest = _last_part(path / kind, ManifestId)
            if manifest is not None:
                trees[kind] = manifest
        return Bundle(bundle, trees)

    # -- releases

    def require_whole(self, bundle: BundleId) -> None:
        """Raise Conflict unless every tree of the bundle is here, NotFound without the bundle."""
        for kind, manifest in self.inspect(bundle).trees.items():
            if not self._paths.tree(manifest).is_dir():
                raise Conflict(
                    f"The {kind} of the bundle {bundle.short} is gone, so nothing switches to it",
                    remedy="Wait until it has been fetched again",
                    code="tree_missing",
                )

    def activate(self, name: str, bundle: BundleId) -> None:
        """Switch ``releases/<name>`` to a bundle, by one rename, durably.

        Raises UsageError for a bad name, NotFound without such a bundle, Conflict when one of its
        trees is not here or something else has the name, StorageError.
        """
        _check(check_script_name, name)
        self.require_whole(bundle)
        before = self.active(name)
        if before == bundle:
            return
        # All that takes space comes before the rename: on a full disk nothing has changed.
        link = new_link(self._paths.release_links, name, self.path(bundle))
        try:
            self._remember(name, before)
        except BaseException:
            link.unlink(missing_ok=True)
            raise
        put_link(link, name)

    def deactivate(self, name: str) -> None:
        """Take ``releases/<name>`` away; no error if it is not there. Raises StorageError."""
        _check(check_script_name, name)
        self._remember(name, self.active(name))
        remove_link(self._paths.release_links, name)

    def is_gone(self, name: str) -> bool:
        """Whether ``releases/<name>`` is not there; False if the folder is not, or does not say."""
        _check(check_script_name, name)
        try:
            (self._paths.release_links / name).lstat()
        except FileNotFoundError:
            return self._paths.release_links.is_dir()
        except OSError:
            return False
        return False

    def active(self, name: str) -> BundleId | None:
        """Which bundle ``releases/<name>`` leads to; None if it leads to none of ours."""
        _check(check_script_name, name)
        return self._bundle_at(self._paths.release_links / name)

    def releases(self) -> dict[str, BundleId]:
        """Every active release by name."""
        found = {}
        for name in sorted(_names(self._paths.release_links)):
            bundle = self._bundle_at(self._paths.release_links / name)
            if bundle is not None and not name.startswith("."):
                found[name] = bundle
        return found

    def previous(self, name: str) -> BundleId | None:
        """Which bundle a release was switched away from last, if that is still here."""
        bundle = _last_part(self._paths.bundles / _PREVIOUS / name, BundleId)
        return bundle if bundle is not None and self.path(bundle).is_dir() else None

    # -- scripts

    def link_script(self, name: str, manifest: ManifestId) -> None:
        """Let ``scripts/<name>`` lead to a tree, by one rename, durably.

        Raises UsageError for a bad name, Conflict when the tree is not here, StorageError.
        """
        _check(check_script_name, name)
        tree = self._paths.tree(manifest)
        if not tree.is_dir():
            raise Conflict(f"The tree {manifest.short} of {name} is not here", code="tree_missing")
        if self.linked_script(name) != manifest:
            switch_link(self._paths.script_links, name, tree)

    def unlink_script(self, name: str) -> None:
        """Take ``scripts/<name>`` away; no error if it is not there. Raises StorageError."""
        _check(check_script_name, name)
        remove_link(self._paths.script_links, name)

    def linked_script(self, name: str) -> ManifestId | None:
        """Which version ``scripts/<name>`` leads to; None if it leads to none of ours."""
        _check(check_script_name, name)
        return self._tree_at(self._paths.script_links / name)

    def scripts(self) -> dict[str, ManifestId]:
        """Every linked script by name."""
        found = {}
        for name in sorted(_names(self._paths.script_links)):
            manifest = self._tree_at(self._paths.script_links / name)
            if manifest is not None and not name.startswith("."):
                found[name] = manifest
        return found

    # -- collecting

    def collectable(
        self, now: float, *, pinned: Collection[BundleId] = (), keep_previous: bool = True
    ) -> list[BundleId]:
        """The bundles that nothing needs any more, whether a player holds a lock on them or not.

        An active bundle stays, a pinned one, one that was switched away from within KEEP_S before
        `now` (seconds since 1970), and, unless it has to yield, the one before an active one.
        """
        releases = self.releases()
        keep = set(releases.values()) | set(pinned)
        for name in _names(self._paths.bundles / _PREVIOUS) if keep_previous else ():
            # After a release was withdrawn its time counts, not that it was the last.
            if name in releases and (previous := self.previous(name)) is not None:
                keep.add(previous)
        return [
            bundle.id
            for bundle in self.bundles()
            if bundle.id not in keep and now - self.path(bundle.id).stat().st_mtime >= KEEP_S
        ]

    def remove(self, bundle: BundleId) -> bool:
        """Remove a bundle unless a player holds a lock on it; whether it is gone.

        The trees are not touched. Raises StorageError.
        """
        path = self.path(bundle)
        if not path.is_dir():
            return True
        with locked_alone(path) as alone:
            if alone:
                try:
                    remove_tree(path)
                except OSError as error:
                    raise storage_error(error, path) from error
            return alone

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half made; raises StorageError."""
        folders = self._paths.bundles, self._paths.release_links, self._paths.script_links
        for folder in folders:
            for name in _names(folder):
                if name.startswith(NEW):
                    try:
                        remove_tree(folder / name)
                    except OSError as error:
                        raise storage_error(error, folder / name) from error

    # -- inside

    def _is_right(self, path: Path, trees: Mapping[str, ManifestId]) -> bool:
        expected = {kind: f"../../trees/{manifest.hex()}" for kind, manifest in trees.items()}
        try:
            if path.is_symlink():
                return False
            # sync/ comes later and is no link
            links = {name: os.readlink(path / name) for name in os.listdir(path) if name != "sync"}
        except OSError:
            return False
        return links == expected

    def _remember(self, name: str, before: BundleId | None) -> None:
        if before is None or not self.path(before).is_dir():
            return
        try:
            # The folder's time is when it was switched away from.
            os.utime(self.path(before))
            folder = self._paths.bundles / _PREVIOUS
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.path(before)) from error
        switch_link(folder, name, self.path(before))

    def _bundle_at(self, link: Path) -> BundleId | None:
        bundle = _last_part(link, BundleId)
        return bundle if bundle is not None and _leads_to(link, self.path(bundle)) else None

    def _tree_at(self, link: Path) -> ManifestId | None:
        manifest = _last_part(link, ManifestId)
        tree = None if manifest is None else self._paths.tree(manifest)
        return manifest if tree is not None and _leads_to(link, tree) else None


@contextlib.contextmanager
def _new_folder(parent: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=NEW, dir=parent))
    try:
        yield path
    finally:
        remove_tree(path)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(error, folder) from error


def _last_part(link: Path, kind: type[_D]) -> _D | None:
    """The id that a link's target ends with; None if there is no such link."""
    try:
        return kind.from_hex(os.path.basename(os.readlink(link)))
    except (OSError, FormatError):
        return None


def _leads_to(link: Path, target: Path) -> bool:
    try:
        return os.path.samefile(link, target)
    except OSError:
        return False


def _check(rule: Callable[[str], None], name: str) -> None:
    try:
        rule(name)
    except PathRefused as error:
        raise UsageError(f"The name {error}") from error
