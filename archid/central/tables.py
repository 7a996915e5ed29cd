"""The tables of central's database, in SQLAlchemy Core.

What is here is what central must remember: its definitions (nodes, tokens, scripts, releases) and
everything it has signed. What is signed is written down with the definition that it came from, in
one transaction, so that a database never disagrees with itself. No secret is in it: private keys
and the secret behind the salts are files in `identity/keys`, tokens are kept as digests.

The schema itself is made by the migrations; a test compares them with these tables. Queries are
in the modules that own a subject; opening and transactions are in `archid.central.store`.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from protocol.ids import DocumentId, FleetId, ManifestId, NodeId, ReleaseId


class Identity(TypeDecorator[bytes]):
    """A column of typed ids: plain bytes in the database, `NodeId` and the like in Python."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self, id_type: type[bytes]) -> None:
        super().__init__()
        self.id_type = id_type

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else bytes(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else self.id_type(bytes(value))


metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

fleet: Final = Table(
    "fleet",
    metadata,
    # One row: two fleets in one database would share names and serials.
    Column("only", Integer, primary_key=True, autoincrement=False),
    Column("fleet", Identity(FleetId), nullable=False),
    Column("name", Text, nullable=False),
    Column("central_node", Identity(NodeId), nullable=False),
    Column("founded_s", BigInteger, nullable=False),
    CheckConstraint("only = 1", name="only"),
)

roots: Final = Table(
    "roots",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("envelope", LargeBinary, nullable=False),
)

nodes: Final = Table(
    "nodes",
    metadata,
    Column("node", Identity(NodeId), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("room", Text, nullable=False),
    Column("server_kind", Text, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("joined_s", BigInteger, nullable=False),
    Column("ready_s", BigInteger),
    Column("left_s", BigInteger),
    CheckConstraint("role IN ('central', 'repo', 'ice')", name="role"),
    CheckConstraint("state IN ('joined', 'ready', 'left')", name="state"),
)
# A name may be taken again once its holder has left: machines are replaced.
Index(
    "uq_nodes_name_present",
    nodes.c.name,
    unique=True,
    sqlite_where=text("state <> 'left'"),
    postgresql_where=text("state <> 'left'"),
)

tokens: Final = Table(
    "tokens",
    metadata,
    Column("token", LargeBinary, primary_key=True),
    Column("secret_digest", LargeBinary, nullable=False),
    Column("role", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("room", Text, nullable=False),
    Column("server_kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_s", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_s", BigInteger, nullable=False),
    Column("used_s", BigInteger),
    Column("used_by", Identity(NodeId), ForeignKey("nodes.node")),
    Column("voided_s", BigInteger),
)

scripts: Final = Table(
    "scripts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    CheckConstraint("kind IN ('feature', 'sas', 'loop')", name="kind"),
)

script_versions: Final = Table(
    "script_versions",
    metadata,
    Column("script", Text, ForeignKey("scripts.name"), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("manifest", Identity(ManifestId), nullable=False, unique=True),
    Column("envelope", LargeBinary, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("files", BigInteger, nullable=False),
    Column("published_s", BigInteger, nullable=False),
    Column("published_by", Text, nullable=False),
)

releases: Final = Table(
    "releases",
    metadata,
    Column("release", Identity(ReleaseId), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("generation", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("prefetch_s", BigInteger, nullable=False),
    Column("start_s", BigInteger, nullable=False),
    Column("end_s", BigInteger, nullable=False),
    Column("changed_s", BigInteger, nullable=False),
    Column("changed_by", Text, nullable=False),
    CheckConstraint("state IN ('active', 'withdrawn')", name="state"),
)

release_scripts: Final = Table(
    "release_scripts",
    metadata,
    Column("release", Identity(ReleaseId), ForeignKey("releases.release"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("script", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    ForeignKeyConstraint(
        ["script", "version"], ["script_versions.script", "script_versions.version"]
    ),
)

release_targets: Final = Table(
    "release_targets",
    metadata,
    # What the definition said; `release_nodes` holds which servers that was when it was applied.
    Column("release", Identity(ReleaseId), ForeignKey("releases.release"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    CheckConstraint("kind IN ('site', 'room', 'node')", name="kind"),
)

release_nodes: Final = Table(
    "release_nodes",
    metadata,
    Column("release", Identity(ReleaseId), ForeignKey("releases.release"), primary_key=True),
    Column("node", Identity(NodeId), ForeignKey("nodes.node"), primary_key=True),
    # NULL while the server has the release. Once it is taken away, the header as it was then,
    # marked withdrawn: absence never deletes, so the server must go on reading that it is over,
    # and nothing that changes later in the release is its business.
    Column("withdrawn_header", LargeBinary),
)

grants_roots: Final = Table(
    "grants_roots",
    metadata,
    Column("grants_root", Identity(DocumentId), primary_key=True),
    Column("envelope", LargeBinary, nullable=False),
    Column("issued_s", BigInteger, nullable=False),
)

leaves: Final = Table(
    "leaves",
    metadata,
    # The items of each leaf in the newest grants root, as they were signed.
    Column("node", Identity(NodeId), primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("entry_count", BigInteger, nullable=False),
)

heads: Final = Table(
    "heads",
    metadata,
    # The primary key is what makes it impossible to sign two heads under one number.
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("serial", BigInteger, primary_key=True, autoincrement=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("issued_s", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)
