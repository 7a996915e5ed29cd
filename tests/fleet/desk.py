"""Changes at central for which there is no command yet, made while its daemon is stopped.

The service that the daemon runs is opened on the same state, does one thing, and is closed; the
daemon then starts with what was signed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from archid.addresses import parse_address
from archid.central.recovery import GateState
from archid.central.service import CentralService
from archid.config import load_config
from archid.identity import Identity
from archid.store.documents import DocumentStore
from archid.store.layout import StateLock, StatePaths
from archid.store.trust_file import TrustFile
from protocol.ids import NodeId
from tests.fleet.local import FleetNode, LocalFleet

T = TypeVar("T")


def at_the_desk(fleet: LocalFleet, work: Callable[[CentralService], Awaitable[T]]) -> T:
    """Run `work` on central's state, whose daemon is stopped meanwhile if it runs.

    The REPOs count as asked: what each of them holds is read from its state folder.
    """
    central = fleet.central
    running = central.process.running
    if running:
        central.process.stop()
    paths = StatePaths(central.state, central.scripts)
    with StateLock(paths.lock):
        service = CentralService.open(
            load_config(central.config).central,
            state=central.state,
            node=Identity.load(central.state).node_id,
            addresses=[parse_address(central.address)],
            documents=DocumentStore(paths.documents),
        )
        try:

            async def run() -> T:
                for node in fleet.nodes.values():
                    if node.role == "repo":
                        service.head_shown(node_id(node), newest_head(node))
                assert service.gate.state is GateState.OPEN, service.gate.reason
                return await work(service)

            result = trio.run(run)
        finally:
            service.close()
    if running:
        central.process.start()
        wait_until_open(central)
    return result


def wait_until_open(central: FleetNode) -> None:
    """Return when a central that was started has heard what it must before it signs again."""
    central.wait(
        lambda status: "central_asking" not in {r["code"] for r in status["health"]["reasons"]},
        what="the REPOs' answer",
    )


def node_id(node: FleetNode) -> NodeId:
    """Who a node is, by its state folder."""
    return Identity.load(node.state).node_id


def newest_head(node: FleetNode) -> bytes:
    """The envelope of the head that a node's trust file holds."""
    state = TrustFile(node.state / "trust").load()
    assert state is not None
    assert state.head is not None
    return state.head
