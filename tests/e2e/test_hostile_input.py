"""What comes in at a running node's doors and is not what it should be: a typed no, life goes on.

The control socket is spoken to by a client of another make, the network port by peers that never
prove anything. Every log is read at the end: an ERROR would mean that a stranger can make a node
complain about itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from archid.addresses import parse_address
from archid.control.client import ControlClient
from archid.errors import UsageError
from archid.net.errors import PeerRefused
from archid.net.join_exchange import JoinPump, newcomer_hello
from archid.net.pump import pumping
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream, joining_context
from protocol.connection_states import Side
from protocol.frames import HEADER
from protocol.join_token import JoinToken
from protocol.messages import (
    JOIN_PROOF_TYPE,
    ErrorCode,
    JoinBegin,
    JoinOffer,
    JoinRequest,
    join_proof_payload,
)
from tests.fleet.local import LocalFleet
from tests.fleet.watched import watched_fleet
from tests.unit.protocol.signed_fleet import Signer


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A central alone."""
    with watched_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.found()
        yield fleet


FOLDER = {"type": "folder", "path": "reels"}
FILE = {"type": "file", "path": "reel", "size": 1, "executable": False, "mtime_ns": 0}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"commit": "yes"},
        {"entries": "reels"},
        {"entries": [1]},
        {"entries": [[]]},
        {"entries": [{"type": "device", "path": "reels"}]},
        {"entries": [{"type": "folder"}]},
        {"entries": [{"type": "folder", "path": 7}]},
        {"entries": [{"type": "link", "path": "a"}]},
        {"entries": [{**FILE, "executable": "no"}]},
        {"entries": [{**FILE, "mtime_ns": "today"}]},
        {"entries": [{**FILE, "path": None}]},
        {"entries": [FOLDER, FILE]},
    ],
    ids=str,
)
def test_a_publishing_client_that_sends_something_else_is_told_so(
    fleet: LocalFleet, body: dict[str, Any]
) -> None:
    params = {"script": "film", "kind": "feature", "files": 1, "size_bytes": 1}
    with ControlClient(fleet.central.socket).start("publish", params) as conversation:
        conversation.send_input(body)
        with pytest.raises(UsageError):
            conversation.result()


def test_after_all_of_that_the_script_can_be_published(fleet: LocalFleet, tmp_path: Path) -> None:
    folder = tmp_path / "film"
    folder.mkdir()
    (folder / "reel").write_text("a reel")
    assert fleet.publish(folder, "film", "feature")["version"] == 1
    assert list((fleet.central.state / "staging").iterdir()) == []


def test_a_crash_between_trust_file_and_journal_does_not_lower_the_floor(fleet: LocalFleet) -> None:
    node = fleet.central
    head = node.status()["trust"]
    node.process.stop()
    with sqlite3.connect(node.state / "journal.db") as journal:
        journal.execute("UPDATE floor SET serial = 1")
    journal.close()
    node.process.start()
    assert node.status()["trust"]["serial"] >= head["serial"] > 1
    with sqlite3.connect(node.state / "journal.db") as journal:
        [floor] = journal.execute("SELECT epoch, serial FROM floor")
    journal.close()
    assert floor >= (head["epoch"], head["serial"])


async def answered(address: str, sent: bytes, tls: bool) -> bytes:
    """Everything that comes back before the other end closes."""
    place = parse_address(address)
    tcp = await trio.open_tcp_stream(place.host, place.port)
    received = b""
    with trio.fail_after(60):
        if not tls:
            async with tcp:
                await tcp.send_all(sent)
                async for data in tcp:
                    received += data
            return received
        stream = TLSStream(tcp, joining_context(), server_side=False)
        await stream.do_handshake()
        await stream.send_all([*newcomer_hello("stranger").encode(), sent])
        while data := await stream.receive_some():
            received += data
        await stream.aclose()
    return received


def frame(kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return HEADER.pack(len(payload) if length is None else length, kind, 0, 0) + payload


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(200), ErrorCode.PROTOCOL_ERROR),
        (frame(1, b"\xc0"), ErrorCode.PROTOCOL_ERROR),
        (frame(16, length=2**32 - 1), ErrorCode.LIMIT_EXCEEDED),
        (frame(16, b"\xdd\xff\xff\xff\xff"), ErrorCode.PROTOCOL_ERROR),
        (frame(22, b"\x90"), ErrorCode.PROTOCOL_ERROR),
        (frame(66, b"\x90"), ErrorCode.PROTOCOL_ERROR),
        (b"".join(frame(16, bytes([0x92, n, 1])) for n in range(1, 100)), None),
    ],
    ids=["unknown", "hello twice", "4 GiB", "an endless array", "a leaf", "no turn", "a flood"],
)
def test_a_stranger_that_breaks_the_protocol_is_told_so_and_cut_off(
    fleet: LocalFleet, sent: bytes, code: ErrorCode | None
) -> None:
    # Where the answer depends on how the bytes arrive, only that there is an end is asked for.
    received = trio.run(answered, fleet.central.address, sent, True)
    if code is not None:
        assert bytes([0x92, code.value]) in received
    assert fleet.central.status()["trust"]["serial"] > 0


def test_whoever_speaks_no_tls_gets_nothing(fleet: LocalFleet) -> None:
    for sent in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 4096,
        b"\x16\x03\x01\xff\xff" * 100,
    ):
        received = trio.run(answered, fleet.central.address, sent, False)
        assert len(received) <= 7, received  # an alert of TLS at most
    assert fleet.central.status()["health"]["level"] != "alarm"


def test_a_guessed_secret_is_refused_like_a_token_that_never_was(fleet: LocalFleet) -> None:
    token = JoinToken.decode(fleet.token("guessed", "repo"))
    refusals = [
        trio.run(guess, fleet.central.address, token_id)
        for token_id in (token.token_id, b"no such token---")
    ]
    assert [one.reason for one in refusals] == [ErrorCode.TOKEN_INVALID] * 2
    assert refusals[0].text == refusals[1].text


async def guess(address: str, token_id: bytes) -> PeerRefused:
    place = parse_address(address)
    stream = TLSStream(
        await trio.open_tcp_stream(place.host, place.port), joining_context(), server_side=False
    )
    await stream.do_handshake()
    hello, key = newcomer_hello("guess"), Signer("guesser")
    pump = JoinPump(stream, PeerSettings(), side=Side.CLIENT, hello=hello)
    async with pumping(pump):
        theirs = await pump.peer_hello()
        pump.push(JoinBegin(token_id))
        await pump.expect(JoinOffer)
        payload = join_proof_payload(
            token_id=token_id,
            public_key=key.public_key,
            name="guess",
            client_nonce=hello.nonce,
            server_nonce=theirs.nonce,
        )
        signature = key.sign(JOIN_PROOF_TYPE, payload).value
        pump.push(JoinRequest(token_id, bytes(32), key.public_key, signature, "guess"))
        await pump.closed.wait()
    assert isinstance(pump.error, PeerRefused)
    return pump.error
