"""One file that holds a central: written as a stream, read only when all of it is there.

A line in words, a header, then frames: the name and size of a file, its bytes, and an end. Last
comes a BLAKE3 of everything before, so that a truncated or damaged file is told from a wrong
passphrase. With a passphrase each frame is sealed with AES-256-GCM under a counter; the header
stays readable and is bound to every frame. What the files mean is `archid.central.backup`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from archid.central.sealing import Stretching
from archid.errors import Conflict, Denied, StorageError, UsageError
from protocol.canonical import Fields, Value, pack, unpack
from protocol.errors import ProtocolError
from protocol.limits import MAX_LABEL_BYTES, MAX_SERIAL, MAX_TIME_S

FORMAT: Final = 1
_WORDS: Final = b"archid backup "
_LINE: Final = _WORDS + b"%d\n" % FORMAT
_MAX_LINE_BYTES: Final = 64
_MAX_HEADER_BYTES: Final = 4096
_BLOCK_BYTES: Final = 1 << 20
_TAG_BYTES: Final = 16
_DIGEST_BYTES: Final = 32
_LENGTH: Final = struct.Struct(">I")
_MAX_PATH_BYTES: Final = 255
_MAX_FILES: Final = 1024
_FILE, _DATA, _END = b"F", b"D", b"E"


class Readable(Protocol):
    """A file opened for reading."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Label:
    """What can be read on a backup without its passphrase."""

    fleet_name: str
    node_name: str
    node: bytes
    made_s: int
    software: str
    epoch: int
    serial: int
    root_version: int


class BackupWriter:
    """Writes one backup into a file that was opened for it."""

    def __init__(self, file: BinaryIO, label: Label, passphrase: str = "") -> None:
        """An empty passphrase leaves the content as it is."""
        self._file = file
        self._digest = blake3()
        self._number = 0
        self._files = 0
        stretching = Stretching.draw() if passphrase else None
        header = _encode_header(label, stretching)
        self._bound = _LINE + header
        self._cipher = AESGCM(stretching.key(passphrase)) if stretching else None
        self._write(_LINE + _LENGTH.pack(len(header)) + header)

    def add(self, path: str, size_bytes: int, source: Readable) -> None:
        """Add one file; raises StorageError when the source ends early or goes on."""
        self._files += 1
        self._frame(_FILE + pack([path, size_bytes]))
        left = size_bytes
        while block := source.read(_BLOCK_BYTES):
            left -= len(block)
            self._frame(_DATA + block)
        if left:
            raise StorageError(
                f"{path} changed while it was backed up", remedy="Repeat it in a moment"
            )

    def finish(self) -> None:
        """Write the end; without it the file counts as truncated."""
        self._frame(_END + pack([self._files]))
        self._file.write(self._digest.digest())

    def _frame(self, body: bytes) -> None:
        if self._cipher is not None:
            body = self._cipher.encrypt(_nonce(self._number), body, self._bound)
        self._number += 1
        self._write(_LENGTH.pack(len(body)) + body)

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


