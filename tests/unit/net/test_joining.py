"""A new node joins with a token, over real TLS, and everything that may go wrong on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from archid.addresses import Address
from archid.errors import ArchidError, Conflict, Denied, TrustFailure, Unavailable, UsageError
from archid.identity import Identity
from archid.membership import FILE_NAME, Membership
from archid.net.certificates import issue
from archid.net.errors import PeerRefused
from archid.net.join_exchange import JoinPump, newcomer_hello
from archid.net.join_server import JoinServer, TokenDesk
from archid.net.joining import JoinRefused, join_fleet
from archid.net.lane_desk import LaneDesk
from archid.net.listener import open_listener
from archid.net.pump import pumping
from archid.net.settings import ListenerSettings
from archid.net.switchboard import Switchboard
from archid.net.tls import TLSStream, joining_context
from archid.net.tls_contexts import TlsContexts
from archid.store.layout import StatePaths
from archid.store.trust_file import TrustFile
from protocol.connection_states import Side
from protocol.envelope import PublicKey
from protocol.ids import DocumentId, FleetId, NodeId
from protocol.join_token import JoinToken
from protocol.messages import (
    ErrorCode,
    GetRoot,
    JoinBegin,
    JoinOffer,
    JoinRequest,
    RootDocument,
)
from tests.unit.net.fleet_nodes import SETTINGS, FleetNodes, Node, meet

TOKEN_ID = b"t" * 16
SECRET = b"s" * 32
Change = Callable[[JoinToken], JoinToken]


class TokenRefused(Denied):
    """As central's desk raises it."""


@dataclass
class Given:
    certificate: bytes
    roots: Sequence[bytes]
    head: bytes
    grants: bytes
    leaf: bytes


@dataclass
class Desk:
    """Redeems one token, like central: once, but again for the same key."""

    fleet: FleetNodes
    role: str = "ice"
    used_by: PublicKey | None = None
    asked: int = 0
    confirmed: list[NodeId] = field(default_factory=list)
    spoil: Callable[[Given], Given] = lambda given: given

    async def redeem(
        self, *, token: bytes, secret: bytes, public_key: PublicKey, name: str
    ) -> Given:
        self.asked += 1
        if (token, secret) != (TOKEN_ID, SECRET):
            raise TokenRefused("The token is unknown", code="token_invalid")
        if self.used_by not in (None, public_key):
            raise TokenRefused("The token was used by another node", code="token_used")
        node = NodeId.of(public_key)
        fleet = self.fleet
        if self.used_by is None:
            self.used_by = public_key
            fleet.add_key(public_key, name, self.role)
            fleet.sign_state()
        newest = fleet.grants_roots[0]
        return self.spoil(
            Given(
                certificate=issue(fleet.tls.ca_key, fleet.tls.ca, public_key, node),
                roots=[fleet.signed.sign_root(fleet.root).encode()],
                head=fleet.head_envelope.encode(),
                grants=fleet.grants_envelopes[newest].encode(),
                leaf=fleet.trees[newest].leaf(node, newest).encode(),
            )
        )

    async def confirm(self, node: NodeId) -> None:
        self.confirmed.append(node)


@dataclass
class Central:
    fleet: FleetNodes
    node: Node
    desk: Desk
    address: Address

    def token(self, **changes: object) -> str:
        token = JoinToken(
            addresses=(str(self.address),),
            central=self.node.identity.node_id,
            fingerprint=self.fleet.root.fingerprint,
            token_id=TOKEN_ID,
            secret=SECRET,
            fleet_name="demo",
            role="ice",
            expires_s=0,
        )
        return replace(token, **changes).encode()  # type: ignore[arg-type]


