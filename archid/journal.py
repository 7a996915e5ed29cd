"""What this node did and saw, as a chain of signed entries; and the numbers it must never forget.

Each entry names the hash of the one before and is signed by the node, so that one that was
changed, dropped or put in between is found by `verify`. The floor (the newest head that was
believed) and the counters lie in the same database, which is never rebuilt: losing ``node.db`` or
the trust file must not let an older head back in. What is worth an entry is up to whoever writes
it; sending the journal elsewhere is not done here.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from archid.errors import StorageError
from archid.identity import Identity
from archid.store.database import Database
from protocol.canonical import Fields, Value, pack, unpack
from protocol.envelope import PublicKey, Signature
from protocol.errors import FormatError, ProtocolError
from protocol.ids import DIGEST_BYTES, Digest, KeyId, NodeId

TYPE: Final = "journal"
FORMAT: Final = 1
MAX_ENTRY_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 64
_MAX_NUMBER: Final = 2**63 - 1
_READ_BATCH: Final = 500

Scalar: TypeAlias = "str | int | bool | bytes | None"

MIGRATIONS: Final = (
    """
    CREATE TABLE entry (
        seq INTEGER PRIMARY KEY,
        hash BLOB NOT NULL,
        payload BLOB NOT NULL,
        key_id BLOB NOT NULL,
        signature BLOB NOT NULL
    );
    CREATE TABLE floor (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        epoch INTEGER NOT NULL,
        serial INTEGER NOT NULL
    );
    CREATE TABLE counter (
        name TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
)


class EntryHash(Digest):
    """Names a journal entry: the digest of its payload."""

    CONTEXT = "archid v1 journal entry"
    __slots__ = ()


_NONE_BEFORE: Final = EntryHash(bytes(DIGEST_BYTES))


class JournalDamaged(StorageError):
    """An entry of the journal was changed, dropped or put in."""

    code = "journal_damaged"

    def __init__(self, seq: int, why: str) -> None:
        super().__init__(
            f"The journal is damaged at entry {seq}: {why}",
            remedy="Keep the file journal.db as it is for whoever looks into it; check the disk",
        )
        self.seq = seq


@dataclass(frozen=True)
class Entry:
    """One entry; `at_s` is this node's clock, seconds UTC, which may have been wrong."""

    seq: int
    at_s: int
    kind: str
    fields: Mapping[str, Scalar]
    node: NodeId
    previous: EntryHash
    payload: bytes = field(repr=False)
    signature: Signature = field(repr=False)

    @property
    def hash(self) -> EntryHash:
        return EntryHash.of(self.payload)


