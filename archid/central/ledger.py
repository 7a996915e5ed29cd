"""Central's database with everything around one change to it.

A change goes one way: one hop into the one thread that owns the database, one transaction that
changes definitions and signs what follows from it, the new documents put into the store, and back
in trio's thread the news that there is a new state. Reading goes the same way without signing.
What is changed is decided by whoever hands the change in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy.engine import Connection

from archid.central.estate import present_nodes
from archid.central.kept_documents import keep_documents
from archid.central.keys import OnlineKeys, take_up_next
from archid.central.recovery import CentralGate, HeadMark
from archid.central.restoring import SERIAL_GAP, forget_restored, was_restored
from archid.central.signed_state import SignedState, load_state
from archid.central.signing import sign_state
from archid.central.store import CentralDatabase, database_url
from archid.central.tables import heads
from archid.config import CentralSettings
from archid.errors import Conflict, StorageError
from archid.log import get_logger
from archid.store.documents import DocumentStore
from protocol.envelope import Envelope
from protocol.errors import LimitExceeded
from protocol.head import Head
from protocol.ids import DocumentId, NodeId
from protocol.limits import MAX_HEAD_BYTES, MAX_SERIAL

log = get_logger(__name__)
T = TypeVar("T")
Denials = Sequence[tuple[str, bytes]]


class Ledger:
    """The database, the online keys, the gate, and what was signed last.

    `changed` is called in trio's thread with every new state, once its documents are kept.
    """

    def __init__(
        self,
        database: CentralDatabase,
        keys: OnlineKeys,
        state: SignedState,
        gate: CentralGate,
        signed_heads: dict[tuple[int, int], DocumentId],
        *,
        folder: Path,
        settings: CentralSettings,
        documents: DocumentStore,
        changed: Callable[[SignedState], None],
        clock: Callable[[], float],
    ) -> None:
        self.database = database
        self.keys = keys
        self._state = state
        self._gate = gate
        self._signed_heads = signed_heads
        self._folder = folder
        self._restored = was_restored(folder)
        self.settings = settings
        self.documents = documents
        self._changed = changed
        self.clock = clock
        self._one_thread = trio.CapacityLimiter(1)
        self._unkept = False
        self._being_kept = state.grants_root

    @classmethod
    def open(
        cls,
        settings: CentralSettings,
        *,
        state: Path,
        documents: DocumentStore,
        changed: Callable[[SignedState], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> Ledger:
        """Open the database in `state` (or where the settings say) and the online keys. Blocks.

        Raises StorageError, Conflict, Unavailable.
        """
        database = CentralDatabase.open(database_url(settings.database, state))
        try:
            with database.read() as connection:
                loaded = load_state(connection)
                if loaded is None:
                    raise Conflict(
                        "Central's database holds no fleet",
                        remedy="Make one with archid init, or restore the database from a backup",
                        code="no_fleet",
                    )
                repos = _repos(connection)
                signed_heads = {
                    (row.epoch, row.serial): _mark(row.envelope).id
                    for row in connection.execute(
                        sa.select(heads.c.epoch, heads.c.serial, heads.c.envelope)
                    )
                }
            take_up_next(state, loaded.root)
            keys = OnlineKeys.load(state)
            keep_documents(loaded, documents)
        except BaseException:
            database.close()
            raise
        gate = CentralGate(
            HeadMark.of(loaded.head),
            repos=repos,
            signed=signed_heads.get,
            now=clock(),
            restored=was_restored(state),
        )
        ledger = cls(
            database,
            keys,
            loaded,
            gate,
            signed_heads,
            folder=state,
            settings=settings,
            documents=documents,
            changed=changed,
            clock=clock,
        )
        ledger.check_keys()
        return ledger

    def close(self) -> None:
        """Close the database; nothing may be called afterwards."""
        self.database.close()

    @property
    def state(self) -> SignedState:
        """What was signed last."""
        return self._state

    @property
    def grants_roots(self) -> frozenset[DocumentId]:
        """The Grants roots whose leaves are put into the store, perhaps before anybody, central's
        own trust keeper included, believes a head that names them; from any thread.
        """
        return frozenset((self._state.grants_root, self._being_kept))

    @property
    def gate(self) -> CentralGate:
        """Whether central may sign, and if not, why."""
        return self._gate

    @property
    def restored(self) -> bool:
        """Whether the state is from a backup and nothing has been signed with it since."""
        return self._restored

    @property
    def folder(self) -> Path:
        """The state folder, where the keys are."""
        return self._folder

    @property
    def unkept(self) -> bool:
        """Whether the newest documents could not be put into the store yet."""
        return self._unkept

    @property
    def now_s(self) -> int:
        """The time in whole seconds, as it is written down."""
        return int(self.clock())

    def repos(self, connection: Connection) -> frozenset[NodeId]:
        """The REPOs that must be asked before central signs."""
        return _repos(connection)

    def check_keys(self) -> None:
        """Sign nothing while the newest Root names other keys than those that are here."""
        try:
            self.keys.check(self._state.root)
        except Conflict as error:
            log.error("keys_behind", why=error.sentence)
            self._gate.stop_for_keys(str(error))

    def took_over(self, state: SignedState) -> HeadMark:
        """A state came in from the fleet: it is the newest now."""
        self._state = state
        mark = HeadMark.of(state.head)
        self._signed_heads[mark.order] = mark.id
        self._changed(state)
        return mark

    async def change(
        self,
        change: Callable[[Connection], T],
        *,
        reason: str,
        confirm: bool = False,
        refresh: bool = False,
        above: int = 0,
        denied: Callable[[T], Denials] = lambda _: (),
        keys: OnlineKeys | None = None,
    ) -> T:
        """Change the definitions and sign what follows from it, in one transaction.

        With `keys`, `change` brings a Root that a person has signed and that names them; they are
        those that central signs with from then on, and whether it may sign was judged before.
        """
        signing_keys = keys or self.keys
        if keys is None:
            self._gate.require_open(now=self.clock())
        if self._restored and keys is None:
            # Numbers that nobody has shown may have been used since the backup all the same.
            above = max(above, min(self._gate.highest_serial + SERIAL_GAP, MAX_SERIAL - 1))

        def work() -> tuple[T, SignedState | None, StorageError | None]:
            with self.database.write() as connection:
                result = change(connection)
                try:
                    state = sign_state(
                        connection,
                        signing_keys,
                        now_s=int(self.clock()),
                        lifetime_s=int(self.settings.head_lifetime.total_seconds()),
                        reason=reason,
                        denied=denied(result),
                        confirm=confirm,
                        refresh=refresh,
                        above=above,
                    )
                except LimitExceeded as error:
                    raise Conflict(f"The fleet would outgrow a limit: {error}") from error
            # Committed: from here on the new state counts, kept or not.
            if keys is not None and state is not None:
                take_up_next(self._folder, state.root)
                self.keys = keys
            if state is not None and self._restored:
                forget_restored(self._folder)
                self._restored = False
            return result, state, None if state is None else self._keep(state)

        result, state, not_kept = await self.hop(work)
        if state is not None:
            self._state = state
            mark = HeadMark.of(state.head)
            self._signed_heads[mark.order] = mark.id
            if keys is not None:
                self._gate.began(mark)
            self._gate.signed(mark)
            self._unkept = not_kept is not None
            epoch, serial = state.order
            log.info("head_signed", epoch=epoch, serial=serial, why=reason)
            if not_kept is not None:
                # Told to nobody before the documents are there to be asked for; `tick` repeats.
                raise not_kept
            self._changed(state)
        return result

    def _keep(self, state: SignedState) -> StorageError | None:
        self._being_kept = state.grants_root  # said before the first leaf can be found in the store
        try:
            keep_documents(state, self.documents)
        except StorageError as error:
            return error
        return None

    async def keep_again(self) -> None:
        state = self._state
        if (error := await self.hop(lambda: self._keep(state))) is not None:
            raise error
        self._unkept = False
        self._changed(state)

    async def read(self, look: Callable[[Connection], T]) -> T:
        """Look into the database, in its thread."""
        return await self.hop(lambda: self.read_blocking(look))

    def read_blocking(self, look: Callable[[Connection], T]) -> T:
        """The same, for before trio runs."""
        with self.database.read() as connection:
            return look(connection)

    async def hop(self, work: Callable[[], T]) -> T:
        """Run in the one thread that owns the database; a cancelled caller still waits for it."""
        return await trio.to_thread.run_sync(work, limiter=self._one_thread)


def _mark(envelope: bytes) -> HeadMark:
    return HeadMark.of(Head.decode(Envelope.decode(envelope, max_bytes=MAX_HEAD_BYTES).payload))


def _repos(connection: Connection) -> frozenset[NodeId]:
    """The REPOs that must be asked before central signs."""
    return frozenset(
        node.node
        for node in present_nodes(connection)
        if node.place.role == "repo" and node.state == "ready"
    )
