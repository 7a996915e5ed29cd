"""Makes a state folder forget the fleet it belonged to.

What says who the node is, what it believes and who else is in the fleet goes; what a player may
be playing stays unless it is purged, with the manifests that say what it is. The identity goes
last, so that an interrupted departure can be repeated. That the fleet forgets the node is
central's business, and refusing to do this while a daemon runs is the caller's: it holds the
state lock, or is that daemon.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from archid.store.documents import TRUST_SHELVES
from archid.store.errors import storage_error
from archid.store.layout import StatePaths


def forget_membership(paths: StatePaths, *, purge: bool) -> list[Path]:
    """Remove the membership, with `purge` also every script; returns what was removed.

    Raises StorageError for what cannot be removed; what was removed before that stays removed.
    """
    content: tuple[Path, ...] = ()
    if purge:
        content = (
            paths.release_links,
            paths.script_links,
            paths.bundles,
            paths.trees,
            paths.documents,
            *_database(paths.node_db),
        )
    # The journal's floor against rollback would refuse the heads of the next fleet, and Roots of
    # this one between those of the next would break their chain.
    believed = (paths.documents / shelf for shelf in TRUST_SHELVES)
    membership = (
        paths.staging,
        *believed,
        paths.addresses,
        *_database(paths.journal_db),
        paths.trust,
        paths.identity,
    )
    return [path for path in (*content, *membership) if _remove(path)]


def _database(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm"))


def _remove(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            _open_up(path)
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    return True


def _open_up(folder: Path) -> None:
    """Trees are read-only down to their folders; only their owner can change that again."""
    for parent, _, _ in os.walk(folder):
        mode = stat.S_IMODE(os.stat(parent).st_mode)
        if mode & 0o700 != 0o700:
            os.chmod(parent, mode | 0o700)