@asynccontextmanager
async def serving(
    fleet: FleetNodes, identity: Identity, desk: TokenDesk | None, *, says: FleetId | None = None
) -> AsyncIterator[Address]:
    node = fleet.node(identity)
    node.trusted.fleet = says or node.trusted.fleet
    server = JoinServer(
        doorkeeper=node.doorkeeper,
        roots=lambda: [fleet.signed.sign_root(fleet.root).encode()],
        desk=desk,
        settings=SETTINGS,
    )

    async def session(_peer: object) -> None:
        raise AssertionError("a newcomer became a peer")

    switchboard = Switchboard(
        own=identity.node_id,
        doorkeeper=node.doorkeeper,
        contexts=TlsContexts(identity, [fleet.tls.ca]),
        settings=SETTINGS,
        session=session,
        newcomer=server.serve,
        lanes=LaneDesk(identity.node_id, timeout_s=SETTINGS.admission_timeout_s),
        now=trio.current_time,
    )
    listener = await open_listener([Address("127.0.0.1", 0)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, switchboard, ListenerSettings())
        yield listener.addresses[0]
        nursery.cancel_scope.cancel()


@pytest.fixture
async def central(tmp_path: Path) -> AsyncIterator[Central]:
    fleet = FleetNodes(tmp_path)
    identity = fleet.enrol("central", "central")
    fleet.sign_state()
    desk = Desk(fleet)
    async with serving(fleet, identity, desk) as address:
        yield Central(fleet, fleet.node(identity), desk, address)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(state=tmp_path / "new" / "state", scripts=tmp_path / "new" / "scripts")


def nothing_left(paths: StatePaths) -> bool:
    return not paths.trust.exists() and not (paths.identity / "key.pem").exists()


async def test_a_node_joins_and_is_admitted_from_then_on(
    central: Central, paths: StatePaths
) -> None:
    joined = await join_fleet(central.token(), paths=paths, role="ice", name="newcomer")
    assert joined.facts.name == "newcomer"
    assert joined.fleet == central.fleet.root.fleet
    assert central.desk.confirmed == [joined.node]
    membership = Membership.load(paths.identity)
    assert membership.anchor == central.fleet.root.fingerprint
    assert membership.central_addresses == (central.address,)
    state = TrustFile(paths.trust).load()
    assert state is not None
    assert state.head == central.fleet.head_envelope.encode()
    identity = Identity.load(paths.state)
    assert identity.node_id == joined.node
    results = await meet(central.fleet.node(identity), central.node)
    assert not any(isinstance(result, Exception) for result in results.values()), results


async def test_a_second_node_cannot_use_the_same_token(
    central: Central, paths: StatePaths, tmp_path: Path
) -> None:
    await join_fleet(central.token(), paths=paths, role="ice")
    other = StatePaths(state=tmp_path / "other" / "state", scripts=tmp_path / "other" / "scripts")
    with pytest.raises(JoinRefused, match="used by another node") as caught:
        await join_fleet(central.token(), paths=other, role="ice")
    assert caught.value.code == "token_used"
    assert "token create" in str(caught.value.remedy)
    assert nothing_left(other)


async def test_a_forged_secret_is_refused_and_nothing_is_left_behind(
    central: Central, paths: StatePaths
) -> None:
    with pytest.raises(JoinRefused) as caught:
        await join_fleet(central.token(secret=b"x" * 32), paths=paths, role="ice")
    assert caught.value.code == "token_invalid"
    assert nothing_left(paths)
    await join_fleet(central.token(), paths=paths, role="ice")


async def test_a_mistyped_token_is_told_before_anything_is_done(
    central: Central, paths: StatePaths
) -> None:
    text = central.token()
    for wrong in (text[:-1], text.replace("archid", "orchid"), "", text[:40] + "a" + text[41:]):
        if wrong != text:
            with pytest.raises(UsageError):
                await join_fleet(wrong, paths=paths, role="ice")
    assert central.desk.asked == 0
    assert not paths.state.exists()


async def test_a_token_for_another_role_is_not_used_up(central: Central, paths: StatePaths) -> None:
    with pytest.raises(UsageError, match="role 'ice'") as caught:
        await join_fleet(central.token(), paths=paths, role="repo")
    assert caught.value.code == "token_wrong_role"
    assert central.desk.asked == 0


async def test_the_secret_is_not_told_to_another_root(central: Central, paths: StatePaths) -> None:
    token = central.token(fingerprint=DocumentId.of(b"another root"))
    with pytest.raises(TrustFailure, match="nothing secret"):
        await join_fleet(token, paths=paths, role="ice")
    assert central.desk.asked == 0
    assert nothing_left(paths)


async def test_the_secret_is_not_told_to_another_node_of_the_fleet(
    central: Central, paths: StatePaths
) -> None:
    ice = central.fleet.enrol("ice")
    central.fleet.sign_state()
    async with serving(central.fleet, ice, central.desk) as address:
        with pytest.raises(TrustFailure, match="another node than the central"):
            await join_fleet(central.token(addresses=(str(address),)), paths=paths, role="ice")
    assert central.desk.asked == 0


async def test_the_secret_is_not_told_to_a_server_that_names_another_fleet(
    central: Central, paths: StatePaths
) -> None:
    says = FleetId.of(b"another")
    identity = central.node.identity
    async with serving(central.fleet, identity, central.desk, says=says) as address:
        with pytest.raises(TrustFailure, match="another fleet than its Root"):
            await join_fleet(central.token(addresses=(str(address),)), paths=paths, role="ice")
    assert central.desk.asked == 0


async def test_the_secret_is_not_told_to_a_server_of_another_fleet_with_a_copied_root(
    central: Central, paths: StatePaths, tmp_path: Path
) -> None:
    other = FleetNodes(tmp_path, "other")
    identity = other.enrol("central", "central")
    other.sign_state()
    other.root = central.fleet.root
    other.signed.signers = central.fleet.signed.signers
    liar = FleetNodes(tmp_path / "liar", "demo")
    liar_identity = liar.enrol("liar", "central")
    liar.sign_state()
    genuine = central.fleet.signed.sign_root(central.fleet.root)
    assert genuine.payload != liar.signed.sign_root(liar.root).payload
    desk = Desk(liar)
    node = liar.node(liar_identity)
    server = JoinServer(
        doorkeeper=node.doorkeeper, roots=lambda: [genuine.encode()], desk=desk, settings=SETTINGS
    )
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = Address("127.0.0.1", listener[0].socket.getsockname()[1])

    async def serve_one() -> None:
        stream = TLSStream(
            await listener[0].accept(), liar.tls.server_context(liar_identity), server_side=True
        )
        await stream.do_handshake()
        with suppress(ArchidError):
            await server.serve(stream)

    assert identity.certificate is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_one)
        with pytest.raises(TrustFailure, match="not signed by the fleet's CA"):
            await join_fleet(central.token(addresses=(str(address),)), paths=paths, role="ice")
    assert desk.asked == 0


