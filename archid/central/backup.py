"""Taking a backup of central, while its daemon runs or not.

What cannot be had from the fleet again goes into one file: the database and the journal as
SQLite's online backup copies them, and the identity with the keys that central signs with.
Scripts and documents do not: central fetches them from the REPOs, as it does what is newer than
the backup. Putting one back is `archid.central.restoring`'s.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import sqlalchemy as sa

from archid.central.backup_file import BackupWriter, Label
from archid.central.keys import OnlineKeys, keys_folder
from archid.central.signed_state import load_roots, newest_head
from archid.central.store import CentralDatabase, database_url
from archid.central.tables import fleet, nodes
from archid.errors import Conflict, StorageError, Unavailable, UsageError
from archid.identity import Identity
from archid.membership import FILE_NAME, Membership
from archid.store.errors import storage_error
from archid.store.ingest import STAGING_PREFIX
from archid.store.layout import StatePaths

DATABASE: Final = "central.db"
JOURNAL: Final = "journal.db"
KNOWN_PATH: Final = re.compile(
    r"identity/(node|key\.pem|certificate\.pem|fleet\.json|keys/[a-z]{1,32}(\.pem)?)"
    rf"|{re.escape(DATABASE)}|{re.escape(JOURNAL)}"
)
"""What a backup may hold; nothing else is ever written by restoring."""
_MAX_SMALL_BYTES: Final = 65536
_TRIES: Final = 3


@dataclass(frozen=True)
class Backup:
    """What was written."""

    file: Path
    size_bytes: int
    label: Label
    sealed: bool


@dataclass(frozen=True)
class Snapshot:
    """Central at one moment: small files as bytes, databases as open copies."""

    label: Label
    small: dict[str, bytes]
    databases: dict[str, BinaryIO]


@contextlib.contextmanager
def snapshot(paths: StatePaths, database: str, *, now: float, software: str) -> Iterator[Snapshot]:
    """Look at central as its owner; the copies go when the block ends.

    `database` is the configured URL. Raises NotAMember, UsageError when the database is not a
    file of ours to copy, Unavailable while keys are being replaced, StorageError.
    """
    path = sqlite_path(database, paths.state)
    Membership.load(paths.identity)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(_temporary(paths)))
        for _ in range(_TRIES):
            small = _small_files(paths)
            # The journal first: its floor must not be above the newest head of the database.
            found = [(paths.journal_db, folder / JOURNAL), (path, folder / DATABASE)]
            copied = [_copied(*pair) for pair in found if pair[0].exists() or pair[0] == path]
            if small == _small_files(paths):
                break
        else:
            raise Unavailable(
                "Central's keys are being replaced just now", remedy="Repeat it in a moment"
            )
        label = _label(paths, folder / DATABASE, now=now, software=software)
        copies: dict[str, BinaryIO] = {
            copy.name: stack.enter_context(copy.open("rb")) for copy in copied
        }
        yield Snapshot(label, small, copies)


def write_backup(
    found: Snapshot, target: Path, *, passphrase: str = "", replace: bool = False
) -> Backup:
    """Write the file (0600) beside its place, then give it its name.

    Raises Conflict when it exists and `replace` is false, UsageError, StorageError.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder", remedy="Name a file in it")
    if target.exists() and not replace:
        raise _exists(target)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        with os.fdopen(descriptor, "wb") as file:
            writer = BackupWriter(file, found.label, passphrase)
            for name, data in found.small.items():
                writer.add(name, len(data), io.BytesIO(data))
            for name, copy in found.databases.items():
                copy.seek(0)
                writer.add(name, os.fstat(copy.fileno()).st_size, copy)
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
            size_bytes = file.tell()
        if replace:
            os.replace(temporary, target)
        else:
            os.link(temporary, target)  # never over a file that came meanwhile
            os.unlink(temporary)
        _sync_folder(target.parent)
    except FileNotFoundError as error:
        raise UsageError(
            f"The folder {target.parent} does not exist", remedy="Make it first"
        ) from error
    except FileExistsError as error:
        raise _exists(target) from error
    except OSError as error:
        raise storage_error(error, target) from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return Backup(target, size_bytes, found.label, bool(passphrase))


