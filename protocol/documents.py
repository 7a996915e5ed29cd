"""What all documents have in common, and the short ones: Grants and Syncs roots, Tickets.

A document is an array `[type, format, fields...]`. One that was received keeps the very bytes
it came in, since they may hold fields at the end that this version does not know: its identity
and what is passed on are always those bytes. Who may sign what is `protocol.trust`'s business;
the larger documents are in `protocol.root`, `protocol.head` and `protocol.grants`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from protocol.canonical import Fields, Value, open_document, pack
from protocol.errors import LimitExceeded
from protocol.ids import DocumentId, FleetId, ListId, ManifestId, NodeId, TreeHash
from protocol.limits import (
    MAX_DOCUMENT_BYTES,
    MAX_GRANTS_ROOT_BYTES,
    MAX_LEAVES,
    MAX_SERIAL,
    MAX_SIGNATURES_BYTES,
    MAX_TIME_S,
    MAX_TYPE_BYTES,
)


@dataclass(frozen=True)
class Document:
    """Base of every document: one encoding, which is kept as received."""

    TYPE: ClassVar[str]
    MAX_BYTES: ClassVar[int] = MAX_DOCUMENT_BYTES

    _received: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def encode(self) -> bytes:
        """The bytes to sign or send.

        Raises LimitExceeded or FormatError for what no reader would take: a document that is
        signed and then refused by every node would stop a fleet.
        """
        if self._received is not None:
            return self._received
        data = pack([self.TYPE, 1, *self._fields()])
        if len(data) > self.MAX_BYTES:
            raise LimitExceeded(
                f"{self.TYPE} would have {len(data)} bytes where {self.MAX_BYTES} are allowed"
            )
        self._parse(open_document(data, self.TYPE, max_bytes=self.MAX_BYTES))
        return data

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """Parse exact bytes; raises FormatError or LimitExceeded."""
        document = cls._parse(open_document(data, cls.TYPE, max_bytes=cls.MAX_BYTES))
        object.__setattr__(document, "_received", bytes(data))
        return document

    @property
    def id(self) -> DocumentId:
        """The digest of the payload, without signatures."""
        return DocumentId.of(self.encode())

    def _fields(self) -> Sequence[Value]:
        raise NotImplementedError

    @classmethod
    def _parse(cls, fields: Fields) -> Self:
        raise NotImplementedError


@dataclass(frozen=True)
class TreeRoot(Document):
    """The signed root of a tree of leaves, one a node, sorted by node id (`protocol.grants`)."""

    MAX_BYTES: ClassVar[int] = MAX_GRANTS_ROOT_BYTES - MAX_SIGNATURES_BYTES

    fleet: FleetId
    epoch: int
    issued_s: int
    tree: TreeHash
    leaf_count: int
    index: ListId

    def _fields(self) -> Sequence[Value]:
        return [self.fleet, self.epoch, self.issued_s, self.tree, self.leaf_count, self.index]

    @classmethod
    def _parse(cls, fields: Fields) -> Self:
        return cls(
            fleet=fields.identity("fleet", FleetId),
            epoch=fields.integer("epoch", low=1, high=MAX_SERIAL),
            issued_s=fields.integer("issued", high=MAX_TIME_S),
            tree=fields.identity("tree", TreeHash),
            leaf_count=fields.integer("leaf count", high=MAX_LEAVES),
            index=fields.identity("index", ListId),
        )


@dataclass(frozen=True)
class GrantsRoot(TreeRoot):
    """Signed by the role `grants`: who is who, and which release is for whom.

    `index` is the paged list of `protocol.paged.GrantsRow`s, for REPOs.
    """

    TYPE: ClassVar[str] = "grants"


@dataclass(frozen=True)
class SyncsRoot(TreeRoot):
    """Signed by the role `sync`: which synchronisation documents go with which release."""

    TYPE: ClassVar[str] = "syncs"


@dataclass(frozen=True)
class Ticket(Document):
    """Signed by the role `tickets`: `node` may read `manifest` until `expires_s`."""

    TYPE: ClassVar[str] = "ticket"
    MAX_BYTES: ClassVar[int] = 1024

    fleet: FleetId
    node: NodeId
    manifest: ManifestId
    purpose: str
    expires_s: int

    def _fields(self) -> Sequence[Value]:
        return [self.fleet, self.node, self.manifest, self.purpose, self.expires_s]

    @classmethod
    def _parse(cls, fields: Fields) -> Self:
        return cls(
            fleet=fields.identity("fleet", FleetId),
            node=fields.identity("node", NodeId),
            manifest=fields.identity("manifest", ManifestId),
            purpose=fields.text("purpose", max_bytes=MAX_TYPE_BYTES),
            expires_s=fields.integer("expires", high=MAX_TIME_S),
        )
