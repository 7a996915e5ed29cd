"""New Roots: signed elsewhere, in force all at once, and a way out when nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archid.central.keys import OnlineKeys, keys_folder, take_up_next
from archid.central.recovery import GateState
from archid.central.root_desk import RootDesk
from archid.central.root_keys import load_root_keys, public_key, sign_root
from archid.central.rotation import REPLACEABLE, RootChange
from archid.central.service import CentralService
from archid.errors import Conflict, TrustFailure, UsageError
from protocol.root import Root
from tests.unit.central.fleet import PASSPHRASE, Fleet, publish

ALL = frozenset(REPLACEABLE)


@pytest.fixture(scope="session")
def root_key(founded_once: Fleet) -> Ed25519PrivateKey:
    [key] = load_root_keys(founded_once.paths.state.parent / "root-keys.txt", PASSPHRASE)
    return key


async def install(
    service: CentralService, change: RootChange, *signers: Ed25519PrivateKey
) -> tuple[RootDesk, Root]:
    desk = service.root_desk(tuple)
    prepared = await desk.prepare(change, by="root")
    root = Root.decode(bytes.fromhex(prepared["root"]))
    await desk.install(sign_root(root, signers), by="root")
    return desk, root


async def test_new_keys_sign_and_the_old_ones_are_gone(
    fleet: Fleet, root_key: Ed25519PrivateKey
) -> None:
    before = OnlineKeys.load(fleet.paths.state)
    with fleet.running() as service:
        await publish(service, "film", "loop")
        serial = service.state.order[1]
        _, root = await install(service, RootChange(roles=ALL), root_key)
        assert (root.version, root.epoch) == (2, 1)
        assert service.state.order[1] > serial
        assert service.state.head.root_version == 2
    after = OnlineKeys.load(fleet.paths.state)
    assert after.fit(root)
    assert not before.fit(root)
    for role in before.private_keys:
        assert (before.public_key(role) == after.public_key(role)) is (role == "ca"), role
    assert after.salt_secret == before.salt_secret
    assert [one.name for one in keys_folder(fleet.paths.state).parent.glob("keys*")] == ["keys"]
    with fleet.running() as service:
        await publish(service, "film", "loop", b"more")


async def test_only_the_root_that_was_prepared_and_signed_comes_into_force(
    fleet: Fleet, root_key: Ed25519PrivateKey
) -> None:
    with fleet.running() as service:
        order = service.state.order
        with pytest.raises(TrustFailure):
            await install(service, RootChange(roles=ALL), Ed25519PrivateKey.generate())
        new = Ed25519PrivateKey.generate()
        for signers in ((root_key,), (new,)):
            with pytest.raises(TrustFailure):
                await install(service, RootChange(root_keys=(public_key(new),)), *signers)
        desk = service.root_desk(tuple)
        first = await desk.prepare(RootChange(roles=ALL), by="root")
        await desk.prepare(RootChange(roles=ALL), by="root")
        root = Root.decode(bytes.fromhex(first["root"]))
        with pytest.raises(Conflict) as refusal:
            await desk.install(sign_root(root, [root_key]), by="root")
        assert refusal.value.code == "root_outdated"
        for change in (RootChange(), RootChange(roles=frozenset({"root"})),
                       RootChange(drop_old_cas=True)):  # fmt: skip
            with pytest.raises(UsageError):
                await desk.prepare(change, by="root")
        assert service.state.order == order
        # The old root keys and the new ones, together, are what it takes.
        _, root = await install(service, RootChange(root_keys=(public_key(new),)), root_key, new)
        await install(service, RootChange(roles=ALL), new)
        with pytest.raises(TrustFailure):
            await install(service, RootChange(roles=ALL), root_key)


@pytest.mark.parametrize("crash", ["before the keys", "between the renames"])
async def test_a_crash_after_signing_leaves_keys_that_fit(
    fleet: Fleet, root_key: Ed25519PrivateKey, tmp_path: Path, crash: str
) -> None:
    keys = keys_folder(fleet.paths.state)
    shutil.copytree(keys, tmp_path / "old keys")
    with fleet.running() as service:
        await install(service, RootChange(roles=ALL), root_key)
    keys.rename(keys.with_name("keys.next"))
    if crash == "before the keys":
        shutil.copytree(tmp_path / "old keys", keys)
    with fleet.running() as service:
        assert service.gate.state is GateState.OPEN
        await publish(service, "film", "loop")


async def test_keys_of_a_root_that_never_came_go(fleet: Fleet) -> None:
    with fleet.running() as service:
        await service.root_desk(tuple).prepare(RootChange(roles=ALL), by="root")
        root = service.state.root
    assert keys_folder(fleet.paths.state).with_name("keys.next").exists()
    take_up_next(fleet.paths.state, root)
    assert not keys_folder(fleet.paths.state).with_name("keys.next").exists()
    assert OnlineKeys.load(fleet.paths.state).fit(root)


@pytest.mark.expect_errors("keys_behind")
async def test_keys_older_than_the_root_sign_nothing_until_they_are_replaced(
    fleet: Fleet, root_key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    keys = keys_folder(fleet.paths.state)
    shutil.copytree(keys, tmp_path / "old keys")
    with fleet.running() as service:
        await install(service, RootChange(roles=ALL), root_key)
    shutil.rmtree(keys)
    shutil.copytree(tmp_path / "old keys", keys)
    with fleet.running() as service:
        assert service.gate.state is GateState.STOPPED
        with pytest.raises(Conflict, match="is not one of Root version 2"):
            await publish(service, "film", "loop")
        with pytest.raises(Conflict) as refusal:
            await service.trust_database(by="root")
        assert refusal.value.code == "keys_behind"
        # What does not fit is replaced, whether it was named or not.
        _, root = await install(service, RootChange(roles=frozenset({"seal"})), root_key)
        assert root.version == 3
        await publish(service, "film", "loop")


async def test_a_new_epoch_signs_everything_anew_from_one(
    fleet: Fleet, root_key: Ed25519PrivateKey
) -> None:
    with fleet.running() as service:
        await publish(service, "film", "loop")
        old = service.state
        service.gate.import_failed("there are two centrals")
        with pytest.raises(Conflict, match="two centrals"):
            await install(service, RootChange(roles=ALL), root_key)
        await install(service, RootChange(roles=ALL, new_epoch=True), root_key)
        state = service.state
        assert state.order == (2, 1)
        assert set(state.head.grants_roots).isdisjoint(old.head.grants_roots)
        assert state.head.catalogue == old.head.catalogue
        assert service.gate.is_open
        # Whatever is shown of the old epoch, however often it was signed, is over.
        assert service.head_shown(fleet.node, old.head_envelope, roots=()) is GateState.OPEN


async def test_an_old_ca_counts_until_it_is_dropped(
    fleet: Fleet, root_key: Ed25519PrivateKey
) -> None:
    with fleet.running() as service:
        [old] = service.state.root.ca_certificates
        await install(service, RootChange(new_ca=True), root_key)
        new = service.state.root.ca_certificates
        assert new[1:] == (old,)
        await install(service, RootChange(drop_old_cas=True), root_key)
        assert service.state.root.ca_certificates == new[:1]
