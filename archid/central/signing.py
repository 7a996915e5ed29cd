"""From central's database to signed documents: Grants, Catalogue, Roster and the Head over them.

Everything is signed inside the transaction that changed the definitions, under the next serial of
the database, so that what was signed and what is written down cannot part. The Grants root is
signed again only when a leaf changed. A head that would take away more than a fifth of all grants
is refused until a person has said yes. Which older roots stay accepted is `protocol.accepted`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from archid.central.estate import fleet_id
from archid.central.keys import OnlineKeys
from archid.central.leaves import Grant, Items, build_leaves, grants_in, lost_grants
from archid.central.release_planning import is_large_loss
from archid.central.releases import count_grants
from archid.central.signed_state import (
    FleetLists,
    SignedState,
    encode_items,
    grants_envelopes,
    load_roots,
    newest_head,
    signed_leaves,
)
from archid.central.tables import grants_roots, heads, leaves, nodes, releases
from archid.errors import Conflict
from protocol.accepted import AcceptedGrants, carry_denials, make_room, next_accepted
from protocol.documents import GrantsRoot
from protocol.grants import build_grants
from protocol.head import Denial, Head
from protocol.ids import DocumentId, NodeId
from protocol.limits import (
    MAX_SERIAL,
)

_MAX_SHOWN: Final = 6


class TakesAway(Conflict):
    """A change takes away so many grants that a person must agree to it first."""

    def __init__(self, message: str, *, lost: int, total: int) -> None:
        super().__init__(
            message,
            remedy="Nothing was changed. If it is meant, repeat it and confirm",
            code="takes_away_grants",
        )
        self.lost = lost
        self.total = total


def refresh_at_s(head: Head, *, refresh_s: int) -> int:
    """When this head should be followed by a fresh one, at the latest at half of its life."""
    return head.issued_s + min(refresh_s, (head.expires_s - head.issued_s) // 2)


def sign_state(
    connection: Connection,
    keys: OnlineKeys,
    *,
    now_s: int,
    lifetime_s: int,
    reason: str,
    denied: Sequence[tuple[str, bytes]] = (),
    confirm: bool = False,
    refresh: bool = False,
    above: int = 0,
) -> SignedState | None:
    """Sign what the database says now, as the next serial.

    `denied` are kinds and ids (`protocol.head`) that must no longer hold under the roots signed
    so far; the serial is greater than `above`, too. Returns None, and signs nothing, when all
    would be as in the last head and `refresh` is false. Raises TakesAway unless `confirm`,
    Conflict when the serials have run out.
    """
    root, root_envelopes = load_roots(connection)
    fleet = fleet_id(connection)
    previous = newest_head(connection)
    signed_before = signed_leaves(connection)
    built = build_leaves(connection, keys)
    if not confirm:
        _check_loss(connection, signed_before, built)
    continues = previous is not None and previous.epoch == root.epoch
    # A new epoch starts dates anew as well: those of the last one may have been wrong.
    issued_s = max(now_s, previous.issued_s) if previous and continues else now_s

    tree = build_grants(built)
    lists = FleetLists(fleet, connection, tree)
    accepted_before = accepted_grants(connection, previous) if previous and continues else ()
    new: AcceptedGrants | None = None
    if not accepted_before or built != signed_before:
        grants = _unused(
            connection,
            GrantsRoot(
                fleet=fleet,
                epoch=root.epoch,
                issued_s=issued_s,
                tree=tree.tree,
                leaf_count=tree.leaf_count,
                index=lists.grants,
            ),
        )
        new = AcceptedGrants(grants.id, grants.issued_s)
        connection.execute(
            grants_roots.insert().values(
                grants_root=grants.id,
                envelope=keys.envelope("grants", GrantsRoot.TYPE, grants.encode()),
                issued_s=grants.issued_s,
            )
        )
        replace_leaves(connection, signed_before, built)
    accepted = next_accepted(accepted_before, new, now_s=issued_s)
    denials = _denials(previous if continues else None, denied, accepted_before, accepted)
    accepted, denials = make_room(accepted, denials)
    grants_ids = tuple(each.id for each in accepted)

    if previous is not None and not refresh:
        unchanged = (root.version, grants_ids, denials, lists.catalogue, lists.roster)
        if unchanged == (
            previous.root_version,
            previous.grants_roots,
            previous.denied,
            previous.catalogue,
            previous.roster,
        ):
            return None
    serial = max(previous.serial if previous and continues else 0, above) + 1
    if serial > MAX_SERIAL:
        raise Conflict(
            "The serials of this epoch have run out",
            remedy="Begin a new epoch with the root keys",
            code="serials_exhausted",
        )
    head = Head(
        fleet=fleet,
        epoch=root.epoch,
        serial=serial,
        issued_s=issued_s,
        expires_s=issued_s + lifetime_s,
        root_version=root.version,
        grants_roots=grants_ids,
        syncs_root=previous.syncs_root if previous and continues else None,
        catalogue=lists.catalogue,
        roster=lists.roster,
        denied=denials,
    )
    envelope = keys.envelope("head", Head.TYPE, head.encode())
    connection.execute(
        heads.insert().values(
            epoch=head.epoch,
            serial=head.serial,
            envelope=envelope,
            issued_s=issued_s,
            reason=reason,
        )
    )
    return SignedState(
        roots=root_envelopes,
        root=root,
        head_envelope=envelope,
        head=head,
        grants_envelopes=grants_envelopes(connection, grants_ids),
        tree=tree,
        lists=lists.indexes,
        pages=lists.pages,
    )


def accepted_grants(connection: Connection, head: Head) -> tuple[AcceptedGrants, ...]:
    """The roots that a head accepts with their dates; one whose date is unknown counts as old."""
    query = sa.select(grants_roots.c.grants_root, grants_roots.c.issued_s).where(
        grants_roots.c.grants_root.in_(head.grants_roots)
    )
    dates: dict[DocumentId, int] = {
        row.grants_root: row.issued_s for row in connection.execute(query)
    }
    return tuple(AcceptedGrants(each, dates.get(each, 0)) for each in head.grants_roots)


def replace_leaves(
    connection: Connection, before: Mapping[NodeId, Items], after: Mapping[NodeId, Items]
) -> None:
    """Write down the leaves that were signed, touching only those that changed."""
    changed = [node for node, items in before.items() if after.get(node) != items]
    if changed:
        connection.execute(
            leaves.delete().where(leaves.c.node == sa.bindparam("gone")),
            [{"gone": node} for node in changed],
        )
    rows = [
        {"node": node, "content": encode_items(items), "entry_count": len(grants_in(node, items))}
        for node, items in after.items()
        if before.get(node) != items
    ]
    if rows:
        connection.execute(leaves.insert(), rows)


def _denials(
    previous: Head | None,
    added: Sequence[tuple[str, bytes]],
    accepted_before: Sequence[AcceptedGrants],
    accepted: Sequence[AcceptedGrants],
) -> tuple[Denial, ...]:
    """The denials of the last head and the new ones, as far as an accepted root needs them."""
    denied = {} if previous is None else {(each.kind, each.id): each for each in previous.denied}
    if accepted_before:
        for kind, identity in added:
            denied[kind, identity] = Denial(kind, identity, accepted_before[0].id)
    everything = tuple(accepted_before) or tuple(accepted)
    return carry_denials(tuple(denied.values()), everything, accepted)


def _check_loss(
    connection: Connection, before: Mapping[NodeId, Items], after: Mapping[NodeId, Items]
) -> None:
    lost = lost_grants(before, after)
    total = count_grants(connection)
    if lost and is_large_loss(len(lost), total):
        message = (
            f"This takes away {len(lost)} of all {total} grants, more than a fifth:"
            f" {_named(connection, lost)}"
        )
        raise TakesAway(message, lost=len(lost), total=total)


def _named(connection: Connection, lost: Iterable[Grant]) -> str:
    """Which releases, from which servers, in words."""
    release_names = {
        row.release: row.name
        for row in connection.execute(sa.select(releases.c.release, releases.c.name))
    }
    node_names = {
        row.node: row.name for row in connection.execute(sa.select(nodes.c.node, nodes.c.name))
    }
    servers: dict[str, set[str]] = {}
    for node, release, _ in lost:
        name = release_names.get(release, release.hex())
        servers.setdefault(name, set()).add(node_names.get(node, node.short))
    parts = []
    for name, names in sorted(servers.items())[:_MAX_SHOWN]:
        shown = sorted(names)
        more = f" and {len(shown) - _MAX_SHOWN} more" if len(shown) > _MAX_SHOWN else ""
        parts.append(f"'{name}' from {', '.join(shown[:_MAX_SHOWN])}{more}")
    if len(servers) > _MAX_SHOWN:
        parts.append(f"and {len(servers) - _MAX_SHOWN} more releases")
    return "; ".join(parts)


def _unused(connection: Connection, grants: GrantsRoot) -> GrantsRoot:
    """The same with a date under which this tree has not been signed yet.

    A tree that goes back to what it was within one second would otherwise get its old name, and
    could not be named as the newest.
    """
    while connection.execute(
        sa.select(grants_roots.c.grants_root).where(grants_roots.c.grants_root == grants.id)
    ).first():
        grants = replace(grants, issued_s=grants.issued_s + 1)
    return grants
