"""Releases in the database: what there is to plan with, applying a plan, withdrawing, showing.

What would change is worked out by `archid.central.release_plan`; signing what was written here is
`archid.central.signing`'s. Every function works inside the caller's transaction, so that a plan
is applied to exactly what it was compared with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from archid.central.estate import present_nodes
from archid.central.release_definition import ReleaseDefinition
from archid.central.release_plan import (
    CurrentRelease,
    Estate,
    KnownScript,
    ReleasePlan,
    ReleaseScript,
    Server,
    Version,
    script_json,
    server_json,
)
from archid.central.release_planning import plan_release
from archid.central.tables import (
    leaves,
    nodes,
    release_nodes,
    release_scripts,
    release_targets,
    releases,
    script_versions,
    scripts,
)
from archid.errors import Conflict, NotFound
from protocol.canonical import Fields, pack, unpack
from protocol.facts import STATE_ACTIVE, STATE_WITHDRAWN, ReleaseHeader
from protocol.ids import OPAQUE_BYTES, NodeId, ReleaseId
from protocol.limits import MAX_ITEM_BYTES
from protocol.paths import folded

_RELEASE_ID: Final = re.compile(r"[0-9a-f]{32}")


def load_estate(connection: Connection) -> Estate:
    """Every present node and every script with its versions."""
    servers = tuple(
        Server(
            node.name,
            node.node,
            node.place.role,
            node.place.site,
            node.place.room,
            node.place.server_kind,
        )
        for node in present_nodes(connection)
    )
    query = (
        sa.select(
            scripts.c.name,
            scripts.c.kind,
            script_versions.c.version,
            script_versions.c.manifest,
            script_versions.c.size_bytes,
        )
        .join(script_versions, script_versions.c.script == scripts.c.name)
        .order_by(scripts.c.name, script_versions.c.version)
    )
    kinds: dict[str, str] = {}
    versions: dict[str, list[Version]] = {}
    for name, kind, version, manifest, size_bytes in connection.execute(query):
        kinds[name] = kind
        versions.setdefault(name, []).append(Version(version, manifest, size_bytes))
    known = {name: KnownScript(name, kind, tuple(versions[name])) for name, kind in kinds.items()}
    return Estate(servers, known)


def current_release(connection: Connection, name: str) -> CurrentRelease | None:
    """The release of this name, or of these 32 hexadecimal digits, as it was applied last."""
    wanted = releases.c.name == name
    if _RELEASE_ID.fullmatch(name):
        wanted = sa.or_(wanted, releases.c.release == ReleaseId(bytes.fromhex(name)))
    row = connection.execute(sa.select(releases).where(wanted)).first()
    if row is None:
        return None
    return CurrentRelease(
        release=row.release,
        name=row.name,
        generation=row.generation,
        state=row.state,
        prefetch_s=row.prefetch_s,
        start_s=row.start_s,
        end_s=row.end_s,
        scripts=_scripts_of(connection, row.release),
        servers=_servers_of(connection, row.release),
        changed_s=row.changed_s,
    )


def plan(
    connection: Connection, definition: ReleaseDefinition, *, source: str, now_s: int
) -> ReleasePlan:
    """What applying the definition would change now; raises UsageError, Conflict."""
    current = current_release(connection, definition.name)
    if current is None:
        alike = folded(definition.name)
        for other in connection.execute(sa.select(releases.c.name)).scalars():
            if folded(other) == alike:
                raise Conflict(
                    f"The release '{definition.name}' would differ from '{other}' by case or"
                    " accents only",
                    remedy="Choose another name, or write the existing one exactly",
                    code="name_taken",
                )
    return plan_release(definition, load_estate(connection), current, source=source, now_s=now_s)


def write_release(
    connection: Connection, agreed: ReleasePlan, *, by: str, now_s: int
) -> ReleaseId | None:
    """Write down what a plan, made in this same transaction, says.

    Returns the release's id, None when there was nothing to change.
    """
    if agreed.action == "none":
        if agreed.release is not None:
            _write_targets(connection, agreed.release, agreed)
        return None
    content = {
        "name": agreed.name,
        "generation": agreed.generation,
        "state": STATE_ACTIVE,
        "prefetch_s": agreed.prefetch_s,
        "start_s": agreed.start_s,
        "end_s": agreed.end_s,
        "changed_s": now_s,
        "changed_by": by,
    }
    if agreed.release is None:
        release = ReleaseId(os.urandom(OPAQUE_BYTES))
        connection.execute(releases.insert().values(release=release, **content))
    else:
        release = agreed.release
        connection.execute(releases.update().where(releases.c.release == release).values(**content))
        connection.execute(release_scripts.delete().where(release_scripts.c.release == release))
    connection.execute(
        release_scripts.insert(),
        [
            {
                "release": release,
                "kind": each.kind,
                "script": each.script,
                "version": each.version,
            }
            for each in agreed.scripts
        ],
    )
    _write_targets(connection, release, agreed)
    _take_away(connection, release, [server.node for server in agreed.lost], agreed.generation)
    kept = {server.node for server in agreed.servers}
    connection.execute(
        release_nodes.delete().where(
            release_nodes.c.release == release, release_nodes.c.node.in_(kept)
        )
    )
    connection.execute(
        release_nodes.insert(),
        [{"release": release, "node": server.node} for server in agreed.servers],
    )
    return release


def withdraw_release(connection: Connection, name: str, *, by: str, now_s: int) -> CurrentRelease:
    """Take a release away from every server that has it; returns it as it was.

    Raises NotFound, Conflict when it is withdrawn already.
    """
    current = known_release(connection, name)
    if current.state == STATE_WITHDRAWN:
        raise Conflict(f"The release '{current.name}' is withdrawn already")
    generation = current.generation + 1
    connection.execute(
        releases.update()
        .where(releases.c.release == current.release)
        .values(generation=generation, state=STATE_WITHDRAWN, changed_s=now_s, changed_by=by)
    )
    _take_away(connection, current.release, list(current.servers), generation)
    return current


def count_grants(connection: Connection) -> int:
    """How many grants the newest Grants root holds."""
    return int(connection.execute(sa.select(sa.func.sum(leaves.c.entry_count))).scalar() or 0)


def list_releases(connection: Connection) -> list[CurrentRelease]:
    """Every release by name."""
    names = connection.execute(sa.select(releases.c.name).order_by(releases.c.name)).scalars()
    found = [current_release(connection, name) for name in names.all()]
    return [release for release in found if release is not None]


def known_release(connection: Connection, name: str) -> CurrentRelease:
    """The release of this name or id; raises NotFound, which lists some that there are."""
    if (found := current_release(connection, name)) is not None:
        return found
    known = connection.execute(sa.select(releases.c.name).order_by(releases.c.name)).scalars().all()
    shown = ", ".join(f"'{each}'" for each in known[:8])
    raise NotFound(
        f"There is no release '{name}'",
        remedy=f"Known are {shown}" if known else "Apply a release definition first",
    )


def summary_json(release: CurrentRelease) -> dict[str, object]:
    """One line of the list of releases, as the control socket shows it."""
    return {
        "release": release.release.hex(),
        "name": release.name,
        "generation": release.generation,
        "state": release.state,
        "prefetch_s": release.prefetch_s,
        "start_s": release.start_s,
        "end_s": release.end_s,
        "target_count": len(release.servers),
        "size_bytes": sum(script.size_bytes for script in release.scripts.values()),
    }


Standing = Callable[[NodeId], tuple[str, str | None]]
"""How a release stands on a node, in the state's word and a sentence of reason."""


