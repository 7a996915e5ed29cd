"""What can go wrong with bytes on disk, as sentences for whoever must act.

A disk that is full, one that is read-only and a file that is damaged call for different people
and different remedies, so each is an error of its own. *Missing* is not *corrupt*: what is
missing is fetched, what is corrupt is withdrawn, repaired and reported. `storage_error` turns
the kernel's numbers into these; nothing else in the store interprets them.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from archid.errors import Conflict, Denied, NotFound, StorageError, UsageError
from protocol.ids import ChunkId

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})
_FAILING: Final = frozenset({errno.EIO, errno.EUCLEAN, errno.ENODATA})


class DiskFull(StorageError):
    """No room (or no quota) left where something had to be written."""

    code = "disk_full"

    def __init__(
        self,
        path: str | os.PathLike[str],
        needed_bytes: int | None = None,
        available_bytes: int | None = None,
    ) -> None:
        figures = []
        if needed_bytes:
            figures.append(f"{needed_bytes:,} bytes were to be written")
        if available_bytes is not None:
            figures.append(f"{available_bytes:,} are free")
        detail = f" ({', '.join(figures)})" if figures else ""
        super().__init__(
            f"The disk is full: cannot write {os.fspath(path)}{detail}",
            remedy="Free some space there and try again; what was already kept is intact",
        )
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class StoreReadOnly(StorageError):
    """A folder that must be written to is mounted read-only."""

    code = "read_only"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(
            f"{os.fspath(path)} lies on a file system that is mounted read-only",
            remedy="Mount it read-write, or name another folder in the configuration",
        )


class DatabaseDamaged(StorageError):
    """A database in the state folder is not readable as one."""

    code = "database_damaged"

    def __init__(self, path: Path, why: str, *, remedy: str | None = None) -> None:
        super().__init__(
            f"The database {path} is damaged: {why}",
            remedy=remedy
            or "Stop archid, move that file away together with those that start with its name,"
            " and start archid again; check the disk",
        )
        self.path = path


class TrustFileDamaged(StorageError):
    """The file with the newest Root and head does not hold what was saved."""

    code = "trust_file_damaged"

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"The trust file {path} is damaged: {why}",
            remedy="archid rebuilds it from its documents and its peers; check the disk",
        )
        self.path = path


class DocumentMissing(NotFound):
    """A document is not here, or no longer what its name says; it can be fetched again."""

    code = "document_missing"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"The document {kind}/{name} is not here")
        self.kind = kind
        self.name = name


class ManifestUnfit(DocumentMissing):
    """A manifest that was signed by the right key and describes what no node may put on a disk."""

    code = "manifest_unfit"

    def __init__(self, manifest: str, script: str, why: str) -> None:
        super().__init__("manifests", manifest)
        self.message = f"What was published as {script} describes a tree that cannot be: {why}"
        self.remedy = "Nothing of it was fetched; find out who signed it, and publish it anew"
        self.args = (self.message,)


class ChunkMissing(NotFound):
    """No file here holds this chunk; it can be fetched."""

    code = "chunk_missing"

    def __init__(self, chunk: ChunkId) -> None:
        super().__init__(f"The chunk {chunk.short} is not here")
        self.chunk = chunk


class ChunkCorrupt(StorageError):
    """Bytes that should be a chunk are not: on this disk, or as a peer sent them."""

    code = "chunk_corrupt"

    def __init__(self, chunk: ChunkId, where: str) -> None:
        super().__init__(
            f"The chunk {chunk.short} is damaged {where}",
            remedy="It is fetched again from another peer; if this goes on, check the disk",
        )
        self.chunk = chunk
        self.where = where


class NotMended(StorageError):
    """A tree was repaired, and the disk does not give back what was written to it."""

    code = "not_mended"

    def __init__(self, tree: Path, what: str) -> None:
        super().__init__(
            f"{tree} was repaired and is damaged all the same: {what}",
            remedy="Look at the kernel's log (dmesg) and check the disk; it is tried again",
        )


class ChangedWhileReading(Conflict):
    """A file being published did not hold still."""

    code = "changed_while_reading"

    def __init__(self, path: str, how: str) -> None:
        super().__init__(
            f"The file {path} {how} while it was being read",
            remedy="Wait until nothing writes to the folder any more, then publish it again",
        )
        self.path = path


class NotPublishable(UsageError):
    """Something in the folder to publish is neither a file, a folder nor a symbolic link."""

    code = "not_publishable"

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"{path} is {what}; only files, folders and symbolic links can be published",
            remedy="Remove it from the folder, or publish a folder without it",
        )
        self.path = path


class FileUnreadable(Denied):
    """A file to be published cannot be read."""

    code = "file_unreadable"

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(
            f"The file {path} cannot be read: {error.strerror or error}",
            remedy="Let the user who publishes read it, then publish again",
        )
        self.path = path


def storage_error(
    error: OSError, path: str | os.PathLike[str], *, needed_bytes: int | None = None
) -> StorageError:
    """The error for a person that `error`, met while writing or reading `path`, amounts to."""
    if error.errno in _FULL:
        return DiskFull(path, needed_bytes)
    shown = os.fspath(path)
    if error.errno == errno.EROFS:
        return StoreReadOnly(path)
    if error.errno in _FORBIDDEN:
        return StorageError(
            f"{shown} cannot be accessed by this user: {error.strerror}",
            remedy="Make the folder belong to the user that archid runs as",
            code="not_writable",
        )
    if error.errno in _FAILING:
        return StorageError(
            f"The disk fails at {shown}: {error.strerror}",
            remedy="Look at the kernel's log (dmesg) and replace the disk",
            code="disk_failing",
        )
    return StorageError(f"{shown}: {error.strerror or error}")
