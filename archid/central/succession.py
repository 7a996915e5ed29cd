"""Heads over time: refreshed while central runs, and looked at when others show theirs.

The rules for a central that comes back are `archid.central.recovery`'s; here they meet signatures,
the document store and the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from archid.central.importing import collect_documents, import_documents
from archid.central.ledger import Ledger
from archid.central.recovery import GateState, HeadMark
from archid.central.signed_state import SignedState, load_state
from archid.central.signing import refresh_at_s
from archid.errors import ArchidError, Conflict, TrustFailure
from archid.log import get_logger
from protocol.envelope import Envelope
from protocol.errors import ProtocolError, TrustError
from protocol.head import Head
from protocol.ids import NodeId
from protocol.limits import MAX_HEAD_BYTES, MAX_ROOT_BYTES
from protocol.root import Root
from protocol.trust import SignatureMissing, signed_by_role

log = get_logger(__name__)

LONGEST_NAP_S: Final = 60.0
SHORTEST_NAP_S: Final = 1.0


class Succession:
    """Which head follows which; works on the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def tick(self) -> float:
        """Refresh the head if it is time; returns after how many seconds to ask again."""
        now = self._ledger.clock()
        refresh_s = int(self._ledger.settings.head_refresh.total_seconds())
        self._ledger.gate.tick(now=now)
        if not self._ledger.gate.is_open:
            return SHORTEST_NAP_S
        due_s = refresh_at_s(self._ledger.state.head, refresh_s=refresh_s)
        if self._ledger.unkept:
            await self._ledger.keep_again()
        if now >= due_s or not self._ledger.state.complete:
            await self._ledger.change(
                lambda _: None, reason="refreshed", refresh=True, confirm=False
            )
            due_s = refresh_at_s(self._ledger.state.head, refresh_s=refresh_s)
        return min(max(due_s - self._ledger.clock(), SHORTEST_NAP_S), LONGEST_NAP_S)

    async def run(self) -> None:
        """Keep the head fresh for as long as central runs."""
        while True:
            try:
                nap_s = await self.tick()
            except ArchidError as error:
                log.error("head_not_refreshed", why=error.sentence)
                nap_s = LONGEST_NAP_S
            await trio.sleep(nap_s)

    def head_shown(
        self, peer: NodeId, head: bytes | None, *, roots: Sequence[bytes] = ()
    ) -> GateState:
        """A peer showed its newest head (None: it has none yet); REPOs answer with it.

        `roots` are Root envelopes, believed already, beyond those of the database. Raises
        TrustFailure when no key of the role `head` signed it; then it counts for nothing.
        """
        shown: HeadMark | None = None
        if head is not None:
            try:
                shown = self._verified_mark(head, roots)
            except ProtocolError as error:
                raise TrustFailure(
                    f"The head that {peer.short} showed is not the fleet's: {error}"
                ) from error
        before = self._ledger.gate.state
        after = self._ledger.gate.head_shown(peer, shown, now=self._ledger.clock())
        if after is not before:
            if after is GateState.STOPPED:
                log.error("central_stopped", why=self._ledger.gate.reason, peer=peer.short)
            else:
                log.info("central_gate", state=after.value, why=self._ledger.gate.reason)
        return after

    async def import_newer(self, head: bytes, *, roots: Sequence[bytes]) -> GateState:
        """Take over a newer head from the document store, where everything under it is.

        Raises Unavailable (documents_missing) while something has not been fetched. When the
        documents contradict the database, central stops and the error says why.
        """

        def work() -> tuple[SignedState, frozenset[NodeId]]:
            found = collect_documents(self._ledger.documents, head=head, roots=roots)
            with self._ledger.database.write() as connection:
                import_documents(connection, self._ledger.keys, found, now_s=self._ledger.now_s)
                loaded = load_state(connection)
                if loaded is None:
                    raise AssertionError("the imported head is gone")
                return loaded, self._ledger.repos(connection)

        try:
            state, repos = await self._ledger.hop(work)
        except (ProtocolError, Conflict) as error:
            why = f"The newer documents of the fleet cannot be imported: {error}"
            self._ledger.gate.import_failed(why)
            log.error("central_stopped", why=why)
            raise Conflict(why, remedy="Let a person look", code="central_stopped") from error
        mark = self._ledger.took_over(state)
        self._ledger.gate.imported(mark, repos=repos, now=self._ledger.clock())
        self._ledger.check_keys()
        after = self._ledger.gate.state
        log.info("central_imported", epoch=mark.order[0], serial=mark.order[1])
        return after

    async def trust_database(self, *, by: str) -> SignedState:
        """A person decides that the database counts: sign above everything that was shown.

        Raises Conflict when the fleet is in a newer epoch.
        """
        above = self._ledger.gate.trust_database()
        log.warning("central_trusts_its_database", by=by, above=above)
        await self._ledger.change(
            lambda _: None, reason=f"the database was trusted by {by}", refresh=True, above=above
        )
        return self._ledger.state

    def _verified_mark(self, head: bytes, roots: Sequence[bytes]) -> HeadMark:
        envelope = Envelope.decode(head, max_bytes=MAX_HEAD_BYTES)
        problem: TrustError | None = None
        for data in reversed((*self._ledger.state.roots, *roots)):
            root = Root.decode(Envelope.decode(data, max_bytes=MAX_ROOT_BYTES).payload)
            try:
                content = Head.decode(signed_by_role(envelope, Head.TYPE, root, "head"))
            except SignatureMissing as error:
                problem = error
                continue
            if content.fleet != self._ledger.state.root.fleet:
                raise TrustError("it belongs to another fleet")
            return HeadMark.of(content)
        raise problem or TrustError("no Root is held")
