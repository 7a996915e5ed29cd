"""Typed identities: 32-byte BLAKE3 digests that cannot be mixed up.

A chunk is named by the plain BLAKE3-256 of its bytes, so ``b3sum`` can check it. Every other
identity is derived with a context of its own (BLAKE3 ``derive_key`` mode), so that the bytes of
one kind of thing can never pass as another.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

from blake3 import blake3

from protocol.errors import FormatError

DIGEST_BYTES: Final = 32
OPAQUE_BYTES: Final = 16


class Digest(bytes):
    """A 32-byte BLAKE3-256 digest; subclasses say of what."""

    CONTEXT: ClassVar[str] = ""

    __slots__ = ()

    def __new__(cls, value: bytes) -> Self:
        if len(value) != DIGEST_BYTES:
            raise FormatError(f"{cls.__name__} must be {DIGEST_BYTES} bytes, not {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        """The identity of `data`: BLAKE3-256 in this type's context."""
        if cls.CONTEXT:
            return cls(blake3(data, derive_key_context=cls.CONTEXT).digest())
        return cls(blake3(data).digest())

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Parse 64 hexadecimal digits; raises FormatError."""
        try:
            return cls(bytes.fromhex(text))
        except ValueError as error:
            raise FormatError(f"not a {cls.__name__} in hexadecimal: {text[:80]!r}") from error

    @property
    def short(self) -> str:
        """The first 12 hexadecimal digits, for people."""
        return self.hex()[:12]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.short})"

    def __str__(self) -> str:
        return self.hex()


class ChunkId(Digest):
    """Plain BLAKE3-256 of a chunk's bytes."""

    __slots__ = ()


class PieceId(Digest):
    """Names a manifest piece."""

    CONTEXT = "archid v1 manifest piece"
    __slots__ = ()


class ManifestId(Digest):
    """Names one version of one thing: the digest of the manifest root without signatures."""

    CONTEXT = "archid v1 manifest root"
    __slots__ = ()


class NodeId(Digest):
    """The digest of a node's first public key; never changes."""

    CONTEXT = "archid v1 node id"
    __slots__ = ()


class KeyId(Digest):
    """Names a public key within a Root."""

    CONTEXT = "archid v1 key id"
    __slots__ = ()


class FleetId(Digest):
    """Names a fleet; drawn at random when the fleet is made."""

    CONTEXT = "archid v1 fleet id"
    __slots__ = ()


class DocumentId(Digest):
    """The digest of a signed document's payload (Root, Head, Grants root, Syncs root)."""

    CONTEXT = "archid v1 document"
    __slots__ = ()


class ListId(Digest):
    """Names a paged list (Catalogue, Roster, Grants list): the digest of its index."""

    CONTEXT = "archid v1 list index"
    __slots__ = ()


class PageId(Digest):
    """Names one page of a paged list."""

    CONTEXT = "archid v1 list page"
    __slots__ = ()


class TreeHash(Digest):
    """A node of a Merkle tree (Grants, Syncs, leaves); computed in protocol.merkle only."""

    CONTEXT = "archid v1 merkle"
    __slots__ = ()


class ReleaseId(bytes):
    """The opaque 16-byte id of a release: says nothing about the film."""

    __slots__ = ()

    def __new__(cls, value: bytes) -> Self:
        if len(value) != OPAQUE_BYTES:
            raise FormatError(f"ReleaseId must be {OPAQUE_BYTES} bytes, not {len(value)}")
        return super().__new__(cls, value)

    def __repr__(self) -> str:
        return f"ReleaseId({self.hex()[:12]})"

    def __str__(self) -> str:
        return self.hex()
