"""Documents that a daemon must not believe, shown to it by a peer that it does believe.

The peer is an enrolled node with its real key. After each attempt it shows a fork of the head
that the daemon must still hold: only a daemon that holds that very head raises the alarm for it,
so the alarm says at once that the attempt has been dealt with and that it changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from archid.central.keys import OnlineKeys
from archid.net.errors import PeerRefused
from archid.store.trust_file import TrustFile
from protocol.documents import GrantsRoot
from protocol.envelope import Envelope
from protocol.head import Head
from protocol.ids import DocumentId, TreeHash
from protocol.limits import MAX_DOCUMENT_BYTES
from protocol.messages import ErrorCode, GetHead, HeadAnswer
from protocol.root import Root
from tests.fleet.desk import node_id, wait_until_open
from tests.fleet.events import EventTap
from tests.fleet.forger import (
    Forger,
    Pretence,
    StolenKeys,
    announce,
    trusted_head,
    trusted_root,
)
from tests.fleet.insider import InsiderKnowledge
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.strangers import found_elsewhere
from tests.fleet.watched import watched_fleet

VICTIMS = ("lyon-1-salle", "repo-1")
KINDS = ("feature", "sas", "loop")


@dataclass(frozen=True)
class World:
    """A fleet in which nothing changes, and everything that a forger may have."""

    fleet: LocalFleet
    head: Head
    head_bytes: bytes
    grants_bytes: bytes
    old_head_bytes: bytes
    old_grants_bytes: bytes
    root: Root
    root_bytes: bytes
    stolen: StolenKeys
    elsewhere: Path
    """State of another fleet's central."""

    def forger(self) -> Forger:
        """An ICE server of another cinema."""
        return Forger(self.fleet.nodes["nice-1-salle"].state)

    def elsewhere_keys(self) -> OnlineKeys:
        return OnlineKeys.load(self.elsewhere)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.mktemp("trust")
    _, elsewhere = found_elsewhere(base / "elsewhere")
    with watched_fleet(base, expect=("head_forked",)) as fleet:
        fleet.found()
        fleet.join("repo-1", "repo", site="paris")
        # Its trust file keeps the head that it joined with: a real one, and old by now.
        old = fleet.join("nice-1-salle", "ice", site="nice", room="1", kind="salle", start=False)
        fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        fleet.join("lyon-2-salle", "ice", site="lyon", room="2", kind="salle", start=False)
        for kind in KINDS:
            (base / kind).mkdir()
            (base / kind / "index").write_text(kind)
            fleet.publish(base / kind, f"film-{kind}", kind)
        fleet.apply(
            "film",
            scripts={kind: f"film-{kind}" for kind in KINDS},
            prefetch="2026-01-01T00:00:00Z",
            start="2026-01-02T00:00:00Z",
            end="2126-01-02T00:00:00Z",
            sites='["lyon"]',
        )
        for name in VICTIMS:
            settle(fleet, fleet.nodes[name])
        fleet.nodes["lyon-1-salle"].wait_active("film")
        head, head_bytes, grants_bytes = trusted_head(fleet.central.state)
        _, old_head_bytes, old_grants_bytes = trusted_head(old.state)
        assert old_head_bytes != head_bytes
        root, root_bytes = trusted_root(fleet.central.state)
        yield World(
            fleet,
            head,
            head_bytes,
            grants_bytes,
            old_head_bytes,
            old_grants_bytes,
            root,
            root_bytes,
            StolenKeys(fleet.central),
            elsewhere.state,
        )


def settle(fleet: LocalFleet, node: FleetNode) -> None:
    """Wait until a node has central's newest head."""
    newest = fleet.central.status()["trust"]
    node.wait(lambda status: status["trust"]["serial"] == newest["serial"], what="the newest head")


@dataclass(frozen=True)
class Shown:
    """A head and a Grants root as the forger announces them, and its answers to GetRoot."""

    head: bytes
    grants: bytes = b""
    roots: tuple[bytes, ...] = ()
    """Shown one after the other, each time with the head."""
    is_fork: bool = False


def signed_by(world: World, role: str, **changes: object) -> bytes:
    return world.stolen.keys.envelope(
        role, Head.TYPE, payload(world.stolen.head(world.head, **changes))
    )


def payload(envelope: bytes) -> bytes:
    return Envelope.decode(envelope, max_bytes=MAX_DOCUMENT_BYTES).payload


