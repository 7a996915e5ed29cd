"""Puts the services of one node together and runs them in one nursery.

The order matters only at the start: the listener is bound and the control socket answers before
the service manager is told that the node is ready.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from archid import __version__
from archid.addresses import Address
from archid.config import Config
from archid.control.server import ControlServer
from archid.daemon.certificates import Certificates
from archid.daemon.control_side import ControlSide
from archid.daemon.life import make_collector
from archid.daemon.metrics_side import MetricsSide
from archid.daemon.opening import OpenState
from archid.daemon.reloading import Reloader
from archid.daemon.runtime import give_back_memory
from archid.daemon.signals import watch_signals
from archid.daemon.watchdog import show_life
from archid.events import EventHub
from archid.log import configure, get_logger
from archid.net.dialer import Dialer
from archid.net.join_server import JoinServer
from archid.net.lane_desk import LaneDesk
from archid.net.lane_rooms import ROOMS
from archid.net.listener import Listener, open_listener
from archid.net.pacing import Pacing
from archid.net.peer import Peer
from archid.net.settings import DialerSettings, ListenerSettings, PeerSettings
from archid.net.switchboard import Switchboard
from archid.net.tls_contexts import TlsContexts
from archid.net.trusted_doorkeeper import TrustedDoorkeeper
from archid.notify import notify
from archid.roles import SERVICES
from archid.sync.address_book import AddressBook
from archid.sync.deliveries import Deliveries
from archid.sync.fellows import Fellows
from archid.sync.fetcher import Fetcher
from archid.sync.healing import Healing
from archid.sync.limits import Limits
from archid.sync.links import Links
from archid.sync.listings import Listings
from archid.sync.own_leaf import OwnLeaf
from archid.sync.peer_choice import PeerChoice
from archid.sync.peers import PeerDirectory
from archid.sync.plan_log import PlanLogs
from archid.sync.replicator import Replicator
from archid.sync.site_leaves import SiteLeaves
from archid.sync.states import Account, NodeStates
from archid.sync.trust_keeper import TrustKeeper
from archid.sync.whereabouts import Whereabouts
from protocol.features import FEATURES

if TYPE_CHECKING:
    from archid.daemon.central_side import CentralSide

log = get_logger(__name__)

IDLE_CHECK_S: Final = 15.0


class Node:
    """One node of a fleet, from the opened state to the last goodbye."""

    def __init__(
        self, config: Config, state: OpenState, stack: ExitStack, *, source: Path | None = None
    ) -> None:
        """`source` is the file that the configuration came from, to be read again on SIGHUP."""
        self._config = config
        self._state = state
        self._services = SERVICES[config.node.role]
        self._stop = trio.Event()
        self._listener: Listener | None = None
        self._control: ControlServer | None = None
        self.events = EventHub()
        self._reloader = Reloader(source, config, events=self.events, apply=self._take_up)
        node = state.identity.node_id
        self.keeper = TrustKeeper(
            state.trust,
            documents=state.documents,
            trust_file=state.trust_file,
            journal=state.journal,
            events=self.events,
        )
        self.directory = PeerDirectory(self.events)
        self.pacing = Pacing(self._site)
        self.leaf = OwnLeaf(node, keeper=self.keeper, directory=self.directory, events=self.events)
        # Central and REPOs have one another; they are not to weigh on the rooms.
        fellows = None if self._services.holds_everything else Fellows(node)
        self.fetcher = Fetcher(
            node,
            keeper=self.keeper,
            directory=self.directory,
            library=state.library,
            journal=state.journal,
            events=self.events,
            proof_for=self.leaf.proof_for,
            site=self._site,
            plan_logs=PlanLogs(state.paths.fetch_plans if config.log.fetch_plans else None),
            fellows=fellows,
        )
        self.healing = Healing(
            library=state.library,
            fetcher=self.fetcher,
            journal=state.journal,
            events=self.events,
            upkeep=state.upkeep,
            storage=config.storage,
        )
        self.listings = Listings(
            keeper=self.keeper,
            documents=state.documents,
            directory=self.directory,
            events=self.events,
        )
        self.deliveries = (
            Deliveries(
                leaf=self.leaf,
                fetcher=self.fetcher,
                library=state.library,
                journal=state.journal,
                events=self.events,
            )
            if self._services.deliveries
            else None
        )
        self._replicator = Replicator(
            listings=self.listings, fetcher=self.fetcher, library=state.library
        )
        self.collector = make_collector(
            state,
            keeper=self.keeper,
            leaf=self.leaf,
            listings=self.listings,
            fetcher=self.fetcher,
            deliveries=self.deliveries,
            events=self.events,
            keep_ungranted=lambda: self._config.storage.keep_ungranted,
        )
        self.limits = Limits(
            config.limits,
            pacing=self.pacing,
            slots=self.directory.spans.slots,
            journal=state.journal,
            events=self.events,
        )
        self.addresses = AddressBook(
            state.paths.addresses, node, config.node.role, self._advertised()
        )
        self.states = NodeStates(
            state.identity,
            incarnation=state.journal.advance("incarnation"),
            keeper=self.keeper,
            leaf=self.leaf,
            events=self.events,
            account=self._account,
            roster=self.listings.facts_of,
        )
        whereabouts = Whereabouts(lambda: self.leaf.facts, self.keeper, self.states)
        self._central = self._open_central(stack)
        self._doorkeeper = TrustedDoorkeeper(
            node=node,
            trusted=state.trust,
            leaf_of=self.keeper.leaf_of,
            keep_leaf=self.keeper.keep_leaf_document,
            keep=self.keeper.keep,
            on_fork=self.keeper.alarm_fork,
            features=FEATURES,
            software=f"archid {__version__}",
        )
        self._contexts = TlsContexts(state.identity, self.keeper.root.ca_certificates)
        self._certificates = Certificates(
            state.identity,
            self._contexts,
            self.keeper,
            self.directory,
            self.events,
            central=lambda: state.membership.central_addresses,
            issue=self._central.new_certificate if self._central else None,
        )
        settings = PeerSettings()
        lanes = LaneDesk(node, timeout_s=settings.admission_timeout_s)
        self._links = Links(
            keeper=self.keeper,
            doorkeeper=self._doorkeeper,
            directory=self.directory,
            leaf=self.leaf,
            library=state.library,
            addresses=self.addresses,
            states=self.states,
            lanes=lanes,
            whereabouts=whereabouts,
            on_admitted=self._central.on_admitted if self._central else _nothing,
        )
        joining = JoinServer(
            doorkeeper=self._doorkeeper,
            roots=self._roots,
            desk=self._central.desk if self._central else None,
            settings=settings,
        )
        self.switchboard = Switchboard(
            own=node,
            doorkeeper=self._doorkeeper,
            contexts=self._contexts,
            settings=settings,
            session=self._links.session,
            newcomer=joining.serve,
            lanes=lanes,
            now=time.time,
            pacing=self.pacing,
        )
        self._peer_choice = PeerChoice(
            node,
            holder=self._services.holds_everything,
            max_peers=config.network.max_peers,
            pinned=lambda: self._config.network.peers,
            central=() if self._central else state.membership.central_addresses,
            not_dialled=self._advertised,
            keeper=self.keeper,
            leaf=self.leaf,
            addresses=self.addresses,
            states=self.states,
            directory=self.directory,
            fellows=fellows,
        )
        self.dialer = Dialer(
            self.switchboard, DialerSettings(), on_failed=self._peer_choice.dial_failed
        )
        self._metrics = MetricsSide(
            config.metrics.listen, self._central.fleet if self._central else None
        )
        self._answers = ControlSide(
            config,
            state,
            listen=lambda: self._listener.addresses if self._listener else (),
            advertised=self._advertised(),
            site=self._site,
            keeper=self.keeper,
            leaf=self.leaf,
            switchboard=self.switchboard,
            dialer=self.dialer,
            fetcher=self.fetcher,
            healing=self.healing,
            limits=self.limits,
            deliveries=self.deliveries,
            listings=self.listings,
            replicator=self._replicator,
            collector=self.collector,
            central=self._central,
            metrics=self._metrics,
            stop=self._stop.set,
        )

    def _open_central(self, stack: ExitStack) -> CentralSide | None:
        if not self._services.control_plane:
            return None
        # Imported here: only central needs SQLAlchemy and what comes with it.
        from archid.daemon.central_side import CentralSide

        return CentralSide(
            self._config,
            self._state,
            stack,
            keeper=self.keeper,
            listings=self.listings,
            directory=self.directory,
            states=self.states,
            events=self.events,
            advertised=self._advertised(),
        )

    async def run(self) -> None:
        """Run until stopped; raises ArchidError when a service cannot start."""
        token = trio.lowlevel.current_trio_token()
        self._state.library.on_loss = lambda: token.run_sync_soon(self.fetcher.look_again)
        await trio.to_thread.run_sync(self.limits.load)
        self.limits.apply()
        await self.leaf.load()
        if self.deliveries is not None:
            # Who asks, or rolls back, as soon as there is a socket is to be told by what was.
            await self.deliveries.load()
        self._listener = await open_listener(self._config.network.listen)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_signals, self._stop.set, self._reloader.reload)
                self._control = ControlServer(
                    self._config.control,
                    self._answers.handlers(),
                    self.events,
                    role=self._config.node.role,
                )
                await nursery.start(self._control.serve)
                for service in self._tasks():
                    nursery.start_soon(service)
                nursery.start_soon(self._listener.run, self.switchboard, ListenerSettings())
                log.info(
                    "daemon_ready",
                    node=self._state.identity.node_id.short,
                    role=self._config.node.role,
                    listen=[str(address) for address in self._listener.addresses],
                )
                notify("READY=1", f"STATUS=archid {self._config.node.role} is ready")
                self.events.publish("daemon.ready")
                await self._stop.wait()
                log.info("daemon_stopping")
                self.events.publish("daemon.stopping")
                nursery.cancel_scope.cancel()
        finally:
            self._listener.close()

    def _tasks(self) -> Sequence[Callable[[], Awaitable[None]]]:
        tasks: list[Callable[[], Awaitable[None]]] = [
            self.keeper.run,
            self.leaf.run,
            self.fetcher.run,
            self.healing.run,
            self.healing.scrub.run,
            self.dialer.run,
            self.states.run,
            partial(self._peer_choice.run, self.dialer, self.switchboard),
            self._certificates.run,
            self._release_idle,
            self.collector.run,
            self.limits.run,
            show_life,
            lambda: self._metrics.run(self._answers.status),
        ]
        if self._services.holds_everything:
            tasks += [self._run_listings, self._replicator.run]
        if self.deliveries is not None:
            site_leaves = SiteLeaves(
                self.leaf, self.keeper, self.directory, self.states, self.events
            )
            tasks += [self.deliveries.run, site_leaves.run]
        if self._central is not None:
            tasks += self._central.tasks()
        return tasks

    async def _run_listings(self) -> None:
        await self.listings.load()
        await self.listings.run()

    def _take_up(self, config: Config) -> None:
        """What of a changed configuration a running node follows: archid.daemon.reloading."""
        self._config = config
        configure(config.log)
        self._state.library.keep_free_bytes = config.storage.keep_free_bytes
        self.healing.take_up(config.storage)
        self.limits.take_up(config.limits)
        if self._control is not None:
            self._control.set_admin_group(config.control.admin_group)
        if self._central is not None:
            self._central.take_up(config.central)
        self._peer_choice.poke()  # dial what [network] peers names now

    async def _release_idle(self) -> None:
        while True:
            await trio.sleep(IDLE_CHECK_S)
            await trio.to_thread.run_sync(self._rest)

    def _rest(self) -> None:
        if self._state.trees.release_idle(time.time()):
            # After a fetch: what is left of it in cycles and caches keeps the memory around it.
            gc.collect()
            for database in self._state.databases:
                database.release_memory()
        ROOMS.release()
        give_back_memory()

    async def _account(self) -> Account:
        return await self._answers.account()

    def _site(self) -> str:
        return self.leaf.facts.site if self.leaf.facts else ""

    def _advertised(self) -> tuple[Address, ...]:
        network = self._config.network
        return network.advertise or tuple(one for one in network.listen if not one.is_wildcard)

    def _roots(self) -> Sequence[bytes]:
        roots = self.keeper.trust.roots
        return [roots[version].encode() for version in sorted(roots)]


async def _nothing(_peer: Peer) -> None:
    return
