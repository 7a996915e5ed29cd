"""What somebody who has proven nothing can make a node keep in memory, and get to hear."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import trio
import trio.testing

from archid.errors import ArchidError, Conflict, Denied, StorageError, Unavailable
from archid.net.errors import PeerLost
from archid.net.join_exchange import JoinPump, newcomer_hello
from archid.net.join_server import _told
from archid.net.pump import pumping
from archid.net.tls import joining_context
from protocol.connection_states import Side
from protocol.frames import Buffer
from protocol.messages import ErrorCode, GetRoot, Ping
from tests.unit.net.certified import shake_hands, tls_pair
from tests.unit.net.fleet_nodes import SETTINGS, FleetNodes

MIB = 1 << 20


async def queued_for_one_who_never_reads(folder: Path, flood: list[Buffer]) -> int:
    """Send `flood` after Hello, read nothing, and say what the server then keeps queued."""
    fleet = FleetNodes(folder)
    identity = fleet.enrol("central", "central")
    fleet.sign_state()
    node = fleet.node(identity)
    settings = SETTINGS
    async with tls_pair(joining_context(), fleet.tls.server_context(identity)) as (client, server):
        await shake_hands(client, server)
        pump = JoinPump(server, settings, side=Side.SERVER, hello=node.doorkeeper.hello())
        async with pumping(pump), trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(PeerLost):  # cut off in the middle of it
                    await client.send_all([*newcomer_hello("flood").encode(), *flood])

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            queued_bytes = pump.outbox.queued_bytes
            nursery.cancel_scope.cancel()
            client.close()
    return queued_bytes


async def test_who_pings_and_never_reads_is_not_read_for_ever(tmp_path: Path) -> None:
    pings = [part for n in range(400_000) for part in Ping(2**40 + n).encode()]
    queued_bytes = await queued_for_one_who_never_reads(tmp_path, pings)
    assert SETTINGS.unproven_outbox_bytes <= queued_bytes < 2 * MIB


async def test_who_asks_without_end_is_cut_off(tmp_path: Path) -> None:
    requests = [part for n in range(1, 50_000) for part in GetRoot(n, 1).encode()]
    assert await queued_for_one_who_never_reads(tmp_path, requests) < 2 * MIB


def test_what_failed_inside_central_is_not_told_to_strangers() -> None:
    private = "the database of postgres at 10.1.2.3 does not answer"
    errors: dict[ArchidError, tuple[ErrorCode, bool]] = {
        Denied(private, code="token_used"): (ErrorCode.TOKEN_USED, True),
        Conflict(private, code="name_taken"): (ErrorCode.OTHER, True),
        Unavailable(private, code="database_down"): (ErrorCode.NOT_READY, False),
        StorageError(private): (ErrorCode.INTERNAL, False),
        PeerLost(private): (ErrorCode.NOT_READY, False),
    }
    for error, (code, told) in errors.items():
        assert _told(error)[0] is code
        assert (private in _told(error)[1]) is told
