"""The root of a manifest: what a version is, how large, and which pieces describe it.

The root is small and signed; its id, a digest of these exact bytes, names the version for ever,
whoever signs it. It is an array that grows only at the end, so it is decoded once and the bytes
are kept: they are never made again from the fields. The pieces are `protocol.pieces`'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

from protocol.canonical import Fields, Value, open_document, pack
from protocol.chunking_profile import DEFAULT_PROFILE
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import DIGEST_BYTES, FleetId, ManifestId, PieceId
from protocol.limits import (
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_ENTRIES,
    MAX_MANIFEST_BYTES,
    MAX_PIECE_BYTES,
    MAX_SCRIPT_NAME_BYTES,
    MAX_SERIAL,
    MAX_TREE_BYTES,
)
from protocol.paths import check_kind, check_script_name
from protocol.pieces import MAX_PIECE_CHUNKS, PieceRef

SCRIPT_KINDS: Final = ("feature", "sas", "loop")
"""Kinds that the role `publish` signs; any other kind is signed by the node that makes it."""
PLAIN: Final = 0
"""The encoding of content as it is. Others are kept for content that is encrypted at rest."""
MAX_PIECES: Final = MAX_MANIFEST_BYTES // (DIGEST_BYTES + 6)


@dataclass(frozen=True, kw_only=True)
class ManifestRoot:
    """One version of one thing. `payload` is what was or will be signed."""

    TYPE: ClassVar[str] = "manifest"

    fleet: FleetId
    kind: str
    name: str
    version: int
    profile: int = DEFAULT_PROFILE
    encoding: int = PLAIN
    files: int
    folders: int
    links: int
    size_bytes: int
    chunk_count: int
    pieces: tuple[PieceRef, ...]
    payload: bytes = field(default=b"", repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        if not self.payload:
            object.__setattr__(self, "payload", self._encode())
        if len(self.payload) > MAX_MANIFEST_BYTES:
            raise LimitExceeded(
                f"manifest root of {len(self.payload)} bytes where at most {MAX_MANIFEST_BYTES}"
                " are allowed; split the content into several scripts"
            )

    @property
    def id(self) -> ManifestId:
        """The identity of this version."""
        return ManifestId.of(self.payload)

    def encode(self) -> bytes:
        """The exact bytes that are signed."""
        return self.payload

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Decode and check a root; raises ProtocolError."""
        fields = open_document(payload, cls.TYPE, max_bytes=MAX_MANIFEST_BYTES)
        return cls(
            fleet=fields.identity("fleet", FleetId),
            kind=fields.text("kind"),
            name=fields.text("name", max_bytes=MAX_SCRIPT_NAME_BYTES),
            version=fields.integer("version", low=1, high=MAX_SERIAL),
            profile=fields.integer("profile", high=MAX_SERIAL),
            encoding=fields.integer("encoding", high=MAX_SERIAL),
            files=fields.integer("files", high=MAX_ENTRIES),
            folders=fields.integer("folders", high=MAX_ENTRIES),
            links=fields.integer("links", high=MAX_ENTRIES),
            size_bytes=fields.integer("size", high=MAX_TREE_BYTES),
            chunk_count=fields.integer("chunk count", high=MAX_CHUNKS),
            pieces=tuple([_piece_ref(row) for row in fields.array("pieces", max_items=MAX_PIECES)]),
            payload=bytes(payload),
        )

    def _encode(self) -> bytes:
        pieces: list[Value] = [list(ref) for ref in self.pieces]
        return pack(
            [
                self.TYPE,
                1,
                self.fleet,
                self.kind,
                self.name,
                self.version,
                self.profile,
                self.encoding,
                self.files,
                self.folders,
                self.links,
                self.size_bytes,
                self.chunk_count,
                pieces,
            ]
        )

    def _check(self) -> None:
        check_kind(self.kind)
        check_script_name(self.name)
        if self.files + self.folders + self.links > MAX_ENTRIES:
            raise LimitExceeded(f"manifest of more than {MAX_ENTRIES} entries")
        if self.size_bytes > MAX_TREE_BYTES:
            raise LimitExceeded(f"manifest of more than {MAX_TREE_BYTES} bytes of content")
        if self.chunk_count > MAX_CHUNKS:
            raise LimitExceeded(
                f"manifest of more than {MAX_CHUNKS} chunks; split the content into several scripts"
            )
        if sum([ref.chunk_count for ref in self.pieces]) != self.chunk_count:
            raise FormatError("manifest: its pieces do not hold the chunks that it claims")
        if sum([ref.size_bytes for ref in self.pieces]) != self.size_bytes:
            raise FormatError("manifest: its pieces do not hold the bytes that it claims")


def _piece_ref(row: Value) -> PieceRef:
    fields = Fields(row, "manifest piece reference")
    ref = PieceRef(
        fields.identity("id", PieceId),
        fields.integer("length", low=1, high=MAX_PIECE_BYTES),
        fields.integer("chunk count", high=MAX_PIECE_CHUNKS),
        fields.integer("size", high=MAX_PIECE_CHUNKS * MAX_CHUNK_BYTES),
    )
    if not ref.chunk_count <= ref.size_bytes <= ref.chunk_count * MAX_CHUNK_BYTES:
        raise LimitExceeded("manifest piece reference: its size does not fit its chunk count")
    return ref
