"""The nodes of the fleet: who is where, who is ready, who has left.

Names and places are checked here, so that everything that reaches a signed document has passed.
How a node comes in is `archid.central.tokens`; what it is granted is `archid.central.releases`.
Every function works inside the caller's transaction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from archid.central.release_definition import check_label
from archid.central.tables import fleet, nodes, release_nodes
from archid.errors import Conflict, NotFound, UsageError
from protocol.envelope import PublicKey
from protocol.facts import NodeFacts
from protocol.ids import FleetId, NodeId

ROLES: Final = ("central", "repo", "ice")
SERVER_KINDS: Final = ("salle", "sas")
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_NODE_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """What a node is and where it stands."""

    role: str
    site: str = ""
    room: str = ""
    server_kind: str = ""

    def check(self) -> None:
        """Raise UsageError unless role, site, room and server kind fit together."""
        if self.role not in ROLES:
            raise UsageError(f"'{self.role}' is not a role", remedy="Use repo or ice")
        for what, value in (("site", self.site), ("room", self.room)):
            if not value:
                continue
            try:
                check_label(value)
            except ValueError as error:
                raise UsageError(f"This cannot be the name of a {what}: {error}") from error
            if "/" in value:
                raise UsageError(
                    f"The {what} '{value}' holds a slash, which separates site and room"
                )
        if self.role == "ice":
            if not (self.site and self.room and self.server_kind):
                raise UsageError("An ICE server needs a site, a room and a server kind")
            if self.server_kind not in SERVER_KINDS:
                raise UsageError(
                    f"'{self.server_kind}' is not a kind of ICE server", remedy="Use salle or sas"
                )
        elif self.room or self.server_kind:
            raise UsageError(f"A {self.role} stands in no room and has no server kind")


@dataclass(frozen=True)
class Node:
    """One node as central knows it."""

    node: NodeId
    name: str
    place: Place
    key: PublicKey
    state: str
    joined_s: int
    ready_s: int | None
    left_s: int | None

    @property
    def facts(self) -> NodeFacts:
        """What is signed about it."""
        return NodeFacts(
            node=self.node,
            key=self.key,
            role=self.place.role,
            name=self.name,
            site=self.place.site,
            room=self.place.room,
            server_kind=self.place.server_kind,
        )


def check_node_name(name: str) -> None:
    """Raise UsageError unless `name` can name a node."""
    if not _NODE_NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot name a node",
            remedy="Use up to 64 letters, digits and any of . _ - with a letter or digit at the"
            " start and the end",
        )


def fleet_id(connection: Connection) -> FleetId:
    """The fleet that this database belongs to; raises Conflict when nothing was founded in it."""
    found = connection.execute(sa.select(fleet.c.fleet)).scalar_one_or_none()
    if found is None:
        raise Conflict(
            "Central's database holds no fleet",
            remedy="Make one with archid init, or restore the database from a backup",
            code="no_fleet",
        )
    return FleetId(found)


def present_nodes(connection: Connection) -> list[Node]:
    """Every node that has not left, by name."""
    query = sa.select(nodes).where(nodes.c.state != "left").order_by(nodes.c.name)
    return [_node(row) for row in connection.execute(query)]


def find_node(connection: Connection, name: str) -> Node:
    """A present node by name or by 64 hexadecimal digits; raises NotFound."""
    found = sa.or_(nodes.c.name == name, nodes.c.node == _node_id(name))
    row = connection.execute(sa.select(nodes).where(nodes.c.state != "left", found)).one_or_none()
    if row is None:
        raise NotFound(f"There is no node '{name}' in the fleet")
    return _node(row)


def node_by_id(connection: Connection, node: NodeId) -> Node | None:
    """A node that is or was in the fleet."""
    row = connection.execute(sa.select(nodes).where(nodes.c.node == node)).one_or_none()
    return None if row is None else _node(row)


def add_node(
    connection: Connection,
    *,
    name: str,
    place: Place,
    key: PublicKey,
    now_s: int,
    ready: bool = False,
) -> Node:
    """Record a newcomer, whose id is the digest of its key.

    Raises Conflict when the name is taken or the key has been in the fleet before.
    """
    check_node_name(name)
    place.check()
    node = NodeId.of(key)
    known = node_by_id(connection, node)
    if known is not None and known.state == "left":
        raise Conflict(
            f"The key of this node belongs to '{known.name}', which left the fleet",
            remedy="Give it a new identity: remove its state folder and join again",
            code="node_left",
        )
    if known is not None:
        raise Conflict(
            f"This node is in the fleet already, as '{known.name}'",
            remedy="Nothing needs to be done; to move it, let it leave first",
            code="node_known",
        )
    check_name_is_free(connection, name)
    connection.execute(
        nodes.insert().values(
            node=node,
            name=name,
            role=place.role,
            site=place.site,
            room=place.room,
            server_kind=place.server_kind,
            key=bytes(key),
            state="ready" if ready else "joined",
            joined_s=now_s,
            ready_s=now_s if ready else None,
        )
    )
    return Node(
        node,
        name,
        place,
        key,
        "ready" if ready else "joined",
        now_s,
        now_s if ready else None,
        None,
    )


def check_name_is_free(connection: Connection, name: str) -> None:
    """Raise Conflict when a present node has this name, in whichever case."""
    taken = sa.select(nodes.c.name).where(
        sa.func.lower(nodes.c.name) == name.lower(), nodes.c.state != "left"
    )
    if (holder := connection.execute(taken).scalars().first()) is not None:
        raise Conflict(
            f"The name '{name}' is taken by the node '{holder}'",
            remedy="Choose another name, or let that node leave first",
            code="name_taken",
        )


def mark_ready(connection: Connection, node: NodeId, *, now_s: int) -> Node:
    """The newcomer said that it is ready; saying it twice changes nothing. Raises NotFound."""
    connection.execute(
        nodes.update()
        .where(nodes.c.node == node, nodes.c.state == "joined")
        .values(state="ready", ready_s=now_s)
    )
    found = node_by_id(connection, node)
    if found is None or found.state == "left":
        raise NotFound(f"There is no node {node.short} in the fleet")
    return found


def remove_node(connection: Connection, node: Node, *, now_s: int) -> None:
    """Take a node out of the fleet: from the next Grants root on it has no leaf.

    The roots signed so far stay accepted for a while, so the caller has it denied under them.
    Raises Conflict for central itself.
    """
    if node.place.role == "central":
        raise Conflict("Central cannot leave its own fleet")
    connection.execute(release_nodes.delete().where(release_nodes.c.node == node.node))
    connection.execute(
        nodes.update().where(nodes.c.node == node.node).values(state="left", left_s=now_s)
    )


def _node_id(text: str) -> NodeId:
    """The id written in hexadecimal, or one that no node has."""
    return NodeId(bytes.fromhex(text)) if _NODE_ID.fullmatch(text) else NodeId(bytes(32))


def _node(row: Row[tuple[object, ...]]) -> Node:
    return Node(
        node=row.node,
        name=row.name,
        place=Place(row.role, row.site, row.room, row.server_kind),
        key=PublicKey(row.key),
        state=row.state,
        joined_s=row.joined_s,
        ready_s=row.ready_s,
        left_s=row.left_s,
    )
