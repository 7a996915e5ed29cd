"""Putting a backup of central back, into a state folder in which nothing is.

The whole file is read before anything is written, and what was written is taken away again when a
later step fails. Central then starts as one that comes back: it signs nothing before the REPOs
have shown what is newer (`archid.central.recovery`), and a mark in the state lets its first head
leave a gap, so that no number is used again that it may have used since the backup.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from archid.central.backup import DATABASE, JOURNAL, KNOWN_PATH, sqlite_path
from archid.central.backup_file import BackupReader, Label
from archid.central.kept_documents import keep_documents, trust_state
from archid.central.keys import OnlineKeys
from archid.central.publishing import published_versions
from archid.central.signed_state import load_state
from archid.central.store import CentralDatabase, database_url
from archid.errors import Conflict, StorageError
from archid.identity import Identity
from archid.journal import MIGRATIONS as JOURNAL_MIGRATIONS
from archid.journal import Journal
from archid.membership import FILE_NAME, Membership
from archid.store.database import Database
from archid.store.documents import DocumentStore
from archid.store.errors import storage_error
from archid.store.layout import StateLock, StatePaths
from archid.store.trust_file import TrustFile

MARK: Final = "restored"
SERIAL_GAP: Final = 1000
"""By how much the first head after a restore is above everything that the fleet has shown."""
_NEEDED: Final = frozenset(
    {DATABASE, f"identity/{FILE_NAME}", "identity/node", "identity/key.pem",
     "identity/certificate.pem"}
)  # fmt: skip
_MAX_SMALL_BYTES: Final = 65536
_OF_THE_DISK: Final = "lost+found"


def was_restored(state: Path) -> bool:
    """Whether the state was put back from a backup and nothing has been signed with it since."""
    return (state / MARK).exists()


def forget_restored(state: Path) -> None:
    """A head was signed above the gap; raises StorageError."""
    try:
        (state / MARK).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, state / MARK) from error


def check_empty(paths: StatePaths, database: Path) -> None:
    """Raise Conflict unless nothing at all is where the backup would go."""
    try:
        found = [each for each in paths.state.iterdir() if each.name != _OF_THE_DISK]
    except FileNotFoundError:
        found = []
    except OSError as error:
        raise storage_error(error, paths.state) from error
    if database.exists():
        found.append(database)
    if found:
        raise Conflict(
            f"{min(found)} is there already: a backup is restored into an empty state folder only",
            remedy=f"Move {paths.state} away, or configure another state folder",
            code="state_not_empty",
        )


def restore(
    backup: BackupReader,
    paths: StatePaths,
    *,
    database: str,
    now: float,
    passphrase: str = "",
    player_gid: int | None = None,
) -> Label:
    """Make the state folder from a backup. Blocks.

    Raises Conflict when the state folder is not empty or a newer archid wrote the database,
    Denied for a wrong passphrase, StorageError when the backup does not hold together.
    """
    place = sqlite_path(database, paths.state)
    check_empty(paths, place)
    for _ in _looked_through(backup, passphrase):
        pass
    paths.prepare(player_gid=player_gid)
    with StateLock(paths.lock), _undone_on_failure(paths, place):
        membership = b""
        for path, blocks in _looked_through(backup, passphrase):
            if path == f"identity/{FILE_NAME}":
                membership = b"".join(blocks)  # the last file: without it this is no fleet's
                continue
            target = place if path == DATABASE else paths.state / path
            _write(target, blocks)
        _build_documents(paths, database)
        identity = Identity.load(paths.state)
        with Database(paths.journal_db, JOURNAL_MIGRATIONS, durable=True) as journal_db:
            # Starts are counted, and there were more of them since: seconds are above any count.
            Journal(journal_db, identity).raise_counter("incarnation", int(now))
        _write(paths.state / MARK, iter([f"{int(now)}\n".encode()]))
        _write(paths.identity / FILE_NAME, iter([membership]))
        Membership.load(paths.identity)
    return backup.label


def _looked_through(backup: BackupReader, passphrase: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Every file with its blocks, whether they are taken or not; then nothing is missing."""
    seen = set()
    for path, size_bytes, blocks in backup.files(passphrase):
        is_database = path in (DATABASE, JOURNAL)
        if not KNOWN_PATH.fullmatch(path) or path in seen:
            raise _unfit(f"it holds {path!r}")
        if size_bytes > _MAX_SMALL_BYTES and not is_database:
            raise _unfit(f"{path} is too large")
        seen.add(path)
        yield path, blocks
        for _ in blocks:
            pass
    if missing := sorted(_NEEDED - seen):
        raise _unfit(f"{missing[0]} is missing")


def _build_documents(paths: StatePaths, database: str) -> None:
    """What the fleet was told last, made again from the database, for the daemon to start with."""
    keys = OnlineKeys.load(paths.state)
    opened = CentralDatabase.open(database_url(database, paths.state))
    try:
        with opened.read() as connection:
            state = load_state(connection)
            if state is None:
                raise _unfit("its database holds no fleet")
            keys.check(state.root)
            keep_documents(state, DocumentStore(paths.documents), published_versions(connection))
        TrustFile(paths.trust).save(trust_state(state))
    finally:
        opened.close()


def _write(path: Path, blocks: Iterator[bytes]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise storage_error(error, path) from error


@contextlib.contextmanager
def _undone_on_failure(paths: StatePaths, database: Path) -> Iterator[None]:
    """Nothing was there before, so that everything that is there goes again."""
    try:
        yield
    except BaseException:
        for end in ("", "-wal", "-shm"):
            Path(f"{database}{end}").unlink(missing_ok=True)
        for each in paths.state.iterdir():
            if each.name == _OF_THE_DISK:
                continue
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)
            else:
                each.unlink(missing_ok=True)
        raise


def _unfit(why: str) -> StorageError:
    return StorageError(
        f"The backup does not hold a central of archid: {why}",
        remedy="Use another backup, however old: central takes what is newer from the REPOs",
        code="backup_damaged",
    )
