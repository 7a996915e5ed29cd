"""The golden vectors of joining, certificates and the state folder, read as they were frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from archid.membership import FILE_NAME, Membership
from archid.net.certificates import check_own
from archid.store.documents import DocumentStore
from archid.store.trust_file import TrustFile, TrustState
from protocol.envelope import PublicKey
from protocol.ids import NodeId
from protocol.join_token import JoinToken
from tests.vectors import make_state

FROZEN: dict[str, Any] = json.loads(make_state.PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize("subject", sorted(FROZEN))
def test_todays_code_makes_the_frozen_vectors(subject: str) -> None:
    assert make_state.vectors()[subject] == FROZEN[subject]


def test_the_file_is_what_the_generator_writes() -> None:
    assert make_state.text() == make_state.PATH.read_text(encoding="utf-8")


def test_the_frozen_token_is_read() -> None:
    token = JoinToken.decode(FROZEN["token"]["text"])
    assert token.secret.hex() == FROZEN["token"]["secret"]
    assert list(token.addresses) == FROZEN["token"]["addresses"]


def test_the_frozen_certificate_is_one_of_its_fleet() -> None:
    frozen = FROZEN["certificates"]
    check_own(
        bytes.fromhex(frozen["node certificate"]),
        node=NodeId.from_hex(frozen["node"]),
        public_key=PublicKey(make_state.NODE.public_key),
        cas=[bytes.fromhex(frozen["ca"])],
    )


def test_the_frozen_join_proof_is_a_signature_of_what_is_said_to_be_signed() -> None:
    frozen = FROZEN["join proof"]
    key = Ed25519PublicKey.from_public_bytes(make_state.NODE.public_key)
    key.verify(bytes.fromhex(frozen["signature"]), bytes.fromhex(frozen["signed"]))


def test_a_frozen_state_is_read_back(tmp_path: Path) -> None:
    for name, data in FROZEN["documents"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes.fromhex(data))
    documents = DocumentStore(tmp_path)
    assert documents.root_versions() == [1]
    [(node, grants_root)] = documents.leaves()
    [trusted] = documents.grants()
    assert grants_root == trusted
    (tmp_path / "trust").write_bytes(bytes.fromhex(FROZEN["trust file"]["full"]))
    state = TrustFile(tmp_path / "trust").load()
    assert state is not None
    assert state.root == documents.get_root(1)
    assert state.grants == (documents.get_grants(grants_root),)
    assert documents.get_leaf(node, grants_root)
    (tmp_path / "trust").write_bytes(bytes.fromhex(FROZEN["trust file"]["empty"]))
    assert TrustFile(tmp_path / "trust").load() == TrustState()
    (tmp_path / FILE_NAME).write_text(json.dumps(FROZEN["membership"]))
    assert Membership.load(tmp_path).fleet_name == "Côté salle"
