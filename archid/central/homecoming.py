"""Central comes back, perhaps from an old backup: it asks before it signs.

Every peer that connects is asked for its newest head. When one is newer than the database, all
that is under it is fetched as a REPO would, and the database is rebuilt from it. What to believe
and whether to sign is `archid.central.recovery`'s; here the questions are asked and the answers
carried.
"""

from __future__ import annotations

import contextlib
from typing import Final

import trio

from archid.central.recovery import GateState
from archid.central.service import CentralService
from archid.errors import ArchidError, NotFound, TrustFailure
from archid.events import EventHub
from archid.log import get_logger
from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.peer import Peer
from archid.store.library import Library
from archid.sync.listings import Listings
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal, either
from archid.sync.trust_keeper import TrustKeeper
from protocol.envelope import Envelope
from protocol.errors import FormatError, ProtocolError
from protocol.ids import ManifestId, NodeId
from protocol.messages import GetHead, GetManifest, HeadAnswer, ManifestAnswer
from protocol.publication import MAX_PUBLICATION_BYTES, manifest_of

log = get_logger(__name__)

RETRY_S: Final = 2.0


class Homecoming:
    """Asks peers for their heads and imports what is newer than the database."""

    def __init__(
        self,
        service: CentralService,
        *,
        node: NodeId,
        keeper: TrustKeeper,
        listings: Listings,
        library: Library,
        directory: PeerDirectory,
        events: EventHub,
    ) -> None:
        self._service = service
        self._node = node
        self._keeper = keeper
        self._listings = listings
        self._library = library
        self._directory = directory
        self._events = events
        self._shown = Signal()

    async def on_admitted(self, peer: Peer) -> None:
        """Ask a peer for its newest head; raises PeerLost, PeerRefused, PeerTooSlow.

        Being admitted with its certificate also proves that a newcomer has stored everything.
        """
        with contextlib.suppress(NotFound):
            await self._service.membership.confirm(peer.node)
        answer = await peer.request(GetHead(0), HeadAnswer)
        self._take(peer.node, answer.head)
        self._shown.fire()

    def _take(self, node: NodeId, head: bytes) -> None:
        before = self._service.gate.state
        try:
            after = self._service.head_shown(node, head or None, roots=self._roots())
        except TrustFailure as error:
            log.warning("head_not_of_this_fleet", node=node.short, why=str(error))
            return
        if before is not after:
            self._tell_gate()
            self._alarmed_if_stopped()

    async def run(self) -> None:
        """Import when there is something newer, until cancelled."""
        while True:
            seen = (
                (self._shown, self._shown.version),
                (self._keeper.changed, self._keeper.changed.version),
                (self._listings.changed, self._listings.changed.version),
            )
            if self._keeper.order > self._service.state.order:
                self._take(self._node, self._keeper.head_bytes()[0])
            if self._service.gate.state is not GateState.IMPORTING:
                await either(*seen)
                continue
            try:
                await self._import()
            except (ArchidError, ProtocolError) as error:
                if not self._alarmed_if_stopped():
                    log.info("import_waits", why=str(error))
            with trio.move_on_after(RETRY_S):
                await either(*seen)

    async def _import(self) -> None:
        for row in self._listings.catalogue:
            if await trio.to_thread.run_sync(self._library.manifest_envelope, row.manifest) is None:
                await self._fetch_manifest(row.manifest)
        await self._service.import_newer(self._keeper.head_bytes()[0], roots=self._roots())
        self._tell_gate()
        self._alarmed_if_stopped()  # imported, and its keys are older than that

    async def _fetch_manifest(self, manifest: ManifestId) -> None:
        for peer in self._directory.holders_of_everything():
            try:
                answer = await peer.request(GetManifest(0, manifest), ManifestAnswer)
                envelope = Envelope.decode(answer.envelope, max_bytes=MAX_PUBLICATION_BYTES)
                if manifest_of(envelope) != manifest:
                    raise FormatError("the manifest is not the one that was asked for")
            except (PeerLost, PeerRefused, PeerTooSlow, ProtocolError) as error:
                log.info("manifest_not_given", node=peer.node.short, why=str(error))
                continue
            # Its signatures are judged when it is imported.
            await trio.to_thread.run_sync(self._library.keep_manifest, answer.envelope)
            return

    def _roots(self) -> tuple[bytes, ...]:
        roots = self._keeper.trust.roots
        return tuple(roots[version].encode() for version in sorted(roots))

    def _tell_gate(self) -> None:
        gate = self._service.gate
        self._events.publish("central.gate", state=gate.state.value, reason=gate.reason)

    def _alarmed_if_stopped(self) -> bool:
        gate = self._service.gate
        if gate.state is not GateState.STOPPED:
            return False
        log.error("central_stopped", why=gate.reason)
        self._events.publish("alarm", code="central_stopped", sentence=gate.reason)
        return True
