"""Head: the one document that is signed often and gossiped to everybody.

It names the Grants roots that are accepted, newest first, and what is denied under them. Which
Head is newer, and whether to believe it, is decided in `protocol.trust`; which roots and denials
the next one carries is computed in `protocol.accepted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from protocol.canonical import Fields, Value
from protocol.documents import Document
from protocol.errors import FormatError
from protocol.ids import DIGEST_BYTES, DocumentId, FleetId, ListId
from protocol.limits import (
    MAX_ACCEPTED_GRANTS,
    MAX_DENIED,
    MAX_HEAD_BYTES,
    MAX_SERIAL,
    MAX_SIGNATURES_BYTES,
    MAX_TIME_S,
    MAX_TYPE_BYTES,
)

DENIED_NODE: Final = "node"
DENIED_MANIFEST: Final = "manifest"
DENIED_RELEASE: Final = "release"


@dataclass(frozen=True, slots=True)
class Denial:
    """Something that accepted Grants still contain, but which no longer holds.

    `grants_root` is the newest root that it applies to: later ones were signed in knowledge of
    the denial. Kinds are open; an unknown one is kept and matches nothing.
    """

    kind: str
    id: bytes
    grants_root: DocumentId


@dataclass(frozen=True)
class Head(Document):
    """One state of the fleet; newer means greater `order`."""

    TYPE: ClassVar[str] = "head"
    MAX_BYTES: ClassVar[int] = MAX_HEAD_BYTES - MAX_SIGNATURES_BYTES

    fleet: FleetId
    epoch: int
    serial: int
    issued_s: int
    expires_s: int
    root_version: int
    grants_roots: tuple[DocumentId, ...]
    syncs_root: DocumentId | None
    catalogue: ListId
    roster: ListId
    denied: tuple[Denial, ...] = ()

    def __post_init__(self) -> None:
        if not self.grants_roots:
            raise FormatError("head names no Grants root")
        if len(set(self.grants_roots)) != len(self.grants_roots):
            raise FormatError("head names a Grants root twice")

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, serial)."""
        return self.epoch, self.serial

    def denies(self, kind: str, identity: bytes, grants_root: DocumentId | None = None) -> bool:
        """Whether something is denied: under that Grants root, or under any if none is given.

        A denial covers the root it names and every older one in the list. One whose root is
        not listed covers all of them, since nothing says where it ends.
        """
        for denial in self.denied:
            if denial.kind != kind or denial.id != identity:
                continue
            if grants_root is None or denial.grants_root not in self.grants_roots:
                return True
            if grants_root not in self.grants_roots:
                return True
            if self.grants_roots.index(grants_root) >= self.grants_roots.index(denial.grants_root):
                return True
        return False

    def _fields(self) -> Sequence[Value]:
        return [
            self.fleet,
            self.epoch,
            self.serial,
            self.issued_s,
            self.expires_s,
            self.root_version,
            self.grants_roots,
            self.syncs_root,
            self.catalogue,
            self.roster,
            [[denial.kind, denial.id, denial.grants_root] for denial in self.denied],
        ]

    @classmethod
    def _parse(cls, fields: Fields) -> Self:
        return cls(
            fleet=fields.identity("fleet", FleetId),
            epoch=fields.integer("epoch", low=1, high=MAX_SERIAL),
            serial=fields.integer("serial", low=1, high=MAX_SERIAL),
            issued_s=fields.integer("issued", high=MAX_TIME_S),
            expires_s=fields.integer("expires", high=MAX_TIME_S),
            root_version=fields.integer("root version", low=1, high=MAX_SERIAL),
            grants_roots=fields.identities(
                "grants roots", DocumentId, max_items=MAX_ACCEPTED_GRANTS
            ),
            syncs_root=(
                None if fields.next_is_nil() else fields.identity("syncs root", DocumentId)
            ),
            catalogue=fields.identity("catalogue", ListId),
            roster=fields.identity("roster", ListId),
            denied=tuple(_denial(item) for item in fields.array("denied", max_items=MAX_DENIED)),
        )


def _denial(item: Value) -> Denial:
    fields = Fields(item, "denial")
    return Denial(
        kind=fields.text("kind", max_bytes=MAX_TYPE_BYTES),
        id=fields.binary("id", max_bytes=DIGEST_BYTES),
        grants_root=fields.identity("grants root", DocumentId),
    )
