"""NodeState: what a node says of itself, signed by its own key.

Small, because it goes to every REPO and to central each time something changes: how the node is,
where it can be reached, which releases stand how, and which versions it holds. Longer inventories
are content that a state names. States of one node are ordered by (incarnation, seq): a node that
lost its memory takes a new incarnation, so that its words count again. Who gets a state, and when,
is decided in `protocol.gossip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Self

from protocol.canonical import Fields, Value
from protocol.documents import Document
from protocol.envelope import Envelope, PublicKey
from protocol.errors import TrustError
from protocol.ids import DIGEST_BYTES, OPAQUE_BYTES, FleetId, ManifestId, NodeId, ReleaseId
from protocol.limits import (
    MAX_ADDRESS_BYTES,
    MAX_ADDRESSES,
    MAX_ERROR_TEXT_BYTES,
    MAX_SERIAL,
    MAX_SOFTWARE_BYTES,
    MAX_STATE_BYTES,
    MAX_STATE_HOLDINGS,
    MAX_STATE_REASONS,
    MAX_STATE_RELEASES,
    MAX_TIME_S,
    MAX_TYPE_BYTES,
)
from protocol.messages.wire import printable

WHOLE: Final = 1000
"""A version that is held whole, in thousandths."""
HEALTH_LEVELS: Final = ("ok", "attention", "alarm")


class Holding(NamedTuple):
    """How much of one version a node holds, in thousandths of its bytes."""

    manifest: ManifestId
    held_permille: int


class ReleaseStanding(NamedTuple):
    """How one release stands on a node; `reason` is a sentence, empty when there is nothing."""

    release: ReleaseId
    generation: int
    state: str
    reason: str


@dataclass(frozen=True)
class NodeState(Document):
    """One node at one moment, by its own account."""

    TYPE: ClassVar[str] = "state"
    MAX_BYTES: ClassVar[int] = MAX_STATE_BYTES

    fleet: FleetId
    node: NodeId
    incarnation: int
    seq: int
    issued_s: int
    software: str
    addresses: tuple[str, ...]
    head_order: tuple[int, int]
    health: str
    reasons: tuple[str, ...]
    free_bytes: int
    releases: tuple[ReleaseStanding, ...]
    holdings: tuple[Holding, ...]

    @property
    def order(self) -> tuple[int, int]:
        """Greater is newer."""
        return self.incarnation, self.seq

    def _fields(self) -> Sequence[Value]:
        return [
            self.fleet,
            self.node,
            self.incarnation,
            self.seq,
            self.issued_s,
            self.software,
            list(self.addresses),
            list(self.head_order),
            self.health,
            list(self.reasons),
            self.free_bytes,
            [list(one) for one in self.releases],
            [list(one) for one in self.holdings],
        ]

    @classmethod
    def _parse(cls, fields: Fields) -> Self:
        return cls(
            fleet=fields.identity("fleet", FleetId),
            node=fields.identity("node", NodeId),
            incarnation=fields.integer("incarnation", high=MAX_SERIAL),
            seq=fields.integer("seq", high=MAX_SERIAL),
            issued_s=fields.integer("issued", high=MAX_TIME_S),
            software=_shown(fields, "software", MAX_SOFTWARE_BYTES),
            addresses=_texts(fields, "addresses", MAX_ADDRESSES, MAX_ADDRESS_BYTES),
            head_order=_head_order(fields),
            health=_shown(fields, "health", MAX_TYPE_BYTES),
            reasons=_texts(fields, "reasons", MAX_STATE_REASONS, MAX_ERROR_TEXT_BYTES),
            free_bytes=fields.integer("free bytes"),
            releases=tuple(
                _standing(row) for row in fields.array("releases", max_items=MAX_STATE_RELEASES)
            ),
            holdings=tuple(
                _holding(row) for row in fields.array("holdings", max_items=MAX_STATE_HOLDINGS)
            ),
        )


def open_state(envelope: Envelope, key: PublicKey) -> NodeState:
    """The state in an envelope, once the node's key has signed these exact bytes.

    Raises TrustError, FormatError, LimitExceeded. That `key` is the node's is the caller's to know.
    """
    signed = any(
        signature.key_id == key.key_id
        and key.verify(NodeState.TYPE, envelope.payload, signature.value)
        for signature in envelope.signatures
    )
    if not signed:
        raise TrustError("a state is not signed by the key of its node")
    return NodeState.decode(envelope.payload)


def _texts(fields: Fields, name: str, max_items: int, max_bytes: int) -> tuple[str, ...]:
    rows = fields.array(name, max_items=max_items)
    each = Fields(rows, f"state {name}")
    return tuple(_shown(each, name, max_bytes) for _ in rows)


def _shown(fields: Fields, name: str, max_bytes: int) -> str:
    """Text that people will see on their terminals: any node may write what it likes."""
    return printable(fields.text(name, max_bytes=max_bytes), max_bytes)


def _head_order(fields: Fields) -> tuple[int, int]:
    pair = Fields(fields.array("head order", max_items=16), "state head order")
    return pair.integer("epoch", high=MAX_SERIAL), pair.integer("serial", high=MAX_SERIAL)


def _standing(row: Value) -> ReleaseStanding:
    fields = Fields(row, "state release")
    return ReleaseStanding(
        ReleaseId(fields.binary("release", max_bytes=OPAQUE_BYTES)),
        fields.integer("generation", high=MAX_SERIAL),
        _shown(fields, "state", MAX_TYPE_BYTES),
        _shown(fields, "reason", MAX_ERROR_TEXT_BYTES),
    )


def _holding(row: Value) -> Holding:
    fields = Fields(row, "state holding")
    return Holding(
        ManifestId(fields.binary("manifest", max_bytes=DIGEST_BYTES)),
        fields.integer("held", high=WHOLE),
    )
