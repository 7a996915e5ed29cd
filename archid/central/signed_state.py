"""What the fleet is told at one serial, read back from central's database.

`SignedState` is all that central's own REPO side needs to serve: envelopes, leaves and pages. It
comes out of signing (`archid.central.signing`), or out of the database as it was signed last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from archid.central.estate import fleet_id, present_nodes
from archid.central.leaves import Items
from archid.central.publishing import published_versions
from archid.central.tables import grants_roots, heads, leaves, roots
from protocol import paged
from protocol.canonical import Fields, pack, unpack
from protocol.envelope import Envelope
from protocol.grants import GrantsTree, build_grants
from protocol.head import Head
from protocol.ids import DocumentId, FleetId, ListId, NodeId, PageId
from protocol.limits import MAX_HEAD_BYTES, MAX_ITEM_BYTES, MAX_LEAF_ITEMS, MAX_ROOT_BYTES
from protocol.root import Root

_MAX_CONTENT_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True)
class SignedState:
    """Everything that the fleet is told at one serial, as envelopes and pages.

    Leaves are made from the tree when they are asked for: most are not.
    """

    roots: tuple[bytes, ...] = field(repr=False)
    """Every Root's envelope, oldest first."""
    root: Root = field(repr=False)
    head_envelope: bytes = field(repr=False)
    head: Head
    grants_envelopes: tuple[bytes, ...] = field(repr=False)
    """Every accepted Grants root, newest first."""
    tree: GrantsTree = field(repr=False)
    """Over the leaves of the newest of them."""
    lists: Mapping[ListId, bytes] = field(repr=False)
    """The indexes of Catalogue, Roster and the newest list of leaves."""
    pages: Mapping[PageId, bytes] = field(repr=False)
    complete: bool = True
    """False when the lists could not be made again as they were signed: sign once more."""

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, serial)."""
        return self.head.order

    @property
    def grants_envelope(self) -> bytes:
        """The newest Grants root."""
        return self.grants_envelopes[0]

    @property
    def grants_root(self) -> DocumentId:
        """The id of the newest Grants root."""
        return self.head.grants_roots[0]

    @cached_property
    def nodes(self) -> tuple[NodeId, ...]:
        """Every node that has a leaf, in the order of the tree."""
        return tuple(row.node for row in self.tree.index_rows)

    def leaf(self, node: NodeId) -> bytes:
        """One node's leaf under the newest Grants root; raises KeyError when it has none."""
        return self.tree.leaf(node, self.grants_root).encode()

    def leaves(self) -> Iterable[tuple[NodeId, bytes]]:
        """Every leaf, one by one."""
        return ((node, self.leaf(node)) for node in self.nodes)


def load_state(connection: Connection) -> SignedState | None:
    """What was signed last, made again from the database; None before the first head."""
    head_envelope = _newest_head_envelope(connection)
    if head_envelope is None:
        return None
    head = _head_in(head_envelope)
    root, root_envelopes = load_roots(connection)
    tree = build_grants(signed_leaves(connection))
    lists = FleetLists(fleet_id(connection), connection, tree)
    return SignedState(
        roots=root_envelopes,
        root=root,
        head_envelope=head_envelope,
        head=head,
        grants_envelopes=grants_envelopes(connection, head.grants_roots),
        tree=tree,
        lists=lists.indexes,
        pages=lists.pages,
        complete=(lists.catalogue, lists.roster) == (head.catalogue, head.roster),
    )


def load_roots(connection: Connection) -> tuple[Root, tuple[bytes, ...]]:
    """The newest Root, and every Root's envelope, oldest first."""
    query = sa.select(roots.c.envelope).order_by(roots.c.version)
    envelopes = tuple(connection.execute(query).scalars())
    newest = Envelope.decode(envelopes[-1], max_bytes=MAX_ROOT_BYTES)
    return Root.decode(newest.payload), envelopes


def newest_head(connection: Connection) -> Head | None:
    """The head with the greatest (epoch, serial) that this database has signed or imported."""
    envelope = _newest_head_envelope(connection)
    return None if envelope is None else _head_in(envelope)


def signed_leaves(connection: Connection) -> dict[NodeId, Items]:
    """The items of every leaf in the newest Grants root, as they were signed."""
    return {
        node: decode_items(items)
        for node, items in connection.execute(sa.select(leaves.c.node, leaves.c.content))
    }


def grants_envelopes(connection: Connection, grants_ids: Sequence[DocumentId]) -> tuple[bytes, ...]:
    """The envelopes of these Grants roots, in this order, as far as they are held."""
    query = sa.select(grants_roots.c.grants_root, grants_roots.c.envelope).where(
        grants_roots.c.grants_root.in_(grants_ids)
    )
    found = {row.grants_root: row.envelope for row in connection.execute(query)}
    return tuple(found[each] for each in grants_ids if each in found)


def encode_items(items: Items) -> bytes:
    """A leaf's items as the table of leaves keeps them."""
    return pack(list(items))


def decode_items(data: bytes) -> Items:
    """The items that `encode_items` wrote; raises FormatError."""
    fields = Fields([unpack(data, max_bytes=_MAX_CONTENT_BYTES)], "a kept leaf")
    return fields.binaries("items", max_items=MAX_LEAF_ITEMS, max_bytes=MAX_ITEM_BYTES)


class FleetLists:
    """Catalogue, Roster and the list of leaves, cut into pages."""

    def __init__(self, fleet: FleetId, connection: Connection, tree: GrantsTree) -> None:
        self.indexes: dict[ListId, bytes] = {}
        self.pages: dict[PageId, bytes] = {}
        catalogue = [
            paged.CatalogueRow(each.name, each.kind, each.version, each.manifest)
            for each in published_versions(connection)
        ]
        by_id = sorted(present_nodes(connection), key=lambda node: node.node)
        roster = [paged.RosterRow(node.facts) for node in by_id]
        self.catalogue = self._build(paged.CATALOGUE, fleet, catalogue)
        self.roster = self._build(paged.ROSTER, fleet, roster)
        self.grants = self._build(paged.GRANTS, fleet, tree.index_rows)

    def _build(
        self,
        list_type: str,
        fleet: FleetId,
        rows: Sequence[paged.CatalogueRow | paged.RosterRow | paged.GrantsRow],
    ) -> ListId:
        index, list_id, pages = paged.build(list_type, fleet, [row.to_value() for row in rows])
        self.indexes[list_id] = index
        self.pages.update(pages)
        return list_id


def _newest_head_envelope(connection: Connection) -> bytes | None:
    query = sa.select(heads.c.envelope).order_by(heads.c.epoch.desc(), heads.c.serial.desc())
    return connection.execute(query.limit(1)).scalar_one_or_none()


def _head_in(envelope: bytes) -> Head:
    return Head.decode(Envelope.decode(envelope, max_bytes=MAX_HEAD_BYTES).payload)
