"""Opens a node's state folder: lock, format, databases, identity, trust, trees.

Everything that a crash or a failing disk may have left behind is met here, before any service
runs: what can be rebuilt is rebuilt and said in the log, what cannot is an error with a remedy.
"""

from __future__ import annotations

import grp
import time
from contextlib import ExitStack
from dataclasses import dataclass

from archid.config import Config
from archid.errors import StorageError, UsageError
from archid.identity import Identity
from archid.journal import MIGRATIONS as JOURNAL_MIGRATIONS
from archid.journal import Journal
from archid.log import get_logger
from archid.membership import Membership
from archid.store.absences import Absences
from archid.store.bundles import Bundles
from archid.store.damage import DamageBook
from archid.store.database import Database, set_aside
from archid.store.documents import DocumentStore
from archid.store.errors import DatabaseDamaged
from archid.store.index import MIGRATIONS as INDEX_MIGRATIONS
from archid.store.index import ChunkIndex
from archid.store.ingest import remove_leftovers
from archid.store.layout import StateLock, StatePaths
from archid.store.layouts import Layouts
from archid.store.library import Library
from archid.store.source_records import SourceRecords
from archid.store.tree_store import TreeStore
from archid.store.trust_file import TrustFile
from archid.store.upkeep import Upkeep
from archid.sync.trust_restoring import restore_trust
from protocol.trust import TrustedDocuments

log = get_logger(__name__)


@dataclass(frozen=True)
class OpenState:
    """A node's state, opened and whole; closed with the stack that it was opened on."""

    paths: StatePaths
    identity: Identity
    membership: Membership
    journal: Journal
    documents: DocumentStore
    trust_file: TrustFile
    trust: TrustedDocuments
    trees: TreeStore
    library: Library
    upkeep: Upkeep
    absences: Absences
    sources: SourceRecords
    databases: tuple[Database, ...]


def open_state(config: Config, stack: ExitStack) -> OpenState:
    """Open everything; blocks. Raises NotAMember, Conflict, StorageError, TrustFailure."""
    paths = StatePaths(config.storage.state, config.storage.scripts)
    gid = player_gid(config.player.group)
    paths.prepare(player_gid=gid)
    stack.enter_context(StateLock(paths.lock))
    membership = Membership.load(paths.identity)
    identity = Identity.load(paths.state)
    if identity.certificate is None:
        raise StorageError(
            f"{identity.certificate_path} is missing",
            remedy="Restore the identity folder from a backup, or run archid leave and join again",
        )
    journal_db = stack.enter_context(Database(paths.journal_db, JOURNAL_MIGRATIONS, durable=True))
    journal = Journal(journal_db, identity)
    documents = DocumentStore(paths.documents)
    trust_file = TrustFile(paths.trust)
    trust = restore_trust(
        membership,
        documents=documents,
        trust_file=trust_file,
        floor=journal.floor(),
        now=time.time(),
    )
    if trust.head is not None:
        # A crash may have come between the trust file and the journal.
        journal.raise_floor(trust.head.order)
    node_db = _open_index(paths, stack)
    upkeep = Upkeep(node_db)
    trees = TreeStore(paths.trees, Layouts(documents), DamageBook(upkeep))
    stack.callback(trees.close)
    library = Library(
        paths,
        documents=documents,
        trees=trees,
        index=ChunkIndex(node_db),
        bundles=Bundles(paths),
        keep_free_bytes=config.storage.keep_free_bytes,
    )
    stack.callback(library.close)
    remove_leftovers(paths)
    library.open()
    return OpenState(
        paths,
        identity,
        membership,
        journal,
        documents,
        trust_file,
        trust,
        trees,
        library,
        upkeep,
        Absences(node_db),
        SourceRecords(node_db),
        (journal_db, node_db),
    )


def _open_index(paths: StatePaths, stack: ExitStack) -> Database:
    """The chunk index only saves work: a damaged one is set aside and made anew."""
    try:
        return stack.enter_context(Database(paths.node_db, INDEX_MIGRATIONS))
    except DatabaseDamaged as error:
        moved_to = set_aside(paths.node_db)
        log.error("index_damaged", why=str(error), moved_to=str(moved_to))
        return stack.enter_context(Database(paths.node_db, INDEX_MIGRATIONS))


def player_gid(group: str) -> int | None:
    """The number of the player's group, None when none is configured; raises UsageError."""
    if not group:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(
            f"The group {group!r} in [player] group does not exist on this machine",
            remedy=f"Make it (groupadd --system {group}), or name another one",
        ) from None
