"""What a node says of itself: signed, read back, and safe to show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.canonical import pack, unpack
from protocol.errors import TrustError
from protocol.ids import ManifestId
from protocol.state import Holding, NodeState, ReleaseStanding, open_state
from tests.unit.protocol.signed_fleet import FEATURE, NOW_S, RELEASE, SignedFleet, Signer, sign

NODE = Signer("ice")
STATE = NodeState(
    fleet=SignedFleet().fleet,
    node=NODE.node,
    incarnation=1,
    seq=7,
    issued_s=NOW_S,
    software="archid 1",
    addresses=("10.0.0.7:4777",),
    head_order=(1, 9),
    health="attention",
    reasons=("The disk is nearly full",),
    free_bytes=1 << 30,
    releases=(ReleaseStanding(RELEASE, 3, "fetching", "no peer holds it"),),
    holdings=(Holding(ManifestId(FEATURE), 500),),
)


def test_a_state_is_read_back_as_it_was_signed() -> None:
    opened = open_state(sign(STATE, NODE), NODE.public_key)
    assert opened == STATE
    assert opened.order == (1, 7)


def test_only_the_nodes_own_key_counts() -> None:
    with pytest.raises(TrustError):
        open_state(sign(STATE, Signer("another")), NODE.public_key)


def test_no_node_writes_escapes_to_an_operators_terminal() -> None:
    plain = unpack(STATE.encode(), max_bytes=1 << 16)
    assert isinstance(plain, list)
    hostile = "\x1b]0;owned\x07\u202etxt"
    plain[7] = hostile  # software
    plain[10], plain[11] = "\x1b[2J", [hostile]  # health, reasons
    releases = plain[13]
    assert isinstance(releases, list)
    releases[0][2], releases[0][3] = hostile, hostile  # type: ignore[index]
    state = NodeState.decode(pack(plain))
    texts = [state.software, state.health, *state.reasons, *state.releases[0][2:]]
    assert all(text.isprintable() for text in texts)
    assert state.encode() == pack(plain), "what was signed stays as it came"
    assert replace(state, software="archid 1").software == "archid 1"
