"""What central runs beside what every node runs: definitions, signing, joining, publishing.

Imported by central only, since a database library comes along with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from archid.addresses import Address
from archid.central.fleet_view import FleetView
from archid.central.homecoming import Homecoming
from archid.central.methods import CentralMethods
from archid.central.publish_dialogue import PublishDialogue
from archid.central.publishing import PublishedVersion
from archid.central.root_methods import RootMethods
from archid.central.service import CentralService
from archid.central.signed_state import SignedState
from archid.config import CentralSettings, Config
from archid.control.node_methods import Listed
from archid.control.node_status import Reason
from archid.control.server import Handler
from archid.daemon.opening import OpenState
from archid.errors import ArchidError
from archid.events import EventHub
from archid.log import get_logger
from archid.net.join_server import TokenDesk
from archid.net.peer import Peer
from archid.store.errors import DocumentMissing
from archid.store.library import Library
from archid.sync.listings import Listings
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal
from archid.sync.states import NodeStates
from archid.sync.trust_keeper import TrustKeeper
from protocol.envelope import PublicKey
from protocol.errors import ProtocolError

log = get_logger(__name__)


class CentralSide:
    """Central's services over an opened state."""

    def __init__(
        self,
        config: Config,
        state: OpenState,
        stack: ExitStack,
        *,
        keeper: TrustKeeper,
        listings: Listings,
        directory: PeerDirectory,
        states: NodeStates,
        events: EventHub,
        advertised: Sequence[Address],
    ) -> None:
        self._keeper = keeper
        self._events = events
        self._signed = Signal()
        self._service = CentralService.open(
            config.central,
            state=Path(state.paths.state),
            node=state.identity.node_id,
            addresses=advertised,
            documents=state.documents,
            changed=lambda _state: self._signed.fire(),
        )
        stack.callback(self._service.close)
        keeper.signed_here = lambda: self._service.grants_roots
        _explain_trees(state.library, self._service.publications())
        publish = PublishDialogue(
            self._service, library=state.library, sources=state.sources, events=events
        )
        self._root_methods = RootMethods(
            self._service.root_desk(
                lambda: [
                    keeper.trust.roots[version].encode() for version in sorted(keeper.trust.roots)
                ]
            )
        )
        self._view = FleetView(self._service, states)
        self._methods = CentralMethods(self._service, publish, self._view)
        self._homecoming = Homecoming(
            self._service,
            node=state.identity.node_id,
            keeper=keeper,
            listings=listings,
            library=state.library,
            directory=directory,
            events=events,
        )

    @property
    def desk(self) -> TokenDesk:
        """Where tokens are redeemed."""
        return self._service.membership

    def handlers(self) -> Mapping[str, Handler]:
        """Central's own methods of the control socket."""
        return {**self._methods.handlers(), **self._root_methods.handlers()}

    async def new_certificate(self, key: PublicKey) -> bytes:
        """A certificate for central's own key by the CA that issues now."""
        return self._service.own_certificate(key)

    def tasks(self) -> list[Callable[[], Awaitable[None]]]:
        """What runs for as long as the node does."""
        return [self._service.run, self._homecoming.run, self._believe_what_was_signed]

    def take_up(self, settings: CentralSettings) -> None:
        """What central's section of the configuration says from now on."""
        self._service.take_up(settings)

    async def on_admitted(self, peer: Peer) -> None:
        """Ask every peer for its newest head; raises what `Peer.request` raises."""
        await self._homecoming.on_admitted(peer)

    async def fleet(self) -> dict[str, Any]:
        """The whole fleet, as the method ``fleet`` answers."""
        return await self._view.fleet()

    def reasons(self) -> Sequence[Reason]:
        """What of central's own needs attention."""
        refusal = self._service.gate.refusal()
        if refusal is None:
            return ()
        level = "alarm" if refusal.code == "central_stopped" else "attention"
        return (Reason(level, refusal.code, str(refusal), refusal.remedy),)

    async def listing(self) -> Sequence[Listed]:
        """Every published version, as the control method ``scripts`` shows it."""
        names = await self._service.release_names()
        return [
            Listed(
                one.manifest,
                one.name,
                one.kind,
                one.version,
                published_s=one.published_s,
                releases=tuple(names.get(one.manifest, ())),
            )
            for one in await self._service.scripts()
        ]

    async def _believe_what_was_signed(self) -> None:
        """Central believes what it signs as every other node does: by verifying it."""
        seen = -1
        while True:
            seen = await self._signed.wait(seen)
            # The newest state is all that counts: it brings every Root.
            await self._believe(self._service.state)

    async def _believe(self, state: SignedState) -> None:
        try:
            for root in state.roots[self._keeper.root.version :]:
                await self._keeper.accept_root(root)
            if state.order > self._keeper.order:
                await self._keeper.accept_head(state.head_envelope, state.grants_envelope)
        except (ArchidError, ProtocolError) as error:
            log.error("signed_state_refused", why=str(error))
            self._events.publish("alarm", code="signed_state_refused", sentence=str(error))


def _explain_trees(library: Library, publications: Sequence[PublishedVersion]) -> None:
    """Settle the trees whose manifests are not here; blocks, before anything is published.

    A manifest that is in the catalogue was lost on disk and is put back; a tree that is not was
    placed by a publication that a crash kept from being recorded, and goes.
    """
    published = {one.manifest: one for one in publications}
    for manifest in library.unexplained():
        if manifest not in published:
            library.drop(manifest)
            log.info("unrecorded_tree_removed", manifest=manifest.short)
            continue
        library.keep_manifest(published[manifest].envelope)
        try:
            library.add_placed(manifest)
        except DocumentMissing as error:
            log.warning("tree_without_pieces", manifest=manifest.short, why=str(error))