class Journal:
    """The journal of one node in ``journal.db``, which is opened durably.

    Methods block; call them from worker threads. They raise StorageError.
    """

    def __init__(
        self, database: Database, identity: Identity, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._identity = identity
        self._clock = clock

    # -- entries

    def append(self, kind: str, fields: Mapping[str, Scalar] | None = None) -> Entry:
        """Sign and keep an entry, on disk when this returns.

        Raises FormatError or LimitExceeded for fields that cannot be encoded.
        """
        return self._database.transact(self._append, kind, dict(fields or {}))

    def tail(self, count: int) -> list[Entry]:
        """The last `count` entries, oldest first; raises JournalDamaged for one it cannot read."""
        rows = self._database.transact(_tail, count)
        return [_decoded(row) for row in reversed(rows)]

    def entries(self, first: int = 1) -> Iterator[Entry]:
        """Every entry from number `first` on, a batch at a time."""
        while rows := self._database.transact(_batch, first):
            for row in rows:
                yield _decoded(row)
            first = int(rows[-1][0]) + 1

    def readable(self, first: int = 1) -> Iterator[Entry]:
        """Every entry from `first` on that can be read, whatever is damaged in between."""
        while rows := self._database.transact(_batch, first):
            for row in rows:
                with suppress(JournalDamaged):
                    yield _decoded(row)
            first = int(rows[-1][0]) + 1

    def verify(self, keys: Mapping[KeyId, PublicKey] | None = None) -> int:
        """Check the whole chain and every signature; returns how many entries there are.

        `keys` are the node's former keys, if it had others. Raises JournalDamaged at the first
        entry that does not hold. A chain that was cut off at its end looks whole from inside:
        that is told by who saw a later entry.
        """
        known = {self._identity.public_key.key_id: self._identity.public_key, **(keys or {})}
        previous = _NONE_BEFORE
        count = 0
        for entry in self.entries():
            count += 1
            if entry.seq != count:
                raise JournalDamaged(count, "it is missing")
            if entry.previous != previous:
                raise JournalDamaged(count, "it does not follow the one before")
            if entry.node != self._identity.node_id:
                raise JournalDamaged(count, "it was written by another node")
            key = known.get(entry.signature.key_id)
            if key is None or not key.verify(TYPE, entry.payload, entry.signature.value):
                raise JournalDamaged(count, "its signature does not hold")
            previous = entry.hash
        return count

    # -- numbers that only grow

    def floor(self) -> tuple[int, int]:
        """(epoch, serial) of the newest head ever believed, (0, 0) before the first."""
        return self._database.transact(_floor)

    def raise_floor(self, order: tuple[int, int]) -> None:
        """Never believe a head below `order` again; a lower one than now changes nothing."""
        self._database.transact(_raise_floor, order)

    def counter(self, name: str) -> int:
        """The value of a counter, 0 before its first use."""
        return self._database.transact(_counter, name)

    def advance(self, name: str) -> int:
        """Add one to a counter and return it, on disk: no two calls ever get the same number."""
        return self._database.transact(_advance, name)

    def raise_counter(self, name: str, value: int) -> None:
        """Let the counter go on from `value`, if it is not above that already."""
        self._database.transact(_raise_counter, name, value)

    # -- inside

    def _append(
        self, connection: sqlite3.Connection, kind: str, fields: dict[str, Scalar]
    ) -> Entry:
        row = connection.execute("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1").fetchone()
        seq, previous = (1, _NONE_BEFORE) if row is None else (int(row[0]) + 1, EntryHash(row[1]))
        at_s = max(0, int(self._clock()))
        pairs: list[Value] = [[name, fields[name]] for name in sorted(fields)]
        node = self._identity.node_id
        payload = pack([TYPE, FORMAT, node, seq, previous, at_s, kind, pairs])
        # Read again as it will be: nothing gets in that could not be read later.
        entry = _opened(seq, payload, self._identity.sign(TYPE, payload))
        connection.execute(
            "INSERT INTO entry (seq, hash, payload, key_id, signature) VALUES (?, ?, ?, ?, ?)",
            (
                seq,
                bytes(entry.hash),
                payload,
                bytes(entry.signature.key_id),
                entry.signature.value,
            ),
        )
        return entry


_Row: TypeAlias = "tuple[int, bytes, bytes, bytes, bytes]"
_COLUMNS: Final = "seq, hash, payload, key_id, signature"


def _tail(connection: sqlite3.Connection, count: int) -> list[_Row]:
    return connection.execute(
        f"SELECT {_COLUMNS} FROM entry ORDER BY seq DESC LIMIT ?",  # noqa: S608 - constant columns
        (max(0, count),),
    ).fetchall()


def _batch(connection: sqlite3.Connection, first: int) -> list[_Row]:
    return connection.execute(
        f"SELECT {_COLUMNS} FROM entry WHERE seq >= ? ORDER BY seq LIMIT ?",  # noqa: S608 - constant columns
        (first, _READ_BATCH),
    ).fetchall()


def _decoded(row: _Row) -> Entry:
    seq, digest, payload, key_id, signature = row
    try:
        entry = _opened(seq, payload, Signature(KeyId(key_id), signature))
    except ProtocolError as error:
        raise JournalDamaged(seq, str(error)) from error
    if entry.hash != digest:
        raise JournalDamaged(seq, "its hash does not hold")
    return entry


def _opened(seq: int, payload: bytes, signature: Signature) -> Entry:
    fields = Fields(unpack(payload, max_bytes=MAX_ENTRY_BYTES), "journal entry")
    fields.constant("type", TYPE)
    fields.constant("format", FORMAT)
    node = fields.identity("node", NodeId)
    fields.constant("number", seq)
    previous = fields.identity("previous", EntryHash)
    at_s = fields.integer("time", high=_MAX_NUMBER)
    kind = fields.text("kind", max_bytes=64)
    values: dict[str, Scalar] = {}
    for item in fields.array("fields", max_items=MAX_FIELDS):
        match item:
            case [str(name), None | bool() | int() | str() | bytes() as value]:
                values[name] = value
            case _:
                raise FormatError("journal entry: a field is not a name and a single value")
    return Entry(seq, at_s, kind, values, node, previous, payload, signature)


def _floor(connection: sqlite3.Connection) -> tuple[int, int]:
    row = connection.execute("SELECT epoch, serial FROM floor").fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def _raise_floor(connection: sqlite3.Connection, order: tuple[int, int]) -> None:
    if order > _floor(connection):
        connection.execute(
            "INSERT OR REPLACE INTO floor (one, epoch, serial) VALUES (1, ?, ?)", order
        )


def _counter(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value FROM counter WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else int(row[0])


def _advance(connection: sqlite3.Connection, name: str) -> int:
    value = _counter(connection, name) + 1
    connection.execute("INSERT OR REPLACE INTO counter (name, value) VALUES (?, ?)", (name, value))
    return value


def _raise_counter(connection: sqlite3.Connection, name: str, value: int) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO counter (name, value) VALUES (?, ?)",
        (name, max(value, _counter(connection, name))),
    )
