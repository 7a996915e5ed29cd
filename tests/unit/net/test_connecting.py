"""Listener, dialer and switchboard together, over loopback."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from archid.addresses import Address
from archid.identity import Identity
from archid.net.dialer import Dialer
from archid.net.errors import AlreadyConnected, PeerLost
from archid.net.lane_desk import LaneDesk
from archid.net.listener import CannotListen, Listener, open_listener
from archid.net.peer import Peer
from archid.net.settings import DialerSettings, ListenerSettings
from archid.net.switchboard import Switchboard
from archid.net.tls import TLSStream
from archid.net.tls_contexts import TlsContexts
from protocol.connection_states import Side
from protocol.ids import NodeId
from protocol.messages import ErrorCode
from tests.unit.net.fleet_nodes import SETTINGS, FleetNodes, Node

FAST = DialerSettings(first_wait_s=0.01, longest_wait_s=0.02, connect_timeout_s=5)
LOOPBACK = Address("127.0.0.1", 0)


@dataclass
class Running:
    """A node that listens and dials."""

    node: Node
    listener: Listener
    switchboard: Switchboard
    dialer: Dialer
    arrived: trio.MemoryReceiveChannel[Peer]
    scope: trio.CancelScope

    @property
    def address(self) -> Address:
        return self.listener.addresses[0]

    @property
    def id(self) -> NodeId:
        return self.node.identity.node_id


async def start(
    nursery: trio.Nursery,
    node: Node,
    *,
    dial: Iterable[Address] = (),
    addresses: Iterable[Address] = (LOOPBACK,),
    settings: ListenerSettings | None = None,
) -> Running:
    arrivals, arrived = trio.open_memory_channel[Peer](100)

    async def session(peer: Peer) -> None:
        await arrivals.send(peer)
        await peer.closed.wait()

    async def newcomer(stream: TLSStream) -> None:
        await stream.aclose()

    switchboard = Switchboard(
        own=node.identity.node_id,
        doorkeeper=node.doorkeeper,
        contexts=TlsContexts(node.identity, [node.tls.ca]),
        settings=SETTINGS,
        session=session,
        newcomer=newcomer,
        lanes=LaneDesk(node.identity.node_id, timeout_s=SETTINGS.admission_timeout_s),
        now=trio.current_time,
    )
    listener = await open_listener(tuple(addresses))
    chance = Random(1)
    dialer = Dialer(switchboard, FAST, random=chance, now=trio.current_time)
    dialer.want(dial)
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(listener.run, switchboard, settings or ListenerSettings())
                inner.start_soon(dialer.run)

    nursery.start_soon(run)
    return Running(node, listener, switchboard, dialer, arrived, scope)


@asynccontextmanager
async def running() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(30):
            yield nursery
        nursery.cancel_scope.cancel()


@pytest.fixture
def fleet(tmp_path: Path) -> FleetNodes:
    fleet = FleetNodes(tmp_path)
    for name in ("one", "two"):
        fleet.enrol(name)
    fleet.sign_state()
    return fleet


@pytest.fixture
def nodes(fleet: FleetNodes) -> list[Node]:
    """In the order of their ids."""
    names = ("one", "two")
    found = [fleet.node(Identity.load(fleet.tls.folder / name)) for name in names]
    return sorted(found, key=lambda node: node.identity.node_id)


async def test_a_dialled_node_becomes_a_peer_on_both_sides(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        one = await start(nursery, nodes[0], dial=[two.address])
        assert (await one.arrived.receive()).node == two.id
        assert (await two.arrived.receive()).node == one.id
        assert set(one.switchboard.peers) == {two.id}
        [state] = one.dialer.dialled
        assert state.state == "admitted"
        assert not two.listener.unproven


async def test_a_lost_connection_is_dialled_again(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        one = await start(nursery, nodes[0], dial=[two.address])
        for _ in range(3):
            peer = await one.arrived.receive()
            await two.arrived.receive()
            peer.stream.close()
        assert (await one.arrived.receive()).node == two.id
        assert one.switchboard.traffic.received_bytes > peer.traffic.received_bytes


async def test_a_node_that_is_not_there_yet_is_found_when_it_comes(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        address = two.address
        two.scope.cancel()
        one = await start(nursery, nodes[0], dial=[address])
        while not any(state.reason for state in one.dialer.dialled):
            await trio.testing.wait_all_tasks_blocked(0.01)
        [state] = one.dialer.dialled
        assert state.reason
        again = await start(nursery, nodes[1], addresses=[address])
        assert (await one.arrived.receive()).node == again.id


async def test_two_nodes_that_dial_one_another_keep_one_connection(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        one = await start(nursery, nodes[0], dial=[two.address])
        two.dialer.want([one.address])
        await one.arrived.receive()
        await two.arrived.receive()
        while not all(
            state.state == "admitted"
            for running_node in (one, two)
            for state in running_node.dialer.dialled
        ):
            await trio.testing.wait_all_tasks_blocked(0.01)
        left, right = one.switchboard.peers[two.id], two.switchboard.peers[one.id]
        assert left.dialled != right.dialled, "both hold the same connection"
        assert left.connection.hello.nonce == right.hello.nonce


@pytest.mark.parametrize("lesser_first", [True, False])
async def test_of_two_crossing_connections_the_smaller_ids_stays(
    nodes: list[Node], lesser_first: bool
) -> None:
    async with running() as nursery:
        one, two = [await start(nursery, node) for node in nodes]

        async def dial(who: Running, whom: Running) -> None:
            stream = await trio.open_tcp_stream(whom.address.host, whom.address.port)
            with suppress(PeerLost):
                # As when both dial at the same moment: not knowing of the other's connection.
                secured = await who.switchboard._secure(stream, Side.CLIENT)
                await who.switchboard._hold(secured, Side.CLIENT, lambda: None)

        pairs = [(one, two), (two, one)]
        first, second = pairs if lesser_first else reversed(pairs)
        nursery.start_soon(dial, *first)
        older = [await side.arrived.receive() for side in first]
        nursery.start_soon(dial, *second)
        if lesser_first:
            await trio.testing.wait_all_tasks_blocked(0.05)
        else:
            for peer in older:
                await peer.closed.wait()
            for side in second:
                await side.arrived.receive()
        left, right = one.switchboard.peers[two.id], two.switchboard.peers[one.id]
        assert left.dialled, "the node with the smaller id dialled the one that stays"
        assert not right.dialled
        assert not left.closed.is_set()


async def test_a_second_connection_to_a_connected_node_is_not_made(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        one = await start(nursery, nodes[0], dial=[two.address])
        await one.arrived.receive()
        peer = await two.arrived.receive()
        stream = await trio.open_tcp_stream(two.address.host, two.address.port)
        with pytest.raises(AlreadyConnected):
            await one.switchboard.dialled(stream, lambda: None)
        assert not peer.closed.is_set()
        assert set(two.switchboard.peers) == {one.id}


async def test_no_longer_wanted_means_disconnected(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        one = await start(nursery, nodes[0], dial=[two.address])
        peer = await two.arrived.receive()
        await one.arrived.receive()
        one.dialer.want([])
        await peer.closed.wait()
        assert one.dialer.dialled == ()
        while one.switchboard.peers:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_denied_node_is_cut(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        one = await start(nursery, nodes[0], dial=[two.address])
        peer = await one.arrived.receive()
        await two.arrived.receive()
        two.switchboard.disconnect(one.id, ErrorCode.DENIED, "it was revoked")
        await peer.closed.wait()
        assert "it was revoked" in str(peer.error)


async def test_a_node_does_not_connect_to_itself(nodes: list[Node]) -> None:
    async with running() as nursery:
        one = await start(nursery, nodes[0])
        one.dialer.want([one.address])
        while not any(state.reason for state in one.dialer.dialled):
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert not one.switchboard.peers


async def test_connections_that_prove_nothing_are_capped(nodes: list[Node]) -> None:
    async with running() as nursery:
        settings = ListenerSettings(max_unproven=10, max_unproven_per_host=3)
        two = await start(nursery, nodes[1], settings=settings)
        silent = [await trio.open_tcp_stream("127.0.0.1", two.address.port) for _ in range(3)]
        while two.listener.unproven["127.0.0.1"] < 3:
            await trio.testing.wait_all_tasks_blocked(0.01)
        over = await trio.open_tcp_stream("127.0.0.1", two.address.port)
        with suppress(trio.BrokenResourceError):
            assert await over.receive_some(1) == b""
        assert two.listener.turned_away == 1
        for stream in silent:
            await stream.aclose()
        while two.listener.unproven:
            await trio.testing.wait_all_tasks_blocked(0.01)
        one = await start(nursery, nodes[0], dial=[two.address])
        assert (await one.arrived.receive()).node == two.id


async def test_a_port_in_use_is_named_with_what_to_do() -> None:
    taken = await open_listener([LOOPBACK])
    try:
        with pytest.raises(CannotListen) as caught:
            await open_listener([LOOPBACK, taken.addresses[0]])
        assert str(taken.addresses[0]) in str(caught.value)
        assert "in use" in str(caught.value)
        assert "[network] listen" in str(caught.value.remedy)
    finally:
        taken.close()


async def test_a_closed_listener_still_says_where_it_was() -> None:
    listener = await open_listener([LOOPBACK])
    while_open = listener.addresses
    listener.close()
    assert listener.addresses == while_open
    assert while_open[0].port != 0


async def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1"):
        await open_listener([Address("192.0.2.1", 0)])


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_every_address_of_both_kinds_can_be_listened_on() -> None:
    both = await open_listener([Address("::", 0)])
    port = both.addresses[0].port
    for host in ("127.0.0.1", "::1"):
        stream = await trio.open_tcp_stream(host, port)
        await stream.aclose()
    both.close()
    every_ipv4 = Address("0.0.0.0", port)  # noqa: S104 - for the length of this test
    pair = await open_listener([Address("::", port), every_ipv4])
    assert [address.port for address in pair.addresses] == [port, port]
    pair.close()


async def test_a_connection_that_is_reset_at_once_does_no_harm(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        for _ in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", two.address.port)
            linger = b"\1\0\0\0\0\0\0\0"
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            stream.socket.close()
        one = await start(nursery, nodes[0], dial=[two.address])
        assert (await one.arrived.receive()).node == two.id


async def test_stopping_ends_every_connection(nodes: list[Node]) -> None:
    async with running() as nursery:
        two = await start(nursery, nodes[1])
        one = await start(nursery, nodes[0], dial=[two.address])
        peer = await one.arrived.receive()
        await two.arrived.receive()
        two.scope.cancel()
        await peer.closed.wait()
        assert "ended the connection" in str(peer.error)