@pytest.mark.parametrize("what", ["leaf", "certificate", "head", "grants", "role"])
async def test_what_central_sends_is_verified(
    central: Central, paths: StatePaths, what: str
) -> None:
    fleet = central.fleet
    stranger = fleet.enrol("stranger")

    def spoil(given: Given) -> Given:
        newest = fleet.grants_roots[0]
        wrong: dict[str, Any] = {
            "leaf": fleet.trees[newest].leaf(stranger.node_id, newest).encode(),
            "certificate": stranger.certificate or b"",
            "head": given.grants,
            "grants": given.head,
        }
        return replace(given, **{what: wrong[what]})

    if what == "role":
        central.desk.role = "repo"
    else:
        central.desk.spoil = spoil
    refusal, says = (UsageError, "configured as") if what == "role" else (TrustFailure, "not hold")
    with pytest.raises(refusal, match=says):
        await join_fleet(central.token(), paths=paths, role="ice")
    assert not (paths.identity / FILE_NAME).exists()
    assert central.desk.confirmed == []


@pytest.mark.parametrize(
    "failure",
    [
        Unavailable("the database is busy"),
        pytest.param(RuntimeError("a bug"), marks=pytest.mark.expect_errors("newcomer_failed")),
    ],
)
async def test_a_join_that_central_did_not_finish_goes_on_with_the_same_key(
    central: Central, paths: StatePaths, failure: Exception
) -> None:
    def fail(_given: Given) -> Given:
        raise failure

    central.desk.spoil = fail
    with pytest.raises((JoinRefused, Unavailable)):
        await join_fleet(central.token(), paths=paths, role="ice")
    assert central.desk.used_by is not None, "the token is used up for any other key"
    central.desk.spoil = lambda given: given
    joined = await join_fleet(central.token(), paths=paths, role="ice")
    assert joined.node == NodeId.of(central.desk.used_by)