def detail_json(
    release: CurrentRelease, standing: Standing = lambda _: ("unknown", None)
) -> dict[str, object]:
    """A whole release, as the control socket shows it; `standing` is what servers report."""
    targets = []
    for server in sorted(release.servers.values()):
        state, reason = standing(server.node)
        targets.append(server_json(server) | {"state": state, "reason": reason})
    return summary_json(release) | {
        "scripts": [script_json(script) for script in release.scripts.values()],
        "targets": targets,
        "applied_s": release.changed_s,
    }


def _scripts_of(connection: Connection, release: ReleaseId) -> dict[str, ReleaseScript]:
    query = (
        sa.select(
            release_scripts.c.kind,
            release_scripts.c.script,
            release_scripts.c.version,
            script_versions.c.manifest,
            script_versions.c.size_bytes,
        )
        .join(
            script_versions,
            sa.and_(
                script_versions.c.script == release_scripts.c.script,
                script_versions.c.version == release_scripts.c.version,
            ),
        )
        .where(release_scripts.c.release == release)
        .order_by(release_scripts.c.kind)
    )
    return {row.kind: ReleaseScript(*row) for row in connection.execute(query)}


def _servers_of(connection: Connection, release: ReleaseId) -> dict[NodeId, Server]:
    query = (
        sa.select(
            nodes.c.name,
            nodes.c.node,
            nodes.c.role,
            nodes.c.site,
            nodes.c.room,
            nodes.c.server_kind,
        )
        .join(release_nodes, release_nodes.c.node == nodes.c.node)
        .where(release_nodes.c.release == release, release_nodes.c.withdrawn_header.is_(None))
        .order_by(nodes.c.name)
    )
    return {row.node: Server(*row) for row in connection.execute(query)}


def _write_targets(connection: Connection, release: ReleaseId, agreed: ReleasePlan) -> None:
    connection.execute(release_targets.delete().where(release_targets.c.release == release))
    connection.execute(
        release_targets.insert(),
        [{"release": release, "kind": kind, "value": value} for kind, value in agreed.targets],
    )


def _take_away(
    connection: Connection, release: ReleaseId, servers: list[NodeId], generation: int
) -> None:
    """Freeze, for each of these servers, the header that says it is withdrawn."""
    if not servers:
        return
    row = connection.execute(sa.select(releases).where(releases.c.release == release)).one()
    header = ReleaseHeader(
        release, row.name, generation, STATE_WITHDRAWN, row.prefetch_s, row.start_s, row.end_s
    )
    connection.execute(
        release_nodes.update()
        .where(release_nodes.c.release == release, release_nodes.c.node.in_(servers))
        .values(withdrawn_header=encode_header(header))
    )


def encode_header(header: ReleaseHeader) -> bytes:
    """A header as `release_nodes` keeps it: canonical, without a salt."""
    return pack([header.KIND, *header.fields()])


def decode_header(data: bytes) -> ReleaseHeader:
    """The header that `encode_header` wrote; raises FormatError."""
    fields = Fields(unpack(data, max_bytes=MAX_ITEM_BYTES), "a withdrawn header")
    fields.constant("kind", ReleaseHeader.KIND)
    return ReleaseHeader.parse(fields)