def take_backup(
    paths: StatePaths,
    target: Path,
    *,
    database: str,
    now: float,
    software: str,
    passphrase: str = "",
    replace: bool = False,
    as_caller: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Backup:
    """Back up central into `target`, which is written inside `as_caller`. Blocks."""
    if target.resolve().is_relative_to(paths.state.resolve()):
        raise UsageError(
            f"The backup would lie in the state that it is of ({target})",
            remedy="Name a file elsewhere, best on another machine's disk",
        )
    with snapshot(paths, database, now=now, software=software) as found, as_caller():
        return write_backup(found, target, passphrase=passphrase, replace=replace)


def sqlite_path(database: str, state: Path) -> Path:
    """Where central's SQLite file is; raises UsageError when the database is another one."""
    url = database_url(database, state)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise UsageError(
            "[central] database is not a SQLite file, and a backup of archid holds nothing else",
            remedy="Back that database up with its own tools (pg_dump), and copy the folder"
            " identity of the state folder",
            code="database_elsewhere",
        )
    return Path(url.database)


def _small_files(paths: StatePaths) -> dict[str, bytes]:
    names = ["node", "key.pem", "certificate.pem", FILE_NAME]
    try:
        names += [f"keys/{each.name}" for each in sorted(keys_folder(paths.state).iterdir())]
        found = {}
        for name in names:
            path = f"identity/{name}"
            if KNOWN_PATH.fullmatch(path):
                found[path] = (paths.identity / name).read_bytes()[:_MAX_SMALL_BYTES]
        return found
    except OSError as error:
        raise storage_error(error, paths.identity) from error


def _copied(source: Path, target: Path) -> Path:
    """A consistent copy, whoever writes meanwhile."""
    if not source.exists():
        raise Unavailable(f"The database {source} is not there", code="database_missing")
    target.unlink(missing_ok=True)
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=20)) as original,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
            # A copy is one file: no log beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
            sound = copy.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    except sqlite3.Error as error:
        raise StorageError(f"{source} cannot be copied: {error}") from error
    if not sound:
        raise StorageError(
            f"{source} is damaged and was not backed up",
            remedy="Restore an older backup: central takes what is newer from the REPOs",
            code="database_damaged",
        )
    return target


def _label(paths: StatePaths, copy: Path, *, now: float, software: str) -> Label:
    """Read the copy as a central would, so that what was written is known to be of use."""
    identity = Identity.load(paths.state)
    keys = OnlineKeys.load(paths.state)
    database = CentralDatabase.open(database_url(f"sqlite+pysqlite:///{copy}", paths.state))
    try:
        with database.read() as connection:
            head = newest_head(connection)
            row = connection.execute(sa.select(fleet.c.name, fleet.c.central_node)).first()
            if head is None or row is None:
                raise Conflict("Central's database holds no fleet", code="no_fleet")
            root, _ = load_roots(connection)
            keys.check(root)
            name = connection.execute(
                sa.select(nodes.c.name).where(nodes.c.node == row.central_node)
            ).scalar_one_or_none()
    finally:
        database.close()
    return Label(
        fleet_name=row.name,
        node_name=name or "",
        node=identity.node_id,
        made_s=int(now),
        software=software,
        epoch=head.epoch,
        serial=head.serial,
        root_version=root.version,
    )


@contextlib.contextmanager
def _temporary(paths: StatePaths) -> Iterator[str]:
    """A folder of ours where a start of the daemon clears up after a crash."""
    try:
        with tempfile.TemporaryDirectory(
            prefix=f"{STAGING_PREFIX}backup-", dir=paths.staging, ignore_cleanup_errors=True
        ) as folder:
            yield folder
    except OSError as error:
        raise storage_error(error, paths.staging) from error


def _exists(target: Path) -> Conflict:
    return Conflict(
        f"{target} exists already and is not overwritten",
        remedy="Name another file, or give --replace",
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
