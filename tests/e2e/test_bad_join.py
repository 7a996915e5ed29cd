"""Joining with what does not entitle to it: refused in a sentence, and a good token works after.

Two real fleets, so that everything of *another* fleet is real too: its tokens, its central, the
certificate of its node.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from protocol.ids import NodeId
from protocol.join_token import JoinToken
from tests.fleet.local import EVENT_TIMEOUT_S, FleetNode, LocalFleet
from tests.fleet.refusals import refused
from tests.fleet.watched import no_traceback, watched_fleet


@dataclass(frozen=True)
class Fleets:
    """Ours, and one that has nothing to do with it, with a server of its own that runs."""

    ours: LocalFleet
    theirs: LocalFleet


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleets]:
    base = tmp_path_factory.mktemp("fleets")
    with watched_fleet(base / "ours") as ours, watched_fleet(base / "theirs") as theirs:
        ours.found()
        theirs.found()
        theirs.join(
            "oslo-1", "ice", site="oslo", room="1", kind="sas", peers=[ours.central.address]
        )
        yield Fleets(ours, theirs)


@pytest.fixture
def newcomer(fleets: Fleets, tmp_path: Path) -> FleetNode:
    """A machine that is configured as an ICE server and belongs to no fleet."""
    return FleetNode(tmp_path, "new", "ice", fleets.ours.address())


_names = iter(f"node-{number}" for number in range(1000))


def token_of(fleet: LocalFleet, *, name: str = "") -> str:
    return fleet.token(name or next(_names), "ice", site="lyon", room="1", kind="salle")


def joins(node: FleetNode, token: str) -> dict[str, Any]:
    result: dict[str, Any] = node.json("join", token)
    return result


def check_outside(node: FleetNode) -> None:
    """Raise AssertionError when the node became part of a fleet all the same."""
    assert not (node.state / "identity" / "fleet.json").exists()
    assert not (node.state / "trust").exists()


def check_does_not_run(node: FleetNode) -> None:
    """Raise AssertionError unless its daemon says that it belongs to no fleet."""
    refused(node, "run").check(3, str(node.state), "belongs to no fleet", "archid join")


# Texts that are no token

Change = Callable[[str], str]

NO_TOKENS: dict[str, tuple[Change, str]] = {
    "a typo": (lambda token: token[:40] + ("a" if token[40] != "a" else "b") + token[41:], "typed"),
    "cut": (lambda token: token[:-7], "cut or mistyped"),
    "twice": (lambda token: token + token, "cut or mistyped"),
    "something else": (lambda _: "https://central.example/join?x", "begins with 'archid-join-'"),
    "only the prefix": (lambda _: "archid-join-", "cut or mistyped"),
    "endless": (lambda token: token + "a" * 9000, "longer than a joining token"),
    "control characters": (lambda token: token[:30] + "\x1b[2J" + token[30:], "cut or mistyped"),
}


@pytest.fixture(scope="module")
def unspoilt(fleets: Fleets) -> str:
    """A token that is good until it is spoilt on the way."""
    return token_of(fleets.ours)


@pytest.mark.parametrize(("change", "says"), NO_TOKENS.values(), ids=NO_TOKENS)
def test_a_text_that_is_no_token_is_told_apart_at_once(
    unspoilt: str, newcomer: FleetNode, change: Change, says: str
) -> None:
    token = unspoilt
    refusal = refused(newcomer, "join", change(token))
    refusal.check(2, "not a usable joining token", says, "archid token create")
    assert token[30:60] not in refusal.err, "it repeats a secret"
    assert not (newcomer.state / "identity" / "key.pem").exists()


def test_white_space_and_capitals_are_no_typo(fleets: Fleets, newcomer: FleetNode) -> None:
    token = token_of(fleets.ours)
    wrapped = "\n  ".join(token[n : n + 60] for n in range(0, len(token), 60)).upper()
    assert joins(newcomer, f"  {wrapped}\n")["fleet_name"] == "test fleet"


# Tokens that are none of ours, or not any more


def forged(token: str, **fields: Any) -> str:
    return replace(JoinToken.decode(token), **fields).encode()


FORGED: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "secret": ({"secret": bytes(32)}, 4, ("not made by this central", "copied whole")),
    "id": ({"token_id": bytes(range(16))}, 4, ("not made by this central", "copied whole")),
    "central": ({"central": NodeId(bytes(32))}, 8, ("another node", "nothing secret")),
}


@pytest.mark.parametrize(("fields", "code", "says"), FORGED.values(), ids=FORGED)
def test_a_forged_token_is_refused(
    fleets: Fleets,
    newcomer: FleetNode,
    fields: dict[str, Any],
    code: int,
    says: tuple[str, ...],
) -> None:
    token = token_of(fleets.ours)
    refused(newcomer, "join", forged(token, **fields)).check(code, *says, "archid token create")
    check_outside(newcomer)
    check_does_not_run(newcomer)
    assert joins(newcomer, token)["role"] == "ice"


def test_a_token_that_leads_to_another_fleet_tells_it_nothing(
    fleets: Fleets, newcomer: FleetNode
) -> None:
    token = token_of(fleets.ours)
    abroad = forged(token, addresses=(fleets.theirs.central.address,))
    refused(newcomer, "join", abroad).check(
        8, fleets.theirs.central.address, "not the central that made the token", "nothing secret"
    )
    check_outside(newcomer)
    # It was not used up.
    assert joins(newcomer, token)["fleet"] == fleets.ours.central.status()["fleet"]


def test_an_expired_token_is_refused(fleets: Fleets, newcomer: FleetNode) -> None:
    central = fleets.ours.central
    made = central.json(
        "token",
        "create",
        "--role",
        "ice",
        "--name",
        "late",
        "--site",
        "lyon",
        "--room",
        "1",
        "--kind",
        "sas",
        "--lifetime",
        "1s",
    )
    deadline = time.monotonic() + 60
    while not _is_expired(central, made["id"]):
        assert time.monotonic() < deadline
    refused(newcomer, "join", made["token"]).check(4, "expired", "archid token create")
    check_outside(newcomer)
    assert joins(newcomer, token_of(fleets.ours))["role"] == "ice"


def _is_expired(central: FleetNode, token: str) -> bool:
    return any(
        one["id"] == token and one["state"] == "expired"
        for one in central.call("token.list")["tokens"]
    )


def test_a_token_lets_one_node_in_once(fleets: Fleets, newcomer: FleetNode, tmp_path: Path) -> None:
    token = token_of(fleets.ours)
    joins(newcomer, token)
    second = FleetNode(tmp_path, "second", "ice", fleets.ours.address())
    refused(second, "join", token).check(4, "used already", "archid token create")
    check_outside(second)
    joins(second, token_of(fleets.ours))


def test_a_node_joins_once(fleets: Fleets, newcomer: FleetNode) -> None:
    token = token_of(fleets.ours)
    node = joins(newcomer, token)["node"]
    for again in (token, token_of(fleets.ours), token_of(fleets.theirs)):
        refused(newcomer, "join", again).check(
            6, str(newcomer.state), "belongs to a fleet already", "archid leave"
        )
    assert (newcomer.state / "identity" / "node").read_text().strip() == node


def test_a_token_for_another_role_is_refused_before_it_is_used(
    fleets: Fleets, tmp_path: Path
) -> None:
    node = FleetNode(tmp_path, "repo", "repo", fleets.ours.address())
    token = token_of(fleets.ours)
    refused(node, "join", token).check(2, "role 'ice'", "configured as 'repo'", "[node] role")
    assert not (node.state / "identity").exists()
    # A token that lies about its role gives the role that central wrote down, and so nothing.
    lie = forged(token, role="repo")
    refused(node, "join", lie).check(2, "role 'ice'", "configured as 'repo'", "[node] role")
    check_outside(node)
    node.role = "ice"
    node.write_config()
    assert joins(node, token)["role"] == "ice"


def test_a_name_that_is_taken_gets_no_token(fleets: Fleets) -> None:
    refused(fleets.ours.central, "token", "create", "--role", "repo", "--name", "central").check(
        6, "'central'"
    )


def test_central_joins_nobody_and_is_founded_once(fleets: Fleets, tmp_path: Path) -> None:
    central = fleets.ours.central
    refused(central, "join", token_of(fleets.theirs)).check(2, str(central.config), "archid init")
    secret = tmp_path / "passphrase"
    secret.write_text("a passphrase of some length\n")
    secret.chmod(0o600)
    keys = tmp_path / "keys"
    refused(
        central, "init", "again", "--root-keys", str(keys), "--passphrase-file", str(secret)
    ).check(6, str(central.state))
    assert not keys.exists()


# Centrals that do not answer


def test_a_central_that_is_away_is_named_and_the_token_stays_good(
    fleets: Fleets, newcomer: FleetNode
) -> None:
    central = fleets.ours.central
    token = token_of(fleets.ours)
    central.process.stop()
    refused(newcomer, "join", token).check(
        5, central.address, "nothing listens on", "repeat the same command"
    )
    central.process.start()
    assert joins(newcomer, token)["role"] == "ice"


def test_something_else_that_answers_is_not_taken_for_central(
    fleets: Fleets, newcomer: FleetNode
) -> None:
    token = token_of(fleets.ours)
    host, _, port = fleets.ours.address().rpartition(":")
    with closing(socket.create_server((host, int(port)))) as listener:
        listener.settimeout(60)
        elsewhere = forged(token, addresses=(f"{host}:{port}",))
        answering = _Answering(listener, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with answering:
            refused(newcomer, "join", elsewhere).check(
                5, f"{host}:{port}", "no archid", "repeat the same command"
            )
    assert joins(newcomer, token)["role"] == "ice"


class _Answering:
    """Says the same to the first who connects, whatever was asked."""

    def __init__(self, listener: socket.socket, words: bytes) -> None:
        import threading

        self._thread = threading.Thread(target=self._answer, args=(listener, words))

    def _answer(self, listener: socket.socket, words: bytes) -> None:
        connected, _ = listener.accept()
        with connected:
            connected.recv(4096)
            connected.sendall(words)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()


# A certificate of another fleet


def refused_by(central: FleetNode, stranger: FleetNode) -> dict[str, Any]:
    """How the stranger sees central once central has answered it: no event tells of that, and
    before, central may not have listened yet."""
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    peer: dict[str, Any] = {}
    while time.monotonic() < deadline:
        peers = stranger.call("peers")["peers"]
        peer = next((one for one in peers if one["address"] == central.address), {})
        if peer.get("reason") and "nothing listens" not in peer["reason"]:
            break
    return peer


def test_a_node_of_another_fleet_is_not_let_in_and_says_so(fleets: Fleets) -> None:
    stranger, ours = fleets.theirs.nodes["oslo-1"], fleets.ours.central
    peer = refused_by(ours, stranger)
    assert peer["state"] == "waiting"
    assert "fleet" in peer["reason"], peer
    assert "certificate" in peer["reason"], peer
    assert all(one["name"] != "oslo-1" for one in ours.status()["peers"])
    # Its own fleet goes on.
    assert any(one["state"] == "admitted" for one in stranger.call("peers")["peers"])


def test_an_identity_of_another_fleet_is_refused_at_the_start(
    fleets: Fleets, newcomer: FleetNode
) -> None:
    joins(newcomer, token_of(fleets.ours))
    theirs = fleets.theirs.nodes["oslo-1"].state / "identity" / "certificate.pem"
    kept = newcomer.state / "identity" / "certificate.pem"
    kept.write_bytes(theirs.read_bytes())
    refused(newcomer, "run").check(7, str(kept), "does not belong to this node")
    no_traceback(newcomer)
