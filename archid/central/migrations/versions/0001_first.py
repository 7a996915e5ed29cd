"""The first schema: nodes, tokens, scripts, releases and what was signed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "fleet",
        sa.Column("only", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fleet", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("central_node", sa.LargeBinary(), nullable=False),
        sa.Column("founded_s", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("only = 1", name=op.f("ck_fleet_only")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_fleet")),
    )
    op.create_table(
        "grants_roots",
        sa.Column("grants_root", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("issued_s", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("grants_root", name=op.f("pk_grants_roots")),
    )
    op.create_table(
        "heads",
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("serial", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("issued_s", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("epoch", "serial", name=op.f("pk_heads")),
    )
    op.create_table(
        "leaves",
        sa.Column("node", sa.LargeBinary(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("entry_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_leaves")),
    )
    op.create_table(
        "nodes",
        sa.Column("node", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("room", sa.Text(), nullable=False),
        sa.Column("server_kind", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("joined_s", sa.BigInteger(), nullable=False),
        sa.Column("ready_s", sa.BigInteger(), nullable=True),
        sa.Column("left_s", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("role IN ('central', 'repo', 'ice')", name=op.f("ck_nodes_role")),
        sa.CheckConstraint("state IN ('joined', 'ready', 'left')", name=op.f("ck_nodes_state")),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_nodes")),
    )
    op.create_index(
        "uq_nodes_name_present",
        "nodes",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state <> 'left'"),
        postgresql_where=sa.text("state <> 'left'"),
    )
    op.create_table(
        "releases",
        sa.Column("release", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("prefetch_s", sa.BigInteger(), nullable=False),
        sa.Column("start_s", sa.BigInteger(), nullable=False),
        sa.Column("end_s", sa.BigInteger(), nullable=False),
        sa.Column("changed_s", sa.BigInteger(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('active', 'withdrawn')", name=op.f("ck_releases_state")),
        sa.PrimaryKeyConstraint("release", name=op.f("pk_releases")),
        sa.UniqueConstraint("name", name=op.f("uq_releases_name")),
    )
    op.create_table(
        "roots",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_roots")),
    )
    op.create_table(
        "scripts",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('feature', 'sas', 'loop')", name=op.f("ck_scripts_kind")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_scripts")),
    )
    op.create_table(
        "release_nodes",
        sa.Column("release", sa.LargeBinary(), nullable=False),
        sa.Column("node", sa.LargeBinary(), nullable=False),
        sa.Column("withdrawn_header", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_release_nodes_node")),
        sa.ForeignKeyConstraint(
            ["release"], ["releases.release"], name=op.f("fk_release_nodes_release")
        ),
        sa.PrimaryKeyConstraint("release", "node", name=op.f("pk_release_nodes")),
    )
    op.create_table(
        "release_targets",
        sa.Column("release", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('site', 'room', 'node')", name=op.f("ck_release_targets_kind")
        ),
        sa.ForeignKeyConstraint(
            ["release"], ["releases.release"], name=op.f("fk_release_targets_release")
        ),
        sa.PrimaryKeyConstraint("release", "kind", "value", name=op.f("pk_release_targets")),
    )
    op.create_table(
        "script_versions",
        sa.Column("script", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("published_s", sa.BigInteger(), nullable=False),
        sa.Column("published_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["script"], ["scripts.name"], name=op.f("fk_script_versions_script")
        ),
        sa.PrimaryKeyConstraint("script", "version", name=op.f("pk_script_versions")),
        sa.UniqueConstraint("manifest", name=op.f("uq_script_versions_manifest")),
    )
    op.create_table(
        "tokens",
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.Column("secret_digest", sa.LargeBinary(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("room", sa.Text(), nullable=False),
        sa.Column("server_kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_s", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_s", sa.BigInteger(), nullable=False),
        sa.Column("used_s", sa.BigInteger(), nullable=True),
        sa.Column("used_by", sa.LargeBinary(), nullable=True),
        sa.Column("voided_s", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["used_by"], ["nodes.node"], name=op.f("fk_tokens_used_by")),
        sa.PrimaryKeyConstraint("token", name=op.f("pk_tokens")),
    )
    op.create_table(
        "release_scripts",
        sa.Column("release", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("script", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["release"], ["releases.release"], name=op.f("fk_release_scripts_release")
        ),
        sa.ForeignKeyConstraint(
            ["script", "version"],
            ["script_versions.script", "script_versions.version"],
            name=op.f("fk_release_scripts_script_version"),
        ),
        sa.PrimaryKeyConstraint("release", "kind", name=op.f("pk_release_scripts")),
    )