def newer(world: World, **changes: object) -> bytes:
    return world.stolen.head(world.head, serial=world.head.serial + 1, **changes)


def elsewhere_head(world: World) -> Shown:
    _, head, grants = trusted_head(world.elsewhere)
    return Shown(head, grants)


def elsewhere_signed(world: World) -> Shown:
    """Our fleet's newer head, but with the key of another fleet's central."""
    return Shown(world.elsewhere_keys().envelope("head", Head.TYPE, payload(newer(world))))


def other_fleet_our_keys(world: World) -> Shown:
    other, _ = trusted_root(world.elsewhere)
    return Shown(newer(world, fleet=other.fleet))


def unsigned(world: World) -> Shown:
    return Shown(Envelope(payload(newer(world)), ()).encode())


def forged_roots(world: World) -> Shown:
    """A newer head that names a Root 2, and Roots that are none."""
    root, stolen = world.root, world.stolen
    _, foreign = trusted_root(world.elsewhere)
    next_root = stolen.root(root, version=2)
    return Shown(
        newer(world, root_version=2),
        roots=(
            world.root_bytes,
            foreign,
            next_root[:-1],
            next_root[: len(next_root) // 2],
            b"",
            b"\xc1" * 64,
            Envelope(payload(next_root), ()).encode(),
            # Signed by the online keys, which may sign everything but Roots.
            stolen.keys.envelope("head", Root.TYPE, payload(next_root)),
            stolen.root(root, version=3),
            stolen.root(root, version=1, issued_s=root.issued_s + 1),
            stolen.root(root, version=2, fleet=trusted_root(world.elsewhere)[0].fleet),
        ),
    )  # fmt: skip


ATTEMPTS: dict[str, Callable[[World], Shown]] = {
    "older": lambda world: Shown(world.old_head_bytes, world.old_grants_bytes),
    "older number, signed today": lambda world: Shown(
        world.stolen.head(world.head, serial=world.head.serial - 1,
                          issued_s=world.head.issued_s + 9)
    ),
    "the first serial": lambda world: Shown(world.stolen.head(world.head, serial=1)),
    "fork": lambda world: Shown(world.stolen.fork(world.head), is_fork=True),
    "fork with fewer Grants": lambda world: Shown(
        world.stolen.head(world.head, grants_roots=world.head.grants_roots[1:]), is_fork=True
    ),
    "next epoch": lambda world: Shown(world.stolen.head(world.head, epoch=2, serial=1)),
    "next epoch, greater serial": lambda world: Shown(newer(world, epoch=2)),
    "another fleet's": elsewhere_head,
    "another fleet's signature": elsewhere_signed,
    "another fleet's name": other_fleet_our_keys,
    "truncated by one byte": lambda world: Shown(newer(world)[:-1], world.grants_bytes),
    "truncated by half": lambda world: Shown(newer(world)[: len(newer(world)) // 2]),
    "truncated to nothing": lambda _: Shown(b""),
    "with a byte too many": lambda world: Shown(newer(world) + b"\0"),
    "with a bit flipped": lambda world: Shown(
        newer(world)[:100] + bytes([newer(world)[100] ^ 1]) + newer(world)[101:]
    ),
    "not signed": unsigned,
    "signed by the key for Grants": lambda world: Shown(
        signed_by(world, "grants", serial=world.head.serial + 1)
    ),
    "a Grants root as a head": lambda world: Shown(world.grants_bytes),
    "under a Root that does not come": lambda world: Shown(newer(world, root_version=2)),
    "under forged Roots": forged_roots,
    "the held head with older Grants": lambda world: Shown(
        world.head_bytes, world.old_grants_bytes
    ),
    "the held head with truncated Grants": lambda world: Shown(
        world.head_bytes, world.grants_bytes[:-1]
    ),
    "the held head with another fleet's Grants": lambda world: Shown(
        world.head_bytes, trusted_head(world.elsewhere)[2]
    ),
}  # fmt: skip


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_peer_cannot_make_a_node_believe_what_it_must_not(world: World, victim: str) -> None:
    node = world.fleet.nodes[victim]
    pid = node.status()["pid"]

    async def attempt(name: str, shown: Shown, tap: EventTap) -> None:
        answers = list(shown.roots)

        def roots(_version: int) -> bytes | None:
            return answers.pop(0) if answers else None

        async with world.forger().pretending(node.address, Pretence(roots=roots)) as peer:
            for _ in range(max(1, len(shown.roots))):
                await announce(peer, shown.head, shown.grants)
            if shown.is_fork:
                await trio.to_thread.run_sync(alarm, tap, name)
            await announce(peer, world.stolen.fork(world.head))
            await trio.to_thread.run_sync(alarm, tap, name)
            assert answers == [], name
            held = await peer.request(GetHead(1), HeadAnswer)
            assert held.head == world.head_bytes, name

    def alarm(tap: EventTap, name: str) -> None:
        event = tap.wait("alarm")
        assert event["code"] == "head_forked", name
        assert str(world.head.serial) in event["sentence"], name

    with EventTap(node) as tap:
        for name, make in ATTEMPTS.items():
            trio.run(attempt, name, make(world), tap)
        assert "head.accepted" not in tap.names()
        assert "root.accepted" not in tap.names()
        assert "leaf.accepted" not in tap.names()

    status = node.status()
    assert status["pid"] == pid
    assert status["trust"]["root_version"] == 1
    trust = status["trust"]
    assert (trust["epoch"], trust["serial"]) == world.head.order
    assert trusted_head(node.state)[1] == world.head_bytes
    assert {"head_forked"} <= {reason["code"] for reason in status["health"]["reasons"]}
    assert status["health"]["level"] == "alarm"
    log = node.log.read_text()
    assert log.count('"head_forked"') >= 2
    assert '"notice_refused"' in log
    if status["role"] == "ice":
        [delivery] = status["deliveries"]
        assert delivery["state"] == "active"


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_proof_with_forged_documents_is_not_admitted(world: World, victim: str) -> None:
    node = world.fleet.nodes[victim]
    known = InsiderKnowledge.of(world.fleet.central.state)
    manifest = known.scripts[0].manifest
    stolen_leaf = known.stolen_proof(node_id(world.fleet.nodes["lyon-2-salle"]), manifest)
    far = (1, world.head.serial + 1000)
    _, elsewhere_bytes, elsewhere_grants = trusted_head(world.elsewhere)
    _, foreign_root = trusted_root(world.elsewhere)
    next_root = world.stolen.root(world.root, version=2)
    pretences = {
        "proof of another": (Pretence(proof=stolen_leaf), ErrorCode.BAD_PROOF),
        "no proof": (Pretence(proof=b""), ErrorCode.PROTOCOL_ERROR),
        "truncated proof": (Pretence(proof=stolen_leaf[:-1]), ErrorCode.PROTOCOL_ERROR),
        "truncated head": (
            Pretence(head_order=far, head=newer(world)[:-1]), ErrorCode.PROTOCOL_ERROR),
        "head of another epoch": (
            Pretence(head_order=(2, 1), head=newer(world, epoch=2)), ErrorCode.BAD_PROOF),
        "head of another fleet": (
            Pretence(head_order=far, head=elsewhere_bytes), ErrorCode.BAD_PROOF),
        "another fleet's Root": (
            Pretence(root_version=2, roots=lambda _: foreign_root), ErrorCode.WRONG_FLEET),
        "the same Root again": (
            Pretence(root_version=2, roots=lambda _: world.root_bytes), ErrorCode.BAD_PROOF),
        "truncated Root": (
            Pretence(root_version=2, roots=lambda _: next_root[:-1]), ErrorCode.PROTOCOL_ERROR),
        "no Root": (Pretence(root_version=2), ErrorCode.NOT_READY),
    }  # fmt: skip

    async def knock(pretence: Pretence) -> None:
        async with world.forger().pretending(node.address, pretence):
            raise AssertionError("it was let in")

    with EventTap(node) as tap:
        for name, (pretence, code) in pretences.items():
            with pytest.raises(PeerRefused) as refusal:
                trio.run(knock, pretence)
            assert refusal.value.reason is code, name

        # Older, forked or foreign documents beside a good proof are passed over.
        harmless = (
            Pretence(head_order=far, head=world.old_head_bytes, grants=world.old_grants_bytes),
            Pretence(head_order=far, head=world.stolen.fork(world.head)),
            Pretence(head_order=world.head.order, head=world.stolen.fork(world.head)),
            Pretence(grants=elsewhere_grants),
        )

        async def enter(pretence: Pretence) -> None:
            forger = world.forger()
            # It knows the newest head itself, which nobody shows to one that claims to have it.
            forger.trust.accept_head(
                Envelope.decode(world.head_bytes, max_bytes=MAX_DOCUMENT_BYTES), now=0.0
            )
            async with forger.pretending(node.address, pretence) as peer:
                held = await peer.request(GetHead(1), HeadAnswer)
                assert held.head == world.head_bytes

        for pretence in harmless:
            trio.run(enter, pretence)
        assert node.status()["trust"]["serial"] == world.head.serial
        assert node.status()["trust"]["root_version"] == 1
        tap.wait("alarm", lambda event: event["code"] == "head_forked")
        assert not {"head.accepted", "root.accepted"} & set(tap.names())


def test_grants_that_are_not_signed_for_are_not_believed_even_with_a_good_head(
    world: World,
) -> None:
    """Somebody who has the head key alone can neither grant nor take away anything."""
    fleet = world.fleet
    node = fleet.nodes["lyon-2-salle"]
    node.process.start()
    settle(fleet, node)
    node.wait_active("film")
    # Alone with the forger, so that nobody else meets the heads that are made here.
    others = [fleet.central, fleet.nodes["repo-1"], fleet.nodes["lyon-1-salle"]]
    for other in others:
        other.process.stop()
    keys, elsewhere = world.stolen.keys, world.elsewhere_keys()
    granted_by = "grants", GrantsRoot.TYPE
    good = GrantsRoot.decode(payload(world.grants_bytes))
    other_fleet = trusted_root(world.elsewhere)[0].fleet

    def grants(number: int, **changes: object) -> GrantsRoot:
        values = {
            "fleet": good.fleet,
            "epoch": good.epoch,
            "issued_s": good.issued_s + number,
            "tree": TreeHash.of(bytes([number])),
            "leaf_count": good.leaf_count,
            "index": good.index,
        }
        return GrantsRoot(**{**values, **changes})  # type: ignore[arg-type]

    signed_by_nobody = grants(1)
    by_head_key, by_another_fleet = grants(2), grants(3)
    other_epoch, named_elsewhere, cut = grants(4, epoch=2), grants(5, fleet=other_fleet), grants(6)
    forged = [
        (signed_by_nobody, Envelope(signed_by_nobody.encode(), ()).encode()),
        (by_head_key, keys.envelope("head", GrantsRoot.TYPE, by_head_key.encode())),
        (by_another_fleet, elsewhere.envelope(*granted_by, by_another_fleet.encode())),
        (other_epoch, keys.envelope(*granted_by, other_epoch.encode())),
        (named_elsewhere, keys.envelope(*granted_by, named_elsewhere.encode())),
        (cut, keys.envelope(*granted_by, cut.encode())[:-1]),
    ]  # fmt: skip

    async def mislead(number: int, root: DocumentId, envelope: bytes, tap: EventTap) -> None:
        head = world.stolen.head(
            world.head,
            serial=world.head.serial + number,
            grants_roots=(root, *world.head.grants_roots),
        )
        pretence = Pretence(grants_answer=envelope)
        async with world.forger().pretending(node.address, pretence) as peer:
            await announce(peer, head, envelope)
            await trio.to_thread.run_sync(accepted, tap, world.head.serial + number)
            decoded = Head.decode(payload(head))
            await announce(peer, world.stolen.fork(decoded))
            await trio.to_thread.run_sync(forked, tap)

    def accepted(tap: EventTap, serial: int) -> None:
        assert tap.wait("head.accepted")["serial"] == serial

    def forked(tap: EventTap) -> None:
        tap.wait("alarm", lambda event: event["code"] == "head_forked")

    try:
        with EventTap(node) as tap:
            for number, (root, envelope) in enumerate(forged, 1):
                trio.run(mislead, number, root.id, envelope, tap)
                trust = TrustFile(node.state / "trust").load()
                assert trust is not None
                held = {DocumentId.of(payload(data)) for data in trust.grants}
                assert root.id not in held, number
                assert held <= set(world.head.grants_roots)
            assert "leaf.accepted" not in tap.names()
            assert "release.withdrawn" not in tap.names()
        [delivery] = node.status()["deliveries"]
        assert delivery["state"] == "active"
    finally:
        node.process.stop()
        for other in others:
            other.process.start()
        wait_until_open(fleet.central)


def test_after_all_of_this_the_real_next_head_is_believed(world: World, tmp_path: Path) -> None:
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "index").write_text("the next one")
    world.fleet.publish(tmp_path / "loop", "film-loop", "loop")
    for name in VICTIMS:
        node = world.fleet.nodes[name]
        settle(world.fleet, node)
        assert node.status()["trust"]["serial"] > world.head.serial
