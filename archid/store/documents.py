"""Everything signed or content-addressed that is not a chunk, as one file each.

A document is written beside its place and renamed, so that a reader never sees half of one, and
is checked against its name at every read. One that no longer is what its name says is moved to
``damaged/`` for a person to look at, logged, and from then on missing, so that whoever needs it
fetches it again. Whether a document is to be *believed* is the business of `protocol.trust`;
here it is only known to be the bytes that were put.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from archid.log import get_logger
from archid.store import syscalls
from archid.store.errors import DocumentMissing, storage_error
from archid.store.shelves import (
    GRANTS,
    HEADS,
    LEAVES,
    LISTS,
    MANIFESTS,
    PAGES,
    PIECES,
    ROOTS,
    SHELVES,
    SYNCS,
    Shelf,
)  # fmt: skip
from archid.store.shelves import TRUST_SHELVES as TRUST_SHELVES  # noqa: PLC0414 - leaving needs it too
from protocol.errors import LimitExceeded, ProtocolError
from protocol.ids import DIGEST_BYTES, DocumentId, ListId, ManifestId, NodeId, PageId, PieceId

log = get_logger(__name__)


_HEX: Final = re.compile(r"[0-9a-f]{64}")
_LEAF: Final = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})")
_TEMPORARY: Final = ".new-"

# What says that this one document is bad, and not, say, that too many files are open.
_ROTTEN: Final = frozenset({errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EUCLEAN})


class Stored(NamedTuple):
    """A document's file: its name on the shelf, and when it was put (seconds since 1970)."""

    name: str
    size_bytes: int
    put_at: float


