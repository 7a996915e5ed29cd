"""From central's definitions to the items of every node's leaf.

The order of items and their salts depend on nothing but the definitions and central's secret, so
a leaf that nothing concerns comes out byte for byte as it was signed last time. Building the tree
and signing it is `archid.central.signing`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from archid.central.estate import present_nodes
from archid.central.keys import OnlineKeys
from archid.central.release_definition import SCRIPT_KINDS
from archid.central.releases import decode_header
from archid.central.tables import release_nodes, release_scripts, releases, script_versions
from protocol.canonical import pack
from protocol.facts import Entry, LeafItem, ReleaseHeader, decode_item, encode_item
from protocol.ids import NodeId, ReleaseId

Items = tuple[bytes, ...]
Grant = tuple[NodeId, ReleaseId, str]
"""What can be taken away: a kind of script, of a release, at a node; a new version is no loss."""

_KIND_ORDER: Final = {kind: place for place, kind in enumerate(SCRIPT_KINDS)}


def build_leaves(connection: Connection, keys: OnlineKeys) -> dict[NodeId, Items]:
    """The items of every present node's leaf, facts first, as they would be signed now."""
    contents: dict[NodeId, list[LeafItem]] = {
        node.node: [node.facts] for node in present_nodes(connection)
    }
    headers = _headers(connection)
    entries = _entries(connection, headers)
    query = sa.select(
        release_nodes.c.release, release_nodes.c.node, release_nodes.c.withdrawn_header
    ).order_by(release_nodes.c.release, release_nodes.c.node)
    for release, node, withdrawn_header in connection.execute(query):
        items = contents[node]
        if withdrawn_header is None:
            items.append(headers[release])
            items.extend(entries[release])
        else:
            items.append(decode_header(withdrawn_header))
    return {
        node: tuple(encode_item(keys.salt(_subject(node, item)), item) for item in items)
        for node, items in contents.items()
    }


def grants_in(node: NodeId, items: Iterable[bytes]) -> set[Grant]:
    """What a leaf grants."""
    decoded = (decode_item(item) for item in items)
    return {(node, item.release, item.kind) for item in decoded if isinstance(item, Entry)}


def lost_grants(before: Mapping[NodeId, Items], after: Mapping[NodeId, Items]) -> set[Grant]:
    """The grants that `before` has and `after` has not; leaves that are equal are not read."""
    lost: set[Grant] = set()
    for node, items in before.items():
        kept = after.get(node, ())
        if kept != items:
            lost |= grants_in(node, items) - grants_in(node, kept)
    return lost


def _subject(node: NodeId, item: LeafItem) -> bytes:
    """What the salt is made from: the node too, so that equal items of two nodes look unlike."""
    return pack([node, item.KIND, *item.fields()])


def _headers(connection: Connection) -> dict[ReleaseId, ReleaseHeader]:
    return {
        row.release: ReleaseHeader(
            release=row.release,
            name=row.name,
            generation=row.generation,
            state=row.state,
            prefetch_s=row.prefetch_s,
            start_s=row.start_s,
            end_s=row.end_s,
        )
        for row in connection.execute(sa.select(releases))
    }


def _entries(
    connection: Connection, headers: Mapping[ReleaseId, ReleaseHeader]
) -> dict[ReleaseId, list[Entry]]:
    query = sa.select(
        release_scripts.c.release, release_scripts.c.kind, script_versions.c.manifest
    ).join(
        script_versions,
        sa.and_(
            script_versions.c.script == release_scripts.c.script,
            script_versions.c.version == release_scripts.c.version,
        ),
    )
    found: dict[ReleaseId, list[Entry]] = {release: [] for release in headers}
    for release, kind, manifest in connection.execute(query):
        found[release].append(Entry(release, headers[release].generation, manifest, kind))
    for entries in found.values():
        entries.sort(key=lambda entry: _KIND_ORDER[entry.kind])
    return found
