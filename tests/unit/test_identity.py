"""A node's key and certificate on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from archid.errors import Conflict, NotFound, StorageError
from archid.identity import Identity
from protocol.ids import NodeId
from tests.unit.net.certified import Fleet


def test_an_identity_is_loaded_as_it_was_created(tmp_path: Path) -> None:
    created = Identity.create(tmp_path)
    loaded = Identity.load(tmp_path)
    assert loaded.node_id == created.node_id == NodeId.of(created.public_key)
    assert loaded.public_key == created.public_key
    assert loaded.certificate is None


def test_a_signature_is_valid_for_its_type_and_payload_only(tmp_path: Path) -> None:
    identity = Identity.create(tmp_path)
    signature = identity.sign("join", b"payload")
    assert signature.key_id == identity.public_key.key_id
    assert identity.public_key.verify("join", b"payload", signature.value)
    assert not identity.public_key.verify("head", b"payload", signature.value)
    assert not identity.public_key.verify("join", b"payloae", signature.value)


def test_a_second_identity_in_the_same_state_is_refused(tmp_path: Path) -> None:
    first = Identity.create(tmp_path)
    with pytest.raises(Conflict):
        Identity.create(tmp_path)
    assert Identity.load(tmp_path).node_id == first.node_id


def test_a_state_without_identity_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        Identity.load(tmp_path)
    assert "archid join" in str(caught.value.remedy)


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    identity = Fleet.make(tmp_path).node("one")
    assert identity.folder.stat().st_mode & 0o777 == 0o700
    files = sorted(identity.folder.iterdir())
    assert [file.name for file in files] == ["certificate.pem", "key.pem", "node"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Identity.create(tmp_path).key_path.chmod(0o640)
    with pytest.raises(StorageError, match="may read the private key"):
        Identity.load(tmp_path)


@pytest.mark.parametrize("name", ["key.pem", "node", "certificate.pem"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"\xff\xfe\x00"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: bytes) -> None:
    fleet = Fleet.make(tmp_path)
    identity = fleet.node("one")
    (identity.folder / name).write_bytes(damage)
    with pytest.raises(StorageError, match=name) as caught:
        Identity.load(fleet.folder / "one")
    assert caught.value.remedy is not None


def test_the_certificate_of_another_node_is_refused(tmp_path: Path) -> None:
    fleet = Fleet.make(tmp_path)
    one, two = fleet.node("one"), fleet.node("two")
    one.certificate_path.write_bytes(two.certificate_path.read_bytes())
    with pytest.raises(StorageError, match=r"certificate\.pem"):
        Identity.load(fleet.folder / "one")


def test_an_interrupted_creation_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "node").write_text("left over")
    (tmp_path / "identity" / "key.pem.new").write_text("left over")
    created = Identity.create(tmp_path)
    assert Identity.load(tmp_path).node_id == created.node_id


def test_the_private_key_is_not_shown(tmp_path: Path) -> None:
    assert "Ed25519PrivateKey" not in repr(Identity.create(tmp_path))


def test_a_letter_that_became_a_capital_is_damage_though_it_means_the_same(tmp_path: Path) -> None:
    Fleet.make(tmp_path).node("one")
    [path] = tmp_path.rglob("identity/node")
    text = path.read_text()
    letter = next(character for character in text if character in "abcdef")
    path.write_text(text.replace(letter, letter.upper(), 1))
    with pytest.raises(StorageError, match="damaged"):
        Identity.load(path.parent.parent)