class BackupReader:
    """Reads one backup that lies in a seekable file; blocks."""

    def __init__(self, file: BinaryIO, shown: str) -> None:
        """Look through the whole file; `shown` is what errors call it.

        Raises UsageError when it is no backup, Conflict when a newer archid made it, StorageError
        when it is truncated or damaged.
        """
        self._file = file
        self._shown = shown
        self._content_bytes = _check_line(file, shown) - _DIGEST_BYTES
        _check_digest(file, self._content_bytes, shown)
        self._file.seek(len(_LINE))
        header = self._take(_MAX_HEADER_BYTES)
        self._bound = _LINE + header
        self._first = self._file.tell()
        try:
            self.label, self._stretching = _decode_header(header)
        except ProtocolError as error:
            raise self._damaged() from error

    @property
    def is_sealed(self) -> bool:
        """Whether a passphrase is needed."""
        return self._stretching is not None

    def files(self, passphrase: str = "") -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Path, size and blocks of every file, in order; take all blocks before the next file.

        Raises Denied for a wrong passphrase, StorageError when the content is not whole.
        """
        if self._stretching is not None and not passphrase:
            raise UsageError(
                f"{self._shown} is encrypted and needs its passphrase",
                remedy="Give --passphrase-file FILE",
                code="passphrase",
            )
        self._file.seek(self._first)
        frames = self._frames(passphrase)
        count = 0
        try:
            for body in frames:
                fields = Fields(unpack(body[1:], max_bytes=_MAX_HEADER_BYTES), "backup")
                if body[:1] == _END:
                    if fields.integer("files") != count or next(frames, None) is not None:
                        break
                    return
                if body[:1] != _FILE or count == _MAX_FILES:
                    break
                path = fields.text("path", max_bytes=_MAX_PATH_BYTES)
                size_bytes = fields.integer("size", high=2**62)
                count += 1
                yield path, size_bytes, self._blocks(frames, size_bytes)
        except ProtocolError as error:
            raise self._damaged() from error
        raise self._damaged()

    def _blocks(self, frames: Iterator[bytes], size_bytes: int) -> Iterator[bytes]:
        left = size_bytes
        while left:
            body = next(frames, b"")
            if body[:1] != _DATA or not 0 < len(body) - 1 <= left:
                raise self._damaged()
            left -= len(body) - 1
            yield body[1:]

    def _frames(self, passphrase: str) -> Iterator[bytes]:
        cipher = AESGCM(self._stretching.key(passphrase)) if self._stretching else None
        number = 0
        while self._file.tell() < self._content_bytes:
            body = self._take(_BLOCK_BYTES + 1 + _TAG_BYTES)
            if cipher is not None:
                try:
                    body = cipher.decrypt(_nonce(number), body, self._bound)
                except InvalidTag as error:
                    raise Denied(
                        f"The passphrase does not open {self._shown}",
                        remedy="Type it again; there is no other way to open the file",
                        code="passphrase",
                    ) from error
            number += 1
            yield body

    def _take(self, max_bytes: int) -> bytes:
        prefix = self._file.read(_LENGTH.size)
        length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else -1
        if not 0 < length <= min(max_bytes, self._content_bytes - self._file.tell()):
            raise self._damaged()
        return self._file.read(length)

    def _damaged(self) -> StorageError:
        return _damaged(self._shown)


def _check_line(file: BinaryIO, shown: str) -> int:
    """The first line says what it is; returns how long the file is."""
    file.seek(0)
    line = file.read(_MAX_LINE_BYTES).split(b"\n", 1)[0]
    number = line.removeprefix(_WORDS)
    if not line.startswith(_WORDS) or not number.isdigit():
        if line and (_LINE.startswith(line) or not number):
            raise _damaged(shown)
        raise UsageError(f"{shown} is not a backup of archid")
    if int(number) > FORMAT:
        raise Conflict(
            f"{shown} has format {int(number)}; this archid knows formats up to {FORMAT}",
            remedy="Restore it with the newer archid that made it",
            code="newer_format",
        )
    return file.seek(0, 2)


def _check_digest(file: BinaryIO, content_bytes: int, shown: str) -> None:
    if content_bytes <= len(_LINE):
        raise _damaged(shown)
    file.seek(0)
    digest = blake3()
    left = content_bytes
    while left and (block := file.read(min(left, _BLOCK_BYTES))):
        digest.update(block)
        left -= len(block)
    if file.read(_DIGEST_BYTES) != digest.digest():
        raise _damaged(shown)


def _damaged(shown: str) -> StorageError:
    return StorageError(
        f"{shown} is damaged or was cut off: it does not hold what was written",
        remedy="Copy it again, or use another backup, however old: central takes what is newer"
        " from the REPOs",
        code="backup_damaged",
    )


def _encode_header(label: Label, stretching: Stretching | None) -> bytes:
    seal: list[Value] = stretching.to_values() if stretching else []
    return pack(
        [
            label.fleet_name,
            label.node_name,
            label.node,
            label.made_s,
            label.software,
            label.epoch,
            label.serial,
            label.root_version,
            seal,
        ]
    )


def _decode_header(data: bytes) -> tuple[Label, Stretching | None]:
    fields = Fields(unpack(data, max_bytes=_MAX_HEADER_BYTES), "backup")
    label = Label(
        fleet_name=fields.text("fleet name", max_bytes=MAX_LABEL_BYTES),
        node_name=fields.text("name", max_bytes=MAX_LABEL_BYTES),
        node=fields.binary("node", max_bytes=_DIGEST_BYTES),
        made_s=fields.integer("time", high=MAX_TIME_S),
        software=fields.text("software", max_bytes=MAX_LABEL_BYTES),
        epoch=fields.integer("epoch", high=MAX_SERIAL),
        serial=fields.integer("serial", high=MAX_SERIAL),
        root_version=fields.integer("root version", high=MAX_SERIAL),
    )
    seal = fields.array("seal", max_items=8)
    return label, Stretching.read(Fields(list(seal), "seal")) if seal else None


def _nonce(number: int) -> bytes:
    return number.to_bytes(12)
