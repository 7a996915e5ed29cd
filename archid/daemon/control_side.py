"""What a node answers on its control socket: puts the handlers of its services together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from archid.addresses import Address
from archid.config import Config
from archid.control.account import account_of
from archid.control.journal_methods import with_journal
from archid.control.keeping_methods import KeepingMethods
from archid.control.limits_methods import LimitsMethods, counted
from archid.control.node_methods import Listed, NodeMethods
from archid.control.node_status import NodeStatus, Reason
from archid.control.server import Handler
from archid.daemon.life import moving_handlers
from archid.daemon.metrics_side import MetricsSide
from archid.daemon.opening import OpenState
from archid.net.dialer import Dialer
from archid.net.switchboard import Switchboard
from archid.sync.collector import Collector
from archid.sync.deliveries import Deliveries
from archid.sync.fetcher import Fetcher
from archid.sync.healing import Healing
from archid.sync.limits import Limits
from archid.sync.listings import Listings
from archid.sync.own_leaf import OwnLeaf
from archid.sync.replicator import Replicator
from archid.sync.states import Account
from archid.sync.trust_keeper import TrustKeeper

if TYPE_CHECKING:
    from archid.daemon.central_side import CentralSide


class ControlSide:
    """The status of one node, and everything that it can be asked for."""

    def __init__(
        self,
        config: Config,
        state: OpenState,
        *,
        listen: Callable[[], Sequence[Address]],
        advertised: Sequence[Address],
        site: Callable[[], str],
        keeper: TrustKeeper,
        leaf: OwnLeaf,
        switchboard: Switchboard,
        dialer: Dialer,
        fetcher: Fetcher,
        healing: Healing,
        limits: Limits,
        deliveries: Deliveries | None,
        listings: Listings,
        replicator: Replicator,
        collector: Collector,
        central: CentralSide | None,
        metrics: MetricsSide,
        stop: Callable[[], None],
    ) -> None:
        """`stop` ends the daemon; `deliveries` are an ICE server's, `central` is central's."""
        self._state = state
        self._site = site
        self._switchboard = switchboard
        self._fetcher = fetcher
        self._limits = limits
        self._deliveries = deliveries
        self._listings = listings
        self._replicator = replicator
        self._central = central
        self._metrics = metrics
        self._stop = stop
        self._keeping = KeepingMethods(state.library, collector)
        self.status = NodeStatus(
            role=config.node.role,
            node=state.identity.node_id.hex(),
            membership=state.membership,
            listen=listen,
            advertise=advertised,
            keeper=keeper,
            leaf=leaf,
            switchboard=switchboard,
            dialer=dialer,
            fetcher=fetcher,
            library=state.library,
            healing=healing,
            documents=state.documents,
            limits=limits,
            started_s=int(time.time()),
            deliveries=deliveries,
            extra_reasons=self._reasons,
            pins=self._keeping.all_pins,
        )

    def _reasons(self) -> Sequence[Reason]:
        return (*(self._central.reasons() if self._central else ()), *self._metrics.reasons())

    async def account(self) -> Account:
        """What this node says of itself in its state."""
        return await account_of(self.status)

    def handlers(self) -> Mapping[str, Handler]:
        """By the names of their requests."""
        methods = NodeMethods(
            self.status,
            library=self._state.library,
            fetcher=self._fetcher,
            listing=self._central.listing if self._central else self._listing,
            stop=self._stop,
        )
        handlers = {
            **methods.handlers(),
            **self._keeping.handlers(),
            **LimitsMethods(
                self._limits, partial(counted, self._switchboard), own_site=self._site
            ).handlers(),
            **moving_handlers(
                self._state.library, self._fetcher, self._deliveries, self._replicator
            ),
        }
        if self._central is not None:
            handlers.pop("leave")
            handlers.update(self._central.handlers())
        return with_journal(handlers, self._state.journal)

    async def _listing(self) -> Sequence[Listed]:
        if self._deliveries is None:
            return [
                Listed(row.manifest, row.name, row.kind, row.version)
                for row in self._listings.catalogue
            ]
        return [
            Listed(manifest, "", kind, 0, releases=tuple(self._deliveries.releases_of(manifest)))
            for manifest, kind in self._deliveries.manifests()
        ]
