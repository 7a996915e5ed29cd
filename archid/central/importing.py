"""Rebuilding central's database from what the fleet holds, when that is newer.

REPOs keep everything that was ever granted: Roots, the head, every leaf, Catalogue, Roster and
the manifests. From these, nodes, scripts and releases are written down again, in one transaction
that ends by building every leaf anew and comparing it byte for byte with what was signed. If one
differs, nothing is imported: this archid would sign something else than it took over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from archid.central.estate import fleet_id
from archid.central.keys import OnlineKeys
from archid.central.leaves import Items, build_leaves
from archid.central.publishing import PublishedVersion, insert_version, published_versions
from archid.central.releases import encode_header
from archid.central.signed_state import load_roots, newest_head, signed_leaves
from archid.central.signing import replace_leaves
from archid.central.tables import (
    fleet,
    grants_roots,
    heads,
    nodes,
    release_nodes,
    release_scripts,
    release_targets,
    releases,
    roots,
    script_versions,
)
from archid.central.tokens import void_tokens
from archid.errors import Conflict, Unavailable
from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing
from protocol import paged
from protocol.canonical import Value
from protocol.documents import GrantsRoot
from protocol.envelope import Envelope
from protocol.errors import TrustError
from protocol.facts import ReleaseHeader
from protocol.grants import Leaf, LeafDocument, build_grants, read_items
from protocol.head import Head
from protocol.ids import DocumentId, ListId, ManifestId, NodeId, PageId, ReleaseId
from protocol.limits import MAX_DOCUMENT_BYTES
from protocol.manifest import ManifestRoot
from protocol.publication import MAX_PUBLICATION_BYTES, accept_known_publication
from protocol.root import Root
from protocol.trust import TrustedDocuments

IMPORTED_BY = "imported from the fleet"


@dataclass(frozen=True)
class FleetDocuments:
    """One head and everything under it, as a REPO holds it."""

    roots: tuple[bytes, ...]
    head: bytes
    grants: tuple[bytes, ...]
    """Grants roots that are held of those that the head accepts; the newest is needed."""
    leaves: Mapping[NodeId, Items]
    catalogue: tuple[paged.CatalogueRow, ...]
    roster: tuple[paged.RosterRow, ...]
    publications: Mapping[ManifestId, bytes]


def collect_documents(
    documents: DocumentStore, *, head: bytes, roots: Iterable[bytes]
) -> FleetDocuments:
    """Read from the store everything under a head that was verified. Blocks.

    Raises Unavailable (documents_missing) while something has not been fetched yet, and
    ProtocolError when a list is not what its name says.
    """
    content = Head.decode(_payload(head))
    try:
        newest = documents.get_grants(content.grants_roots[0])
        held = [one for one in content.grants_roots[1:] if documents.has_grants(one)]
        grants = GrantsRoot.decode(_payload(newest))
        rows = _rows(documents, grants.index)
        leaves: dict[NodeId, Items] = {}
        for row in map(paged.GrantsRow.from_value, rows):
            leaf = LeafDocument.decode(documents.get_leaf(row.node, content.grants_roots[0]))
            leaves[row.node] = leaf.items
        catalogue = tuple(map(paged.CatalogueRow.from_value, _rows(documents, content.catalogue)))
        return FleetDocuments(
            roots=tuple(roots),
            head=head,
            grants=(newest, *(documents.get_grants(one) for one in held)),
            leaves=leaves,
            catalogue=catalogue,
            roster=tuple(map(paged.RosterRow.from_value, _rows(documents, content.roster))),
            publications={row.manifest: documents.get_manifest(row.manifest) for row in catalogue},
        )
    except DocumentMissing as error:
        raise Unavailable(
            f"Central has not fetched everything of the newest head yet: {error.message}",
            remedy="Repeat it in a moment",
            code="documents_missing",
        ) from error


def import_documents(
    connection: Connection, keys: OnlineKeys, found: FleetDocuments, *, now_s: int
) -> Head:
    """Bring the database to the state of a newer head; returns that head.

    Raises TrustError or FormatError when the documents do not hold together, Conflict when they
    contradict the database or this archid would sign them differently.
    """
    root, head = _verified(connection, found)
    _check_lists(root, head, found)
    _import_roots(connection, found)
    _import_nodes(connection, found, now_s=now_s)
    _import_scripts(connection, found, head)
    read = {node: read_items(node, items) for node, items in found.leaves.items()}
    _import_releases(connection, read, head)
    _import_signed(connection, found, head)
    if build_leaves(connection, keys) != dict(found.leaves):
        raise Conflict(
            "This central would sign other Grants than the fleet holds: a newer archid signed"
            " them, or the secret behind the salts is another one",
            remedy="Install the archid that signed last, and restore identity/keys from a backup",
            code="import_differs",
        )
    void_tokens(connection, now_s=now_s)
    return head


def _verified(connection: Connection, found: FleetDocuments) -> tuple[Root, Head]:
    """Check the Roots from our own on, the head and the Grants root, as any node would."""
    _, known = load_roots(connection)
    own = [_envelope(data) for data in known]
    trusted = TrustedDocuments(fleet=fleet_id(connection))
    trusted.accept_first_root(own[0], DocumentId.of(own[0].payload))
    later = [_envelope(data) for data in found.roots]
    held = {envelope.payload for envelope in own}
    for envelope in [*own[1:], *(each for each in later if each.payload not in held)]:
        trusted.accept_root(envelope)
    before = newest_head(connection)
    trusted.accept_head(_envelope(found.head), now=0)
    for grants in found.grants:
        trusted.accept_grants(_envelope(grants))
    root, head = trusted.root, trusted.head
    if root is None or head is None or trusted.grants(head.grants_roots[0]) is None:
        raise TrustError("the newest Grants root is missing")
    if before is not None and head.order <= before.order:
        raise Conflict("The documents to import are not newer than central's database")
    return root, head


def _check_lists(root: Root, head: Head, found: FleetDocuments) -> None:
    """Check that what was handed over is all that the signed documents name, and nothing else."""
    grants = GrantsRoot.decode(_payload(found.grants[0]))
    tree = build_grants(found.leaves)
    if (grants.id, grants.tree, grants.leaf_count) != (
        head.grants_roots[0],
        tree.tree,
        tree.leaf_count,
    ):
        raise TrustError("the leaves to import are not those of the newest Grants root")
    named = (
        (paged.CATALOGUE, head.catalogue, [row.to_value() for row in found.catalogue]),
        (paged.ROSTER, head.roster, [row.to_value() for row in found.roster]),
    )
    for list_type, list_id, rows in named:
        if paged.build(list_type, root.fleet, rows)[1] != list_id:
            raise TrustError(f"the {list_type} to import is not the one that the head names")


def _import_roots(connection: Connection, found: FleetDocuments) -> None:
    known = set(connection.execute(sa.select(roots.c.version)).scalars())
    for envelope in found.roots:
        version = Root.decode(_payload(envelope)).version
        if version not in known:
            connection.execute(roots.insert().values(version=version, envelope=envelope))


def _import_nodes(connection: Connection, found: FleetDocuments, *, now_s: int) -> None:
    """Nodes that the fleet no longer lists have left; the others are as it lists them."""
    known = {
        row.node: row.state for row in connection.execute(sa.select(nodes.c.node, nodes.c.state))
    }
    listed = {row.facts.node: row.facts for row in found.roster}
    central = connection.execute(sa.select(fleet.c.central_node)).scalar_one()
    if central not in listed:
        raise Conflict("The fleet does not list this central any more", code="central_replaced")
    for node, state in known.items():
        if node not in listed and state != "left":
            connection.execute(
                nodes.update().where(nodes.c.node == node).values(state="left", left_s=now_s)
            )
    for node, facts in listed.items():
        content: dict[str, object] = {
            "name": facts.name,
            "role": facts.role,
            "site": facts.site,
            "room": facts.room,
            "server_kind": facts.server_kind,
            "key": bytes(facts.key),
        }
        state = known.get(node)
        if state is None:
            connection.execute(
                nodes.insert().values(
                    node=node, state="ready", joined_s=now_s, ready_s=now_s, **content
                )
            )
        else:
            if state == "left":
                content |= {"state": "ready", "left_s": None}
            connection.execute(nodes.update().where(nodes.c.node == node).values(**content))


def _import_scripts(connection: Connection, found: FleetDocuments, head: Head) -> None:
    known = {each.manifest: each for each in published_versions(connection)}
    listed = {row.manifest for row in found.catalogue}
    if strange := [each for manifest, each in known.items() if manifest not in listed]:
        raise Conflict(
            f"This database has version {strange[0].version} of '{strange[0].name}', which the"
            " fleet's newer head does not list: two centrals published it",
            remedy="Find out which central is the right one",
            code="central_forked",
        )
    for row in found.catalogue:
        if row.manifest in known:
            continue
        envelope = found.publications.get(row.manifest)
        if envelope is None:
            raise TrustError(f"the manifest of '{row.name}' version {row.version} is missing")
        manifest = _accepted(envelope, connection)
        if (manifest.id, manifest.name, manifest.kind, manifest.version) != (
            row.manifest,
            row.name,
            row.kind,
            row.version,
        ):
            raise TrustError(f"the manifest of '{row.name}' is not the one in the catalogue")
        insert_version(
            connection,
            PublishedVersion(
                name=row.name,
                kind=row.kind,
                version=row.version,
                manifest=row.manifest,
                size_bytes=manifest.size_bytes,
                files=manifest.files,
                published_s=head.issued_s,
                published_by=IMPORTED_BY,
                envelope=envelope,
            ),
        )


def _accepted(envelope: bytes, connection: Connection) -> ManifestRoot:
    """A publication under the newest Root, or under the one of its time."""
    decoded = Envelope.decode(envelope, max_bytes=MAX_PUBLICATION_BYTES)
    _, known = load_roots(connection)
    return accept_known_publication(
        decoded, [Root.decode(_payload(data)) for data in reversed(known)]
    )


def _import_releases(connection: Connection, read: Mapping[NodeId, Leaf], head: Head) -> None:
    """Releases from the headers and entries in the leaves."""
    names = {leaf.facts.node: leaf.facts.name for leaf in read.values()}
    shown: dict[ReleaseId, dict[NodeId, ReleaseHeader]] = {}
    kinds: dict[ReleaseId, dict[str, ManifestId]] = {}
    for node, leaf in read.items():
        for header in leaf.releases:
            shown.setdefault(header.release, {})[node] = header
        for _, entry in leaf.entries:
            kinds.setdefault(entry.release, {})[entry.kind] = entry.manifest
    version_query = sa.select(
        script_versions.c.manifest, script_versions.c.script, script_versions.c.version
    )
    versions = {
        row.manifest: (row.script, row.version) for row in connection.execute(version_query)
    }
    connection.execute(release_nodes.delete())
    generations = {
        row.release: row.generation
        for row in connection.execute(sa.select(releases.c.release, releases.c.generation))
    }
    for release, headers in shown.items():
        # A server that lost the release keeps an older header; the newest is the release's.
        newest = max(headers.values(), key=lambda header: (header.generation, not header.withdrawn))
        if generations.get(release, 0) < newest.generation:
            _write_release(connection, newest, head, known=release in generations)
            connection.execute(release_scripts.delete().where(release_scripts.c.release == release))
            for kind, manifest in kinds.get(release, {}).items():
                script, version = versions[manifest]
                connection.execute(
                    release_scripts.insert().values(
                        release=release, kind=kind, script=script, version=version
                    )
                )
            connection.execute(release_targets.delete().where(release_targets.c.release == release))
            for node, header in headers.items():
                if not header.withdrawn:
                    connection.execute(
                        release_targets.insert().values(
                            release=release, kind="node", value=names[node]
                        )
                    )
        for node, header in headers.items():
            kept = encode_header(header) if header.withdrawn else None
            connection.execute(
                release_nodes.insert().values(release=release, node=node, withdrawn_header=kept)
            )


def _write_release(
    connection: Connection, header: ReleaseHeader, head: Head, *, known: bool
) -> None:
    content = {
        "name": header.name,
        "generation": header.generation,
        "state": header.state,
        "prefetch_s": header.prefetch_s,
        "start_s": header.start_s,
        "end_s": header.end_s,
        "changed_s": head.issued_s,
        "changed_by": IMPORTED_BY,
    }
    if known:
        connection.execute(
            releases.update().where(releases.c.release == header.release).values(**content)
        )
    else:
        connection.execute(releases.insert().values(release=header.release, **content))


def _import_signed(connection: Connection, found: FleetDocuments, head: Head) -> None:
    known = set(connection.execute(sa.select(grants_roots.c.grants_root)).scalars())
    for envelope in found.grants:
        grants = GrantsRoot.decode(_payload(envelope))
        if grants.id not in known:
            connection.execute(
                grants_roots.insert().values(
                    grants_root=grants.id, envelope=envelope, issued_s=grants.issued_s
                )
            )
    replace_leaves(connection, signed_leaves(connection), found.leaves)
    connection.execute(
        heads.insert().values(
            epoch=head.epoch,
            serial=head.serial,
            envelope=found.head,
            issued_s=head.issued_s,
            reason=IMPORTED_BY,
        )
    )


def _rows(documents: DocumentStore, list_id: ListId) -> tuple[Value, ...]:
    index = paged.decode_index(documents.get_list(list_id))
    pages: dict[PageId, bytes] = {ref.id: documents.get_page(ref.id) for ref in index.pages}
    return paged.rows_of(index, pages)


def _envelope(data: bytes) -> Envelope:
    return Envelope.decode(data, max_bytes=MAX_DOCUMENT_BYTES)


def _payload(data: bytes) -> bytes:
    return _envelope(data).payload
