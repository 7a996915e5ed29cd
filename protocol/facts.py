"""The items of a leaf: a node's facts, its releases, what it may read, its synchronisations.

An item is `[kind, salt, fields...]`. Proofs show single items to peers; the salt, 16 bytes that
nobody can guess, keeps them from finding out the others by trying. Kinds are open: an unknown
one is hashed like the rest and otherwise passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

from protocol.canonical import Fields, Value, pack, unpack
from protocol.envelope import PublicKey
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import ChunkId, ManifestId, NodeId, ReleaseId
from protocol.limits import (
    MAX_ITEM_BYTES,
    MAX_LABEL_BYTES,
    MAX_SERIAL,
    MAX_TIME_S,
    MAX_TYPE_BYTES,
)

SALT_BYTES: Final = 16

ROLE_CENTRAL: Final = "central"
ROLE_REPO: Final = "repo"
ROLE_ICE: Final = "ice"

STATE_ACTIVE: Final = "active"
STATE_WITHDRAWN: Final = "withdrawn"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Who a node is: always the first item of its leaf.

    `role` and `server_kind` are open texts: an older node meets newer ones.
    """

    KIND: ClassVar[str] = "facts"

    node: NodeId
    key: PublicKey
    role: str
    name: str
    site: str = ""
    room: str = ""
    server_kind: str = ""

    @property
    def reads_everything(self) -> bool:
        """Whether these facts alone entitle their node to all content."""
        return self.role in (ROLE_CENTRAL, ROLE_REPO)

    def fields(self) -> list[Value]:
        """The fields in the order of the format, as items and Roster rows hold them."""
        return [
            self.node,
            self.key,
            self.role,
            self.name,
            self.site,
            self.room,
            self.server_kind,
        ]

    @classmethod
    def parse(cls, fields: Fields) -> NodeFacts:
        """Take the fields; raises FormatError or LimitExceeded."""
        return cls(
            node=fields.identity("node", NodeId),
            key=fields.identity("key", PublicKey),
            role=fields.text("role", max_bytes=MAX_TYPE_BYTES),
            name=fields.text("name", max_bytes=MAX_LABEL_BYTES),
            site=fields.text("site", max_bytes=MAX_LABEL_BYTES),
            room=fields.text("room", max_bytes=MAX_LABEL_BYTES),
            server_kind=fields.text("server kind", max_bytes=MAX_TYPE_BYTES),
        )


@dataclass(frozen=True, slots=True)
class ReleaseHeader:
    """A release as its own nodes see it; never shown to peers. Times are UTC seconds."""

    KIND: ClassVar[str] = "release"

    release: ReleaseId
    name: str
    generation: int
    state: str
    prefetch_s: int
    start_s: int
    end_s: int

    @property
    def withdrawn(self) -> bool:
        """Only this deactivates; a state that a newer version added does not."""
        return self.state == STATE_WITHDRAWN

    def fields(self) -> list[Value]:
        """The fields in the order of the format."""
        return [
            self.release,
            self.name,
            self.generation,
            self.state,
            self.prefetch_s,
            self.start_s,
            self.end_s,
        ]

    @classmethod
    def parse(cls, fields: Fields) -> ReleaseHeader:
        """Take the fields; raises FormatError or LimitExceeded."""
        return cls(
            release=fields.identity("release", ReleaseId),
            name=fields.text("name", max_bytes=MAX_LABEL_BYTES),
            generation=fields.integer("generation", low=1, high=MAX_SERIAL),
            state=fields.text("state", max_bytes=MAX_TYPE_BYTES),
            prefetch_s=fields.integer("prefetch", high=MAX_TIME_S),
            start_s=fields.integer("start", high=MAX_TIME_S),
            end_s=fields.integer("end", high=MAX_TIME_S),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One manifest that a node may read, for one release; this is what peers are shown."""

    KIND: ClassVar[str] = "entry"

    release: ReleaseId
    generation: int
    manifest: ManifestId
    kind: str

    def fields(self) -> list[Value]:
        """The fields in the order of the format."""
        return [self.release, self.generation, self.manifest, self.kind]

    @classmethod
    def parse(cls, fields: Fields) -> Entry:
        """Take the fields; raises FormatError or LimitExceeded."""
        return cls(
            release=fields.identity("release", ReleaseId),
            generation=fields.integer("generation", low=1, high=MAX_SERIAL),
            manifest=fields.identity("manifest", ManifestId),
            kind=fields.text("kind", max_bytes=MAX_TYPE_BYTES),
        )


@dataclass(frozen=True, slots=True)
class SyncItem:
    """In leaves under a Syncs root: the synchronisation document for one CPL of a release.

    `document` is the plain BLAKE3-256 of the document's bytes.
    """

    KIND: ClassVar[str] = "sync"

    release: ReleaseId
    generation: int
    cpl: str
    document: ChunkId

    def fields(self) -> list[Value]:
        """The fields in the order of the format."""
        return [self.release, self.generation, self.cpl, self.document]

    @classmethod
    def parse(cls, fields: Fields) -> SyncItem:
        """Take the fields; raises FormatError or LimitExceeded."""
        return cls(
            release=fields.identity("release", ReleaseId),
            generation=fields.integer("generation", low=1, high=MAX_SERIAL),
            cpl=fields.text("cpl", max_bytes=MAX_LABEL_BYTES),
            document=fields.identity("document", ChunkId),
        )


@dataclass(frozen=True, slots=True)
class UnknownItem:
    """An item of a kind that a newer version added."""

    kind: str


LeafItem: TypeAlias = NodeFacts | ReleaseHeader | Entry | SyncItem

_KINDS: Final[dict[str, type[NodeFacts | ReleaseHeader | Entry | SyncItem]]] = {
    kind.KIND: kind for kind in (NodeFacts, ReleaseHeader, Entry, SyncItem)
}


def encode_item(salt: bytes, item: LeafItem) -> bytes:
    """The bytes of an item.

    Raises FormatError for a salt that is not 16 bytes, and what `decode_item` would raise: a
    node that cannot read its leaf is cut off.
    """
    if len(salt) != SALT_BYTES:
        raise FormatError(f"a salt must be {SALT_BYTES} bytes, not {len(salt)}")
    data = pack([item.KIND, salt, *item.fields()])
    if len(data) > MAX_ITEM_BYTES:
        raise LimitExceeded(f"an item would have {len(data)} bytes, over {MAX_ITEM_BYTES}")
    decode_item(data)
    return data


def decode_item(data: bytes) -> LeafItem | UnknownItem:
    """Parse an item; raises FormatError or LimitExceeded, also for a malformed known kind."""
    fields = Fields(unpack(data, max_bytes=MAX_ITEM_BYTES), "item")
    name = fields.text("kind", max_bytes=MAX_TYPE_BYTES)
    kind = _KINDS.get(name)
    if kind is None:
        return UnknownItem(name)
    if len(fields.binary("salt", max_bytes=SALT_BYTES)) != SALT_BYTES:
        raise FormatError(f"an item's salt is not {SALT_BYTES} bytes")
    return kind.parse(fields)