async def test_the_next_address_is_tried_when_one_does_not_answer(
    central: Central, paths: StatePaths
) -> None:
    dead = await open_listener([Address("127.0.0.1", 0)])
    address = dead.addresses[0]
    dead.close()
    token = central.token(addresses=(str(address), str(central.address)))
    joined = await join_fleet(token, paths=paths, role="ice")
    assert central.desk.confirmed == [joined.node]


async def test_an_unreachable_central_is_named(central: Central, paths: StatePaths) -> None:
    dead = await open_listener([Address("127.0.0.1", 0)])
    address = dead.addresses[0]
    dead.close()
    with pytest.raises(Unavailable, match=str(address.port)) as caught:
        await join_fleet(central.token(addresses=(str(address),)), paths=paths, role="ice")
    assert caught.value.remedy is not None
    assert nothing_left(paths)


async def test_a_state_that_belongs_to_a_fleet_is_left_alone(
    central: Central, paths: StatePaths
) -> None:
    joined = await join_fleet(central.token(), paths=paths, role="ice")
    with pytest.raises(Conflict, match="belongs to a fleet"):
        await join_fleet(central.token(), paths=paths, role="ice")
    assert Identity.load(paths.state).node_id == joined.node


@asynccontextmanager
async def newcomer(address: Address) -> AsyncIterator[JoinPump]:
    """A client without a certificate that may say what it likes."""
    stream = TLSStream(
        await trio.open_tcp_stream(address.host, address.port),
        joining_context(),
        server_side=False,
    )
    await stream.do_handshake()
    pump = JoinPump(stream, SETTINGS, side=Side.CLIENT, hello=newcomer_hello("test"))
    async with pumping(pump):
        await pump.peer_hello()
        yield pump


async def test_a_node_that_is_not_central_hands_out_roots_and_lets_nobody_join(
    central: Central,
) -> None:
    ice = central.fleet.enrol("ice")
    central.fleet.sign_state()
    async with serving(central.fleet, ice, None) as address, newcomer(address) as pump:
        pump.push(GetRoot(pump.connection.next_request(), 1))
        answer = await pump.expect(RootDocument)
        assert answer.envelope == central.fleet.signed.sign_root(central.fleet.root).encode()
        pump.push(JoinBegin(TOKEN_ID))
        with pytest.raises(PeerRefused) as caught:
            await pump.expect(JoinOffer)
        assert caught.value.reason is ErrorCode.NOT_READY


async def test_a_request_without_proof_of_the_key_is_refused(central: Central) -> None:
    async with newcomer(central.address) as pump:
        pump.push(JoinBegin(TOKEN_ID))
        await pump.expect(JoinOffer)
        pump.push(JoinRequest(TOKEN_ID, SECRET, b"k" * 32, b"x" * 64, "thief"))
        with pytest.raises(PeerRefused) as caught:
            await pump.expect(JoinOffer)
        assert caught.value.reason is ErrorCode.BAD_PROOF
    assert central.desk.asked == 0
