"""Founding a fleet: what is made, what is refused, and that nothing is left of a failure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from archid.addresses import Address
from archid.central.ceremony import Founding, initialise
from archid.central.keys import OnlineKeys, keys_folder
from archid.central.root_keys import load_root_keys, write_root_keys
from archid.errors import ArchidError, Conflict, Denied, NotFound, StorageError, UsageError
from archid.identity import Identity
from archid.membership import Membership
from archid.net.certificates import check_own
from archid.store.layout import StateLock, StatePaths
from archid.store.trust_file import TrustFile
from protocol.documents import GrantsRoot
from protocol.envelope import Envelope, PublicKey
from protocol.trust import TrustedDocuments
from tests.unit.central.fleet import NOW, PASSPHRASE, Fleet

MAX = 2**21


def founding(folder: Path) -> Founding:
    return Founding(
        fleet_name="Fleet",
        node_name="central",
        root_key_file=folder / "root-keys.txt",
        advertise=[Address("central.example")],
    )


def paths_in(folder: Path) -> StatePaths:
    return StatePaths(folder / "state", folder / "scripts")


def test_a_stranger_with_the_fingerprint_believes_what_was_founded(fleet: Fleet) -> None:
    membership = Membership.load(fleet.paths.identity)
    kept = TrustFile(fleet.paths.trust).load()
    assert kept is not None
    assert kept.root is not None
    assert kept.head is not None
    trust = TrustedDocuments.restore(
        [Envelope.decode(kept.root, max_bytes=MAX)],
        Envelope.decode(kept.head, max_bytes=MAX),
        [Envelope.decode(each, max_bytes=MAX) for each in kept.grants],
        fingerprint=membership.anchor,
        now=NOW,
    )
    assert trust.head is not None
    assert trust.head.order == (1, 1)
    assert not trust.missing_grants()
    assert trust.root is not None
    identity = Identity.load(fleet.paths.state)
    assert identity.certificate is not None
    check_own(
        identity.certificate,
        node=identity.node_id,
        public_key=identity.public_key,
        cas=trust.root.ca_certificates,
    )


def test_private_files_are_for_their_owner_only(fleet: Fleet) -> None:
    for path in (*keys_folder(fleet.paths.state).iterdir(), *fleet.paths.state.glob("central.db*")):
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert keys_folder(fleet.paths.state).stat().st_mode & 0o777 == 0o700


def test_root_keys_are_in_their_file_only_and_open_with_the_passphrase(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    plan = replace(founding(tmp_path), root_keys=3, root_threshold=2)
    founded = initialise(plan, paths=paths, passphrase=PASSPHRASE, now=NOW)
    assert plan.root_key_file.stat().st_mode & 0o777 == 0o600
    root_keys = load_root_keys(plan.root_key_file, PASSPHRASE)
    threshold, known = founded.root.keys_of("root")
    public = {PublicKey(key.public_key().public_bytes_raw()).key_id for key in root_keys}
    assert (threshold, public) == (2, set(known))
    assert founded.root.keys_of("software") == (threshold, known)
    secrets = [key.private_bytes_raw() for key in root_keys]
    for path in [*paths.state.rglob("*"), plan.root_key_file]:
        if path.is_file():
            content = path.read_bytes()
            assert not any(
                secret in content or secret.hex().encode() in content for secret in secrets
            )
    with pytest.raises(Denied):
        load_root_keys(plan.root_key_file, PASSPHRASE + "!")


@pytest.mark.parametrize("passphrase", ["", "short"])
def test_a_weak_passphrase_is_refused_before_anything_is_written(
    tmp_path: Path, passphrase: str
) -> None:
    with pytest.raises(UsageError) as caught:
        initialise(founding(tmp_path), paths=paths_in(tmp_path), passphrase=passphrase, now=NOW)
    assert caught.value.code == "passphrase"
    assert list(tmp_path.iterdir()) == []


def test_a_short_passphrase_can_be_insisted_on(tmp_path: Path) -> None:
    plan = founding(tmp_path)
    initialise(
        plan,
        paths=paths_in(tmp_path),
        passphrase="short",
        now=NOW,
        allow_short_passphrase=True,
    )
    assert load_root_keys(plan.root_key_file, "short")


def test_a_second_fleet_in_one_state_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(Conflict) as caught:
        initialise(founding(tmp_path), paths=fleet.paths, passphrase=PASSPHRASE, now=NOW)
    assert caught.value.code == "initialised"
    assert not founding(tmp_path).root_key_file.exists()


def test_what_an_interrupted_init_left_is_told_apart(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    initialise(founding(tmp_path), paths=paths, passphrase=PASSPHRASE, now=NOW)
    (paths.identity / "fleet.json").unlink()
    other = replace(founding(tmp_path), root_key_file=tmp_path / "other.txt")
    with pytest.raises(Conflict, match="left over"):
        initialise(other, paths=paths, passphrase=PASSPHRASE, now=NOW)


def test_an_existing_file_of_root_keys_is_never_overwritten(tmp_path: Path) -> None:
    plan = founding(tmp_path)
    plan.root_key_file.write_text("precious")
    with pytest.raises(Conflict, match="not overwritten"):
        initialise(plan, paths=paths_in(tmp_path), passphrase=PASSPHRASE, now=NOW)
    assert plan.root_key_file.read_text() == "precious"


def test_root_keys_in_the_state_folder_are_refused(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    plan = replace(founding(tmp_path), root_key_file=paths.state / "root-keys.txt")
    with pytest.raises(UsageError, match="in central's state"):
        initialise(plan, paths=paths, passphrase=PASSPHRASE, now=NOW)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fleet_name": ""},
        {"fleet_name": "two\nlines"},
        {"node_name": "a b"},
        {"root_keys": 2, "root_threshold": 3},
        {"root_key_file": Path("/nowhere/at/all/keys")},
        {"site": "a/b"},
    ],
)
def test_bad_decisions_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    plan = replace(founding(tmp_path), **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        initialise(plan, paths=paths_in(tmp_path), passphrase=PASSPHRASE, now=NOW)


def test_a_failure_in_the_middle_leaves_nothing_and_it_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_in(tmp_path)
    with monkeypatch.context() as patch:

        def full(_: TrustFile, __: object) -> None:
            raise StorageError("The disk is full")

        patch.setattr(TrustFile, "save", full)
        with pytest.raises(StorageError):
            initialise(founding(tmp_path), paths=paths, passphrase=PASSPHRASE, now=NOW)
    assert not founding(tmp_path).root_key_file.exists()
    assert not paths.identity.exists()
    initialise(founding(tmp_path), paths=paths, passphrase=PASSPHRASE, now=NOW)


def test_a_state_that_a_daemon_uses_is_refused(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    paths.prepare()
    with StateLock(paths.lock), pytest.raises(Conflict):
        initialise(founding(tmp_path), paths=paths, passphrase=PASSPHRASE, now=NOW)


# -- keys


def test_keys_that_others_may_read_are_refused(fleet: Fleet) -> None:
    (keys_folder(fleet.paths.state) / "head.pem").chmod(0o644)
    with pytest.raises(StorageError, match="Other users may read"):
        OnlineKeys.load(fleet.paths.state)


@pytest.mark.parametrize("name", ["head.pem", "ca.pem", "seal.pem", "salt"])
def test_a_damaged_or_missing_key_is_named(fleet: Fleet, name: str) -> None:
    path = keys_folder(fleet.paths.state) / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StorageError, match="damaged"):
        OnlineKeys.load(fleet.paths.state)
    path.unlink()
    with pytest.raises(StorageError, match="missing"):
        OnlineKeys.load(fleet.paths.state)


def test_no_key_shows_in_a_repr(fleet: Fleet) -> None:
    keys = OnlineKeys.load(fleet.paths.state)
    assert keys.salt_secret.hex() not in repr(keys)
    assert repr(keys.salt_secret) not in repr(keys)


def test_each_role_signs_with_a_key_of_its_own(fleet: Fleet) -> None:
    keys = OnlineKeys.load(fleet.paths.state)
    assert len({keys.public_key(role) for role in keys.private_keys}) == len(keys.private_keys)
    envelope = Envelope.decode(keys.envelope("grants", GrantsRoot.TYPE, b"x"), max_bytes=MAX)
    key = keys.public_key("grants")
    assert key.verify(GrantsRoot.TYPE, b"x", envelope.signatures[0].value)
    assert not key.verify("head", b"x", envelope.signatures[0].value)


def test_damaged_root_keys_are_told_from_a_wrong_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(NotFound):
        load_root_keys(path, "x")
    path.write_text("nothing of the kind")
    with pytest.raises(StorageError):
        load_root_keys(path, "x")
    path.unlink()
    write_root_keys(path, [], PASSPHRASE, fleet_name="F")
    text = path.read_text()
    middle = text.index("BEGIN") + 60
    changed = "A" if text[middle] != "A" else "B"
    path.write_text(text[:middle] + changed + text[middle + 1 :])
    with pytest.raises(ArchidError):
        load_root_keys(path, PASSPHRASE)