class DocumentStore:
    """The documents below one folder; all methods block shortly and are safe in any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: set[Path] = set()
        self._guard = threading.Lock()

    # -- manifests and their pieces

    def put_manifest(self, envelope: bytes) -> ManifestId:
        """Keep a publication; returns the id of its payload. Raises FormatError, StorageError."""
        manifest = ManifestId(self._identify(MANIFESTS, envelope))
        self._write(MANIFESTS, manifest.hex(), envelope)
        return manifest

    def get_manifest(self, manifest: ManifestId) -> bytes:
        """The envelope bytes; raises DocumentMissing."""
        return self._read(MANIFESTS, manifest.hex(), manifest)

    def has_manifest(self, manifest: ManifestId) -> bool:
        return self._file(MANIFESTS, manifest.hex()).is_file()

    def manifests(self) -> list[ManifestId]:
        """The ids of all manifests held, in order."""
        return [ManifestId.from_hex(name) for name in self._names(MANIFESTS, _HEX)]

    def put_piece(self, data: bytes) -> PieceId:
        piece = PieceId(self._identify(PIECES, data))
        self._write(PIECES, piece.hex(), data)
        return piece

    def put_pieces(self, pieces: Iterable[bytes]) -> list[PieceId]:
        return [self.put_piece(data) for data in pieces]

    def get_piece(self, piece: PieceId) -> bytes:
        """One manifest piece; raises DocumentMissing."""
        return self._read(PIECES, piece.hex(), piece)

    def has_piece(self, piece: PieceId) -> bool:
        return self._file(PIECES, piece.hex()).is_file()

    def missing_pieces(self, pieces: Sequence[PieceId], *, touch: bool = False) -> list[PieceId]:
        """Those of `pieces` that are not here, in order, each once.

        With `touch` the others count as put just now: nobody collects them for a while.
        """
        wanted = dict.fromkeys(pieces)
        if touch:
            return [one for one in wanted if not self._touched(PIECES, one.hex())]
        return [piece for piece in wanted if not self.has_piece(piece)]

    def pieces(self) -> list[PieceId]:
        return [PieceId.from_hex(name) for name in self._names(PIECES, _HEX)]

    # -- trust documents

    def put_root(self, version: int, envelope: bytes) -> None:
        """Keep the Root of this version; Roots are never removed."""
        self._identify(ROOTS, envelope)
        self._write(ROOTS, f"{version:010d}", envelope, replace=True)

    def get_root(self, version: int) -> bytes:
        """The envelope of one Root; raises DocumentMissing."""
        return self._read(ROOTS, f"{version:010d}", None)

    def root_versions(self) -> list[int]:
        return [int(name) for name in self._names(ROOTS, re.compile(r"\d{10}"))]

    def put_head(self, envelope: bytes) -> DocumentId:
        return self._put_document(HEADS, envelope)

    def get_head(self, head: DocumentId) -> bytes:
        return self._read(HEADS, head.hex(), head)

    def heads(self) -> list[DocumentId]:
        return [DocumentId.from_hex(name) for name in self._names(HEADS, _HEX)]

    def remove_head(self, head: DocumentId) -> None:
        self._remove(HEADS, head.hex())

    def put_grants(self, envelope: bytes) -> DocumentId:
        return self._put_document(GRANTS, envelope)

    def get_grants(self, grants_root: DocumentId) -> bytes:
        return self._read(GRANTS, grants_root.hex(), grants_root)

    def has_grants(self, grants_root: DocumentId) -> bool:
        return self._file(GRANTS, grants_root.hex()).is_file()

    def grants(self) -> list[DocumentId]:
        return [DocumentId.from_hex(name) for name in self._names(GRANTS, _HEX)]

    def remove_grants(self, grants_root: DocumentId) -> None:
        self._remove(GRANTS, grants_root.hex())

    def put_syncs(self, envelope: bytes) -> DocumentId:
        return self._put_document(SYNCS, envelope)

    def get_syncs(self, syncs_root: DocumentId) -> bytes:
        return self._read(SYNCS, syncs_root.hex(), syncs_root)

    # -- leaves: one for each node and Grants root

    def put_leaf(self, node: NodeId, grants_root: DocumentId, leaf: bytes) -> None:
        self._identify(LEAVES, leaf)
        self._write(LEAVES, f"{node.hex()}-{grants_root.hex()}", leaf, replace=True)

    def get_leaf(self, node: NodeId, grants_root: DocumentId) -> bytes:
        """The leaf of `node` under `grants_root`; raises DocumentMissing."""
        return self._read(LEAVES, f"{node.hex()}-{grants_root.hex()}", None)

    def has_leaf(self, node: NodeId, grants_root: DocumentId) -> bool:
        return self._file(LEAVES, f"{node.hex()}-{grants_root.hex()}").is_file()

    def leaves(self) -> list[tuple[NodeId, DocumentId]]:
        """The (node, Grants root) of every leaf held."""
        found = (_LEAF.fullmatch(name) for name in self._names(LEAVES, _LEAF))
        return [
            (NodeId.from_hex(match[1]), DocumentId.from_hex(match[2])) for match in found if match
        ]

    def remove_leaf(self, node: NodeId, grants_root: DocumentId) -> None:
        self._remove(LEAVES, f"{node.hex()}-{grants_root.hex()}")

    # -- paged lists

    def put_list(self, index: bytes) -> ListId:
        list_id = ListId(self._identify(LISTS, index))
        self._write(LISTS, list_id.hex(), index)
        return list_id

    def get_list(self, list_id: ListId) -> bytes:
        return self._read(LISTS, list_id.hex(), list_id)

    def has_list(self, list_id: ListId) -> bool:
        return self._file(LISTS, list_id.hex()).is_file()

    def put_page(self, page: bytes) -> PageId:
        page_id = PageId(self._identify(PAGES, page))
        self._write(PAGES, page_id.hex(), page)
        return page_id

    def get_page(self, page: PageId) -> bytes:
        return self._read(PAGES, page.hex(), page)

    def has_page(self, page: PageId) -> bool:
        return self._file(PAGES, page.hex()).is_file()

    # -- durability and damage

    def sync(self) -> None:
        """Make everything put so far survive a power cut: one call for a whole batch."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        except OSError as error:
            raise storage_error(error, self.path) from error
        finally:
            os.close(fd)

    # -- collecting

    def stored(self, shelf: Shelf) -> list[Stored]:
        """What is on a shelf, by name."""
        found = []
        for name in self._names(shelf, _HEX):
            with contextlib.suppress(FileNotFoundError):
                info = self._file(shelf, name).stat()
                found.append(Stored(name, info.st_size, info.st_mtime))
        return found

    def remove_unless_touched(self, shelf: Shelf, name: str, since: float) -> bool:
        """Remove a document that was not put again since a moment (seconds since 1970)."""
        path = self._file(shelf, name)
        with self._guard:
            try:
                if path.stat().st_mtime >= since:
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
            except OSError as error:
                raise storage_error(error, path) from error
        return True

    def _touched(self, shelf: Shelf, name: str) -> bool:
        with self._guard:
            try:
                os.utime(self._file(shelf, name))
            except OSError:
                return self._file(shelf, name).is_file()
            return True

    def damaged(self) -> list[str]:
        """The names of what was found damaged and moved away."""
        return sorted(entry.name for entry in _listed(self.path / "damaged"))

    def _put_document(self, shelf: Shelf, envelope: bytes) -> DocumentId:
        document = DocumentId(self._identify(shelf, envelope))
        self._write(shelf, document.hex(), envelope, replace=True)
        return document

    def _identify(self, shelf: Shelf, data: bytes) -> bytes:
        if len(data) > shelf.max_bytes:
            raise LimitExceeded(
                f"a document for {shelf.folder} has {len(data)} bytes where at most"
                f" {shelf.max_bytes} are allowed"
            )
        return shelf.identity(data) if shelf.identity is not None else b""

    def _file(self, shelf: Shelf, name: str) -> Path:
        folder = self.path / shelf.folder
        return folder / name[:2] / name if shelf.fan_out else folder / name

    def _write(self, shelf: Shelf, name: str, data: bytes, *, replace: bool = False) -> None:
        target = self._file(shelf, name)
        if not replace:
            # The same id means the same content; only what rotted meanwhile is written again.
            with contextlib.suppress(DocumentMissing):
                if self._touched(shelf, name) and (
                    self._read(shelf, name, None, quiet=True) == data
                ):
                    return
        stored = data + blake3(data).digest() if shelf.checksum else data
        temporary: str | None = None
        try:
            if target.parent not in self._made:
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._made.add(target.parent)
            fd, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
            with os.fdopen(fd, "wb") as file:
                file.write(stored)
            try:
                os.replace(temporary, target)
            except IsADirectoryError:
                self._set_aside(shelf, name, target, "is a folder")
                os.replace(temporary, target)
        except OSError as error:
            self._made.discard(target.parent)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            raise storage_error(error, target, needed_bytes=len(stored)) from error

    def _read(
        self, shelf: Shelf, name: str, expected: bytes | None, *, quiet: bool = False
    ) -> bytes:
        path = self._file(shelf, name)
        bound = shelf.max_bytes + DIGEST_BYTES
        try:
            with open(path, "rb", opener=_open_plainly) as file:
                stored = file.read(bound + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise DocumentMissing(shelf.folder, name) from None
        except OSError as error:
            if error.errno not in _ROTTEN:
                raise storage_error(error, path) from error
            self._set_aside(shelf, name, path, f"cannot be read: {error.strerror}")
            raise DocumentMissing(shelf.folder, name) from error
        data, why = _checked(shelf, stored, expected)
        if why:
            self._set_aside(shelf, name, path, why, quiet=quiet)
            raise DocumentMissing(shelf.folder, name)
        return data

    def _set_aside(
        self, shelf: Shelf, name: str, path: Path, why: str, *, quiet: bool = False
    ) -> None:
        aside = self.path / "damaged"
        moved = False
        with contextlib.suppress(OSError):
            aside.mkdir(exist_ok=True, mode=0o700)
            # A second damage to the same document replaces the first: the folder stays bounded.
            os.replace(path, aside / f"{shelf.folder}-{name}")
            moved = True
        report = log.warning if quiet else log.error
        report("document_damaged", document=shelf.folder, name=name, why=why, moved=moved)

    def _remove(self, shelf: Shelf, name: str) -> None:
        path = self._file(shelf, name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error

    def _names(self, shelf: Shelf, pattern: re.Pattern[str]) -> list[str]:
        names: list[str] = []
        for entry in _listed(self.path / shelf.folder):
            if shelf.fan_out:
                names += [inner.name for inner in _listed(Path(entry.path))]
            else:
                names.append(entry.name)
        return sorted(name for name in names if pattern.fullmatch(name))

    def remove_leftovers(self) -> int:
        """Delete files that a killed writer left half written; returns how many."""
        count = 0
        for shelf in SHELVES:
            top = self.path / shelf.folder
            folders = [Path(entry.path) for entry in _listed(top)] if shelf.fan_out else [top]
            for folder in folders:
                for entry in _listed(folder):
                    if entry.name.startswith(_TEMPORARY):
                        os.unlink(entry.path)
                        count += 1
        return count


def _open_plainly(path: str, flags: int) -> int:
    """No symlinks, and no waiting where a pipe took a document's name."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _checked(shelf: Shelf, stored: bytes, expected: bytes | None) -> tuple[bytes, str]:
    """The document without its checksum, and what is wrong with it (empty if nothing)."""
    if len(stored) > shelf.max_bytes + DIGEST_BYTES:
        return b"", "is longer than any such document"
    data = stored
    if shelf.checksum:
        data, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
        if blake3(data).digest() != digest:
            return b"", "its checksum does not hold"
    if expected is not None and shelf.identity is not None:
        try:
            found = shelf.identity(data)
        except ProtocolError as error:
            return b"", str(error)
        if found != expected:
            return b"", "its content is not what its name says"
    return data, ""


def _listed(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
