"""TLS between nodes on loopback, with real certificates and real sockets."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing

from archid.errors import TrustFailure
from archid.identity import Identity
from archid.net.certificates import public_key_of
from archid.net.tls import (
    BATCH_BYTES,
    PeerLost,
    TlsRefused,
    TLSStream,
    client_context,
    joining_context,
    server_context,
)
from tests.unit.net.certified import Fleet, shake_hands, tcp_pair, tls_pair


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.make(tmp_path)


async def receive_exactly(stream: TLSStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        data = await stream.receive_some()
        assert data, "the stream ended early"
        received += data
    return bytes(received)


async def outcome(stream: TLSStream) -> Exception | None:
    """How the handshake and the first receive ended for this side."""
    try:
        await stream.do_handshake()
        await stream.receive_some()
    except (TlsRefused, PeerLost) as error:
        return error
    finally:
        await stream.aclose()
    return None


async def outcomes(client: TLSStream, server: TLSStream) -> dict[str, Exception | None]:
    results: dict[str, Exception | None] = {}

    async def note(name: str, stream: TLSStream) -> None:
        results[name] = await outcome(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, "client", client)
        nursery.start_soon(note, "server", server)
    return results


async def test_both_ends_learn_the_others_key(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        assert client.peer_certificate is not None
        assert server.peer_certificate is not None
        assert public_key_of(client.peer_certificate) == two.public_key
        assert public_key_of(server.peer_certificate) == one.public_key


@pytest.mark.parametrize(
    "sizes",
    [[0], [1], [8, 16_384], [16_383, 2, 16_385], [8, 1_048_576, 8, 70_000], [3] * 5000],
    ids=str,
)
async def test_buffers_arrive_in_order_and_whole(fleet: Fleet, sizes: list[int]) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    parts = [os.urandom(size) for size in sizes]
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, [memoryview(part) for part in parts])
            assert await receive_exactly(server, sum(sizes)) == b"".join(parts)


async def test_a_batch_is_bounded_and_a_slow_reader_holds_the_sender_back(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    megabyte = bytes(1 << 20)
    count = 64
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(count):
                await client.send_all([megabyte])
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert sent < count // 2, "the sender went on although nobody read"
            received = 0
            while received < count << 20:
                data = await server.receive_some()
                assert 0 < len(data) <= BATCH_BYTES + 32_768
                received += len(data)


async def test_both_directions_at_once_do_not_block_one_another(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    data = os.urandom(8 << 20)
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        received: dict[str, bytes] = {}

        async def collect(name: str, stream: TLSStream) -> None:
            received[name] = await receive_exactly(stream, len(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, [data])
            nursery.start_soon(server.send_all, [data])
            nursery.start_soon(collect, "client", client)
            nursery.start_soon(collect, "server", server)
        assert received == {"client": data, "server": data}


async def test_concurrent_senders_do_not_mix_their_bytes(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    size = 600_000
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        async with trio.open_nursery() as nursery:
            for letter in b"abcd":
                nursery.start_soon(client.send_all, [bytes([letter]) * size])
            received = await receive_exactly(server, 4 * size)
        runs = [(key, len(list(group))) for key, group in itertools.groupby(received)]
        assert sorted(runs) == [(letter, size) for letter in b"abcd"]


async def test_closing_says_goodbye_and_vanishing_does_not(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        await client.send_all([b"last words"])
        await client.aclose()
        assert await receive_exactly(server, 10) == b"last words"
        assert await server.receive_some() == b""
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        client.close()
        with pytest.raises(PeerLost, match="without saying goodbye"):
            await server.receive_some()
        with pytest.raises(PeerLost):
            await client.send_all([b"x"])


async def test_a_send_cancelled_half_way_closes_the_stream(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, [bytes(64 << 20)])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert client.closed
        with pytest.raises(PeerLost, match="closed"):
            await client.send_all([b"more"])
        with pytest.raises(PeerLost):
            await receive_exactly(server, 64 << 20)


async def test_a_wait_for_the_lock_that_is_cancelled_leaves_the_stream_open(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, [bytes(32 << 20)])
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as waiting:
                waiting.start_soon(client.send_all, [b"never"])
                await trio.testing.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            assert await receive_exactly(server, 32 << 20) == bytes(32 << 20)
        await client.send_all([b"after"])
        assert await receive_exactly(server, 5) == b"after"


async def test_a_receive_that_is_cancelled_loses_nothing(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await client.send_all([b"still here"])
        assert await receive_exactly(server, 10) == b"still here"


async def test_closing_wakes_a_task_that_receives(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        woken = trio.Event()

        async def receive() -> None:
            with pytest.raises(PeerLost, match="closed"):
                await server.receive_some()
            woken.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            server.close()
            await woken.wait()


async def test_a_server_of_another_fleet_is_refused_by_the_client(
    fleet: Fleet, tmp_path: Path
) -> None:
    other = Fleet.make(tmp_path, "other")
    client_side = fleet.client_context(fleet.node("one"))
    server_side = other.server_context(other.node("two"))
    async with tls_pair(client_side, server_side) as (client, server):
        results = await outcomes(client, server)
    assert isinstance(results["client"], TlsRefused)
    assert "this fleet's CA did not sign" in str(results["client"])
    assert isinstance(results["server"], TlsRefused)
    assert "unknown ca" in str(results["server"])


async def test_a_client_of_another_fleet_is_refused_and_told_so(
    fleet: Fleet, tmp_path: Path
) -> None:
    other = Fleet.make(tmp_path, "other")
    intruder = other.node("one")
    # It does know this fleet's CA: only its own certificate is wrong.
    client_side = client_context(intruder, [fleet.ca])
    async with tls_pair(client_side, fleet.server_context(fleet.node("two"))) as (client, server):
        results = await outcomes(client, server)
    assert isinstance(results["server"], TlsRefused)
    assert isinstance(results["client"], TlsRefused)
    assert "unknown ca" in str(results["client"])


async def test_a_ca_of_the_same_name_with_another_key_is_refused(
    fleet: Fleet, tmp_path: Path
) -> None:
    namesake = Fleet.make(tmp_path / "elsewhere")
    assert namesake.fleet_id == fleet.fleet_id
    client_side = client_context(namesake.node("one"), [fleet.ca])
    async with tls_pair(client_side, fleet.server_context(fleet.node("two"))) as (client, server):
        results = await outcomes(client, server)
    assert isinstance(results["server"], TlsRefused)


async def test_both_cas_are_believed_while_one_replaces_the_other(
    fleet: Fleet, tmp_path: Path
) -> None:
    newer = Fleet.make(tmp_path / "newer")
    cas = [fleet.ca, newer.ca]
    client_side = client_context(newer.node("one"), cas)
    async with tls_pair(client_side, server_context(fleet.node("two"), cas)) as (client, server):
        await shake_hands(client, server)


async def test_a_client_without_certificate_gets_in_and_is_seen_to_have_none(fleet: Fleet) -> None:
    two = fleet.node("two")
    async with tls_pair(joining_context(), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        assert server.peer_certificate is None
        assert client.peer_certificate == two.certificate


async def test_an_identity_without_certificate_cannot_serve_or_dial(
    fleet: Fleet, tmp_path: Path
) -> None:
    newcomer = Identity.create(tmp_path / "newcomer")
    for make in (server_context, client_context):
        with pytest.raises(TrustFailure, match="has not joined"):
            make(newcomer, [fleet.ca])


async def test_tls_1_2_is_refused_in_both_directions(fleet: Fleet) -> None:
    old_client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old_client.check_hostname = False
    old_client.verify_mode = ssl.CERT_NONE
    old_client.maximum_version = ssl.TLSVersion.TLSv1_2
    two = fleet.node("two")
    async with tls_pair(old_client, fleet.server_context(two)) as (client, server):
        results = await outcomes(client, server)
        assert isinstance(results["server"], TlsRefused)
        assert "protocol" in str(results["server"])
        assert isinstance(results["client"], TlsRefused)
    old_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old_server.load_cert_chain(two.certificate_path, two.key_path)
    old_server.maximum_version = ssl.TLSVersion.TLSv1_2
    async with tls_pair(fleet.client_context(fleet.node("one")), old_server) as (client, server):
        results = await outcomes(client, server)
        assert isinstance(results["client"], TlsRefused)


async def test_a_tls_client_of_another_protocol_is_refused(fleet: Fleet) -> None:
    browser = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    browser.check_hostname = False
    browser.verify_mode = ssl.CERT_NONE
    browser.set_alpn_protocols(["h2", "http/1.1"])
    async with tls_pair(browser, fleet.server_context(fleet.node("two"))) as (client, server):
        results = await outcomes(client, server)
        assert isinstance(results["server"], TlsRefused)
        assert "not archid's protocol" in str(results["server"])


async def test_no_session_can_be_resumed(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        await server.send_all([b"x"])
        await receive_exactly(client, 1)
        session = client._tls.session
        assert session is None or not session.has_ticket


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100, b"\x16\x03\x01\xff\xff" + b"a" * 70_000]
)
async def test_a_client_that_speaks_no_tls_is_refused(fleet: Fleet, garbage: bytes) -> None:
    plain, right = await tcp_pair()
    server = TLSStream(right, fleet.server_context(fleet.node("two")), server_side=True)
    async with plain:
        await plain.send_all(garbage)
        await plain.send_eof()
        with pytest.raises((TlsRefused, PeerLost)):
            await server.do_handshake()
    assert server.closed


async def test_bytes_damaged_on_their_way_end_the_connection(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    async with tls_pair(fleet.client_context(one), fleet.server_context(two)) as (client, server):
        await shake_hands(client, server)
        await client.send_all([b"good"])
        assert await receive_exactly(server, 4) == b"good"
        raw = socket.socket(fileno=os.dup(client._socket.fileno()))
        with raw:
            raw.send(b"\x17\x03\x03\x00\x20" + os.urandom(32))
        with pytest.raises(PeerLost, match="damaged"):
            await server.receive_some()
        assert server.closed


async def test_a_handshake_that_never_ends_is_the_callers_to_limit(fleet: Fleet) -> None:
    plain, right = await tcp_pair()
    server = TLSStream(right, fleet.server_context(fleet.node("two")), server_side=True)
    async with plain, trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert server.closed
