"""Scripts and their versions: which number comes next, and what has been published.

Reading a folder and making the manifest is the store's work; here its root is numbered, signed
with the `publish` role's key and recorded. Every function works inside the caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from archid.central.keys import OnlineKeys
from archid.central.tables import release_scripts, releases, script_versions, scripts
from archid.errors import Conflict, NotFound, UsageError
from protocol.envelope import Envelope
from protocol.errors import FormatError
from protocol.ids import ManifestId
from protocol.limits import MAX_MANIFEST_BYTES, MAX_SIGNATURES_BYTES
from protocol.manifest import SCRIPT_KINDS, ManifestRoot
from protocol.paths import check_script_name, folded

_MAX_ENVELOPE_BYTES = MAX_MANIFEST_BYTES + MAX_SIGNATURES_BYTES


@dataclass(frozen=True)
class NextVersion:
    """What a publication will be called, and the version that it follows."""

    name: str
    kind: str
    version: int
    previous: ManifestId | None


@dataclass(frozen=True)
class PublishedVersion:
    """One version in the catalogue. `envelope` is the signed manifest root."""

    name: str
    kind: str
    version: int
    manifest: ManifestId
    size_bytes: int
    files: int
    published_s: int
    published_by: str
    envelope: bytes

    @property
    def root(self) -> ManifestRoot:
        """The manifest root inside the envelope."""
        envelope = Envelope.decode(self.envelope, max_bytes=_MAX_ENVELOPE_BYTES)
        return ManifestRoot.decode(envelope.payload)


def next_version(connection: Connection, name: str, kind: str) -> NextVersion:
    """What publishing under this name would make.

    Raises UsageError for a name or a kind that cannot be, Conflict when the script is of another
    kind or another script's name differs by case only.
    """
    check_publication(name, kind)
    known = connection.execute(
        sa.select(scripts.c.kind).where(scripts.c.name == name)
    ).scalar_one_or_none()
    if known is None:
        alike = folded(name)
        for other in connection.execute(sa.select(scripts.c.name)).scalars():
            if folded(other) == alike:
                raise Conflict(
                    f"The script '{name}' would differ from '{other}' by case or accents only",
                    remedy="Choose another name",
                    code="name_taken",
                )
        return NextVersion(name, kind, 1, None)
    if known != kind:
        raise Conflict(
            f"The script '{name}' is a {known} script and cannot become a {kind} script",
            remedy=f"Publish it with --kind {known}, or under another name",
            code="script_kind",
        )
    newest = newest_version(connection, name)
    return NextVersion(name, kind, newest.version + 1, newest.manifest)


def check_publication(name: str, kind: str) -> None:
    """Raise UsageError unless a script can have this name and kind."""
    try:
        check_script_name(name)
    except FormatError as error:
        raise UsageError(
            f"This cannot be the name of a script: {error}",
            remedy="Choose another name; nothing was published",
            code="script_name",
        ) from error
    stem, at, digits = name.rpartition("@")
    if at and stem and digits.isascii() and digits.isdigit():
        raise UsageError(
            f"The script name '{name}' ends like a version",
            remedy="Leave out the @ and the number; versions are counted by archid",
            code="script_name",
        )
    if kind not in SCRIPT_KINDS:
        raise UsageError(
            f"'{kind}' is not a kind of script",
            remedy=f"Use one of {', '.join(SCRIPT_KINDS)}",
        )


def record_publication(
    connection: Connection, keys: OnlineKeys, root: ManifestRoot, *, by: str, now_s: int
) -> tuple[PublishedVersion, bool]:
    """Sign and record a version; returns it, and whether it is new.

    A folder that was published before and has not changed makes no new version: the newest one
    is returned. Raises Conflict when another publication took the number in the meantime.
    """
    following = next_version(connection, root.name, root.kind)
    if following.previous is not None:
        newest = newest_version(connection, root.name)
        if same_content(newest.root, root):
            return newest, False
    if root.version != following.version:
        raise Conflict(
            f"Version {root.version} of '{root.name}' was published by somebody else meanwhile",
            remedy="Publish again",
            code="version_taken",
        )
    envelope = keys.envelope("publish", ManifestRoot.TYPE, root.encode())
    published = PublishedVersion(
        root.name,
        root.kind,
        root.version,
        root.id,
        root.size_bytes,
        root.files,
        now_s,
        by,
        envelope,
    )
    insert_version(connection, published)
    return published, True


def insert_version(connection: Connection, published: PublishedVersion) -> None:
    """Add a version, and its script if it is the first."""
    known = sa.select(scripts.c.name).where(scripts.c.name == published.name)
    if connection.execute(known).first() is None:
        connection.execute(scripts.insert().values(name=published.name, kind=published.kind))
    connection.execute(
        script_versions.insert().values(
            script=published.name,
            version=published.version,
            manifest=published.manifest,
            envelope=published.envelope,
            size_bytes=published.size_bytes,
            files=published.files,
            published_s=published.published_s,
            published_by=published.published_by,
        )
    )


def same_content(one: ManifestRoot, other: ManifestRoot) -> bool:
    """Whether two versions hold the same tree, whatever their numbers."""
    return (one.kind, one.profile, one.encoding, one.pieces, one.folders, one.links) == (
        other.kind,
        other.profile,
        other.encoding,
        other.pieces,
        other.folders,
        other.links,
    )


def newest_version(connection: Connection, name: str) -> PublishedVersion:
    """The newest version of a script; raises NotFound."""
    query = _versions().where(scripts.c.name == name)
    row = connection.execute(query.order_by(script_versions.c.version.desc()).limit(1)).first()
    if row is None:
        raise NotFound(f"There is no script '{name}'")
    return PublishedVersion(*row)


def published_versions(connection: Connection) -> list[PublishedVersion]:
    """The whole catalogue by name and version."""
    query = _versions().order_by(script_versions.c.script, script_versions.c.version)
    return [PublishedVersion(*row) for row in connection.execute(query)]


def release_names(connection: Connection) -> dict[ManifestId, list[str]]:
    """For each manifest, the active releases that have it."""
    query = (
        sa.select(script_versions.c.manifest, releases.c.name)
        .join(
            release_scripts,
            sa.and_(
                release_scripts.c.script == script_versions.c.script,
                release_scripts.c.version == script_versions.c.version,
            ),
        )
        .join(releases, releases.c.release == release_scripts.c.release)
        .where(releases.c.state == "active")
        .order_by(releases.c.name)
    )
    found: dict[ManifestId, list[str]] = {}
    for manifest, name in connection.execute(query):
        found.setdefault(manifest, []).append(name)
    return found


def _versions() -> sa.Select[*tuple[Any, ...]]:
    return sa.select(
        script_versions.c.script,
        scripts.c.kind,
        script_versions.c.version,
        script_versions.c.manifest,
        script_versions.c.size_bytes,
        script_versions.c.files,
        script_versions.c.published_s,
        script_versions.c.published_by,
        script_versions.c.envelope,
    ).join(scripts, scripts.c.name == script_versions.c.script)
