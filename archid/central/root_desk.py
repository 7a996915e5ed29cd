"""Where a new Root comes into force: made here, signed elsewhere with the root keys, taken up here.

The root keys never come near the daemon. It draws the new online keys and says how the next Root
reads; a person's command signs that and brings the signatures back. Until then nothing has
changed. That is also the way out when central cannot go on otherwise: stolen keys, two centrals,
keys older than the fleet's Root, serials that were run up to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
import trio
from sqlalchemy.engine import Connection

from archid.central.ledger import Ledger
from archid.central.recovery import GateState
from archid.central.restoring import SERIAL_GAP
from archid.central.rotation import NextRoot, RootChange, next_root
from archid.central.tables import roots
from archid.errors import Conflict, TrustFailure, Unavailable
from archid.log import get_logger
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.ids import DocumentId
from protocol.limits import MAX_ROOT_BYTES
from protocol.root import Root
from protocol.trust import TrustedDocuments

log = get_logger(__name__)


class RootDesk:
    """One Root at a time is on the desk; another one takes its place."""

    def __init__(self, ledger: Ledger, *, believed: Callable[[], Sequence[bytes]]) -> None:
        """`believed` are the Roots that this node believes, which may be more than it knew of."""
        self._ledger = ledger
        self._believed = believed
        self._turn = trio.Lock()
        self._waiting: NextRoot | None = None
        self._change: RootChange | None = None

    async def prepare(self, change: RootChange, *, by: str) -> dict[str, Any]:
        """Draw keys and say how the next Root reads; nothing is in force yet.

        Raises UsageError, Conflict, Unavailable while central asks or imports, StorageError.
        """
        self._require_allowed(change)
        async with self._turn:
            current = self._newest()
            made = next_root(current, self._ledger.keys, change, now_s=self._ledger.now_s)
            await self._ledger.hop(lambda: made.keys.save_next(self._ledger.folder))
            self._waiting, self._change = made, change
        log.info("root_prepared", version=made.root.version, epoch=made.root.epoch, by=by)
        threshold, _ = current.keys_of("root")
        return {
            "root": made.root.encode().hex(),
            "version": made.root.version,
            "epoch": made.root.epoch,
            "replaced": list(made.replaced),
            "cas": len(made.root.ca_certificates),
            "threshold": threshold,
        }

    async def install(self, envelope: bytes, *, by: str) -> dict[str, Any]:
        """Put the Root on the desk into force, once enough root keys have signed it.

        Raises Conflict when it is not the one on the desk, TrustFailure when signatures are
        missing, StorageError.
        """
        async with self._turn:
            made, change = self._waiting, self._change
            if made is None or change is None:
                raise _outdated()
            self._require_allowed(change)
            known = self._verified(envelope, made)
            reason = f"{by} began an epoch" if change.new_epoch else f"{by} replaced keys"
            above = 0
            if not change.new_epoch:
                gap = SERIAL_GAP if self._ledger.restored else 0
                above = self._ledger.gate.highest_serial + gap

            def insert(connection: Connection) -> None:
                held = set(connection.execute(sa.select(roots.c.version)).scalars())
                for version, data in known:
                    if version not in held:
                        connection.execute(roots.insert().values(version=version, envelope=data))

            await self._ledger.change(
                insert,
                reason=reason,
                refresh=True,
                confirm=True,
                above=above,
                keys=made.keys,
            )
            self._waiting = self._change = None
        epoch, serial = self._ledger.state.order
        log.warning("root_replaced", version=made.root.version, epoch=epoch, by=by)
        return {
            "version": made.root.version,
            "epoch": made.root.epoch,
            "replaced": list(made.replaced),
            "cas": len(made.root.ca_certificates),
            "head": {"epoch": epoch, "serial": serial},
        }

    def _require_allowed(self, change: RootChange) -> None:
        """A Root may be made while central may sign, and where it is the way out."""
        gate = self._ledger.gate
        gate.tick(now=self._ledger.clock())
        way_out = change.new_epoch or gate.keys_behind
        if gate.is_open or (gate.state is GateState.STOPPED and way_out):
            return
        if change.new_epoch and change.at_once:
            return
        refusal = gate.refusal() or Unavailable("Central cannot sign now")
        if gate.state is not GateState.STOPPED and change.new_epoch:
            raise Unavailable(
                refusal.message,
                remedy="Repeat it in a moment, so that nothing newer is lost; if it never comes,"
                " give --at-once, and this central's database is what counts",
                code=refusal.code,
            )
        if gate.state is not GateState.STOPPED:
            raise refusal
        raise Conflict(
            str(refusal),
            remedy="Find out which central is the right one; if it is this one, begin a new"
            " epoch: archid epoch new",
            code="central_stopped",
        )

    def _newest(self) -> Root:
        return self._trusted().root or self._ledger.state.root

    def _trusted(self) -> TrustedDocuments:
        """Every Root that the database or this node knows, verified one after the other."""
        envelopes = [_decoded(data) for data in self._ledger.state.roots]
        trusted = TrustedDocuments(fleet=self._ledger.state.root.fleet)
        trusted.accept_first_root(envelopes[0], DocumentId.of(envelopes[0].payload))
        for envelope in (*envelopes[1:], *map(_decoded, self._believed())):
            version = Root.decode(envelope.payload).version
            if version not in trusted.roots:
                trusted.accept_root(envelope)
        return trusted

    def _verified(self, envelope: bytes, made: NextRoot) -> list[tuple[int, bytes]]:
        """Every Root from the first to the new one, with its version."""
        try:
            decoded = _decoded(envelope)
            if decoded.payload != made.root.encode():
                raise _outdated()
            trusted = self._trusted()
            if trusted.root is None or trusted.root.version + 1 != made.root.version:
                raise _outdated()
            trusted.accept_root(decoded)
        except ProtocolError as error:
            raise TrustFailure(
                f"The new Root is not signed as it must be: {error}",
                remedy="Sign it with as many root keys as the fleet asks for, from the file that"
                " belongs to this fleet",
                code="root_unsigned",
            ) from error
        return [(version, each.encode()) for version, each in trusted.roots.items()]


def _decoded(data: bytes) -> Envelope:
    return Envelope.decode(data, max_bytes=MAX_ROOT_BYTES)


def _outdated() -> Conflict:
    return Conflict(
        "This is not the Root that was prepared last",
        remedy="Nothing was changed; repeat the command",
        code="root_outdated",
    )
