"""The one file that says what this node believes: newest Root, Head and Grants root.

It is replaced as a whole: written beside itself, fsynced, renamed, and the folder fsynced, so that
after a power cut there is either the old state or the new. A checksum tells damage from content;
it protects against rot, not against people, since every document in it is signed anyway and the
floor against rollback is kept in the journal. What to do about a damaged file (rebuild it from
``documents/``) is the daemon's decision.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from archid.store.errors import TrustFileDamaged, storage_error
from protocol import limits
from protocol.canonical import Fields, Value, pack, unpack
from protocol.errors import ProtocolError
from protocol.ids import DIGEST_BYTES

TYPE: Final = "archid trust"
FORMAT: Final = 1
MAX_ROOTS: Final = 64
MAX_BYTES: Final = 64 * limits.MIB


@dataclass(frozen=True)
class TrustState:
    """Envelopes exactly as they were verified, and the newest `issued` ever seen.

    `root` and `head` are None in a fleet that was only just joined. `grants` are the Grants roots
    held of those that the head names, newest first. `roots` are older Roots with their versions,
    for peers that are further behind; it may be empty, since ``documents/`` has them all.
    """

    root: bytes | None = None
    head: bytes | None = None
    grants: tuple[bytes, ...] = ()
    newest_issued_s: int = 0
    roots: tuple[tuple[int, bytes], ...] = ()


class TrustFile:
    """Saves and loads the trust state of a node; blocking, one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: TrustState) -> None:
        """Replace the file durably; raises StorageError, and then the old state is untouched."""
        roots: list[Value] = [[version, envelope] for version, envelope in state.roots]
        body = pack(
            [
                TYPE,
                FORMAT,
                state.root or b"",
                state.head or b"",
                list(state.grants),
                state.newest_issued_s,
                roots,
            ]
        )
        temporary: str | None = None
        try:
            fd, temporary = tempfile.mkstemp(prefix=".trust-", dir=self.path.parent)
            with os.fdopen(fd, "wb") as file:
                file.write(body + blake3(body).digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            raise storage_error(error, self.path, needed_bytes=len(body)) from error

    def load(self) -> TrustState | None:
        """The saved state, None if there never was one; raises TrustFileDamaged, StorageError."""
        try:
            with open(self.path, "rb") as file:
                stored = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            raise TrustFileDamaged(self.path, "it is a folder") from None
        except OSError as error:
            raise storage_error(error, self.path) from error
        body, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
        if blake3(body).digest() != digest:
            raise TrustFileDamaged(self.path, "its checksum does not hold")
        try:
            return _decode(body)
        except ProtocolError as error:
            raise TrustFileDamaged(self.path, str(error)) from error

    def set_aside(self) -> Path:
        """Move a damaged file to ``trust.damaged`` for a person to look at; returns where."""
        target = self.path.with_name(self.path.name + ".damaged")
        try:
            os.replace(self.path, target)
        except OSError as error:
            raise storage_error(error, self.path) from error
        return target


def _decode(body: bytes) -> TrustState:
    fields = Fields(unpack(body, max_bytes=MAX_BYTES), "the trust file")
    fields.constant("type", TYPE)
    fields.constant("format", FORMAT)
    root = fields.binary("root", max_bytes=limits.MAX_DOCUMENT_BYTES)
    head = fields.binary("head", max_bytes=limits.MAX_DOCUMENT_BYTES)
    grants = tuple(
        Fields([item], "a Grants root in the trust file").binary(
            "envelope", max_bytes=limits.MAX_DOCUMENT_BYTES
        )
        for item in fields.array("grants", max_items=limits.MAX_ACCEPTED_GRANTS)
    )
    newest_issued_s = fields.integer("newest issued")
    roots: list[tuple[int, bytes]] = []
    for row in fields.array("roots", max_items=MAX_ROOTS):
        pair = Fields(row, "a Root in the trust file")
        version = pair.integer("version")
        roots.append((version, pair.binary("envelope", max_bytes=limits.MAX_DOCUMENT_BYTES)))
    return TrustState(root or None, head or None, grants, newest_issued_s, tuple(roots))
