"""Central's service on real SQLite files: what is signed after each change."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio

from archid.central.estate import Place
from archid.central.service import CentralService
from archid.central.signing import TakesAway
from archid.central.tokens import TokenRefused
from archid.errors import Conflict, NotFound, StorageError, UsageError
from archid.store.documents import DocumentStore
from protocol.envelope import Envelope
from protocol.facts import STATE_WITHDRAWN
from protocol.grants import Leaf, LeafDocument
from protocol.ids import DocumentId, NodeId
from protocol.join_token import JoinToken
from protocol.trust import Outcome, TrustedDocuments
from tests.unit.central.fleet import (
    DAY,
    NOW,
    SALLE,
    SAS,
    Fleet,
    definition,
    join,
    manifest_root,
    new_key,
    publish,
    publish_three,
)

MAX = 2**21


class Follower:
    """A node that believes what central signs, by the rules that every node keeps."""

    def __init__(self, service: CentralService) -> None:
        self.trust = TrustedDocuments()
        first = Envelope.decode(service.state.roots[0], max_bytes=MAX)
        self.trust.accept_first_root(first, service.state.root.fingerprint)
        self.follow(service)

    def follow(self, service: CentralService) -> Outcome:
        head = Envelope.decode(service.state.head_envelope, max_bytes=MAX)
        outcome = self.trust.accept_head(head, now=NOW)
        for grants in service.state.grants_envelopes:
            self.trust.accept_grants(Envelope.decode(grants, max_bytes=MAX))
        return outcome

    def leaf(self, service: CentralService, node: NodeId) -> Leaf:
        return self.trust.check_leaf(LeafDocument.decode(service.state.leaf(node)))


async def fleet_with_release(service: CentralService) -> list[NodeId]:
    salle = await join(service, SALLE, "paris-1-salle")
    sas = await join(service, SAS, "paris-1-sas")
    await publish_three(service)
    await service.apply_release(definition(), source="dune.toml", by="tester")
    return [salle.node.node, sas.node.node]


async def test_a_release_reaches_the_leaves_of_its_servers_and_of_nobody_else(
    fleet: Fleet,
) -> None:
    with fleet.running() as service:
        follower = Follower(service)
        other = await join(service, Place("ice", "lyon", "1", "salle"), "lyon-1-salle")
        salle, sas = await fleet_with_release(service)
        assert follower.follow(service) is Outcome.NEWER
        for node in (salle, sas):
            leaf = follower.leaf(service, node)
            assert [header.name for header in leaf.releases] == ["Dune"]
            assert sorted(entry.kind for _, entry in leaf.entries) == ["feature", "loop", "sas"]
        nobody = follower.leaf(service, other.node.node)
        assert not nobody.releases
        assert not nobody.entries


async def test_a_leaf_that_nothing_concerns_stays_the_same_byte_for_byte(fleet: Fleet) -> None:
    with fleet.running() as service:
        salle, _ = await fleet_with_release(service)
        before = LeafDocument.decode(service.state.leaf(salle)).items
        grants_before = service.state.grants_root
        await join(service, Place("ice", "lyon", "1", "salle"), "lyon-1-salle")
        assert LeafDocument.decode(service.state.leaf(salle)).items == before
        assert service.state.grants_root != grants_before


async def test_publishing_signs_a_new_head_over_the_same_grants(fleet: Fleet) -> None:
    with fleet.running() as service:
        before = service.state
        await publish(service, "dune-feature", "feature")
        assert service.state.head.serial == before.head.serial + 1
        assert service.state.head.grants_roots == before.head.grants_roots
        assert service.state.head.catalogue != before.head.catalogue


async def test_a_new_version_bumps_the_generation_and_takes_nothing_away(fleet: Fleet) -> None:
    with fleet.running() as service:
        salle, _ = await fleet_with_release(service)
        await publish(service, "dune-feature", "feature")
        plan = await service.apply_release(definition(), source="d", by="t", expected=None)
        assert (plan.action, plan.previous_generation, plan.generation) == ("change", 1, 2)
        assert [(each.field, each.before, each.after) for each in plan.changes] == [
            ("feature", "dune-feature@1", "dune-feature@2")
        ]
        follower = Follower(service)
        assert {entry.generation for _, entry in follower.leaf(service, salle).entries} == {2}


async def test_applying_the_same_definition_again_signs_nothing(fleet: Fleet) -> None:
    with fleet.running() as service:
        await fleet_with_release(service)
        order = service.state.order
        plan = await service.apply_release(definition(), source="d", by="t")
        assert plan.action == "none"
        assert service.state.order == order


async def test_a_plan_that_is_outdated_is_not_applied(fleet: Fleet) -> None:
    with fleet.running() as service:
        await fleet_with_release(service)
        await publish(service, "dune-loop", "loop")
        plan = await service.plan_release(definition(), source="d")
        await publish(service, "dune-loop", "loop")
        order = service.state.order
        with pytest.raises(Conflict) as caught:
            await service.apply_release(definition(), source="d", by="t", expected=plan.digest)
        assert caught.value.code == "plan_outdated"
        assert service.state.order == order
        fresh = await service.plan_release(definition(), source="d")
        await service.apply_release(definition(), source="d", by="t", expected=fresh.digest)


async def test_taking_away_more_than_a_fifth_asks_a_person_and_changes_nothing(
    fleet: Fleet,
) -> None:
    with fleet.running() as service:
        salle, sas = await fleet_with_release(service)
        only_salle = definition(targets='nodes = ["paris-1-salle"]')
        order = service.state.order
        with pytest.raises(TakesAway) as caught:
            await service.apply_release(only_salle, source="d", by="t")
        assert "'Dune' from paris-1-sas" in caught.value.message
        assert (caught.value.lost, caught.value.total) == (3, 6)
        assert service.state.order == order
        assert (await service.release("Dune")).generation == 1

        plan = await service.plan_release(only_salle, source="d")
        assert any("takes away" in warning for warning in plan.warnings)
        await service.apply_release(only_salle, source="d", by="t", confirm=True)
        follower = Follower(service)
        kept, lost = follower.leaf(service, salle), follower.leaf(service, sas)
        assert not kept.releases[0].withdrawn
        assert lost.releases[0].state == STATE_WITHDRAWN
        assert lost.releases[0].generation == 2
        assert not lost.entries


async def test_a_server_that_lost_a_release_is_denied_it_under_the_older_grants(
    fleet: Fleet,
) -> None:
    with fleet.running() as service:
        _, sas = await fleet_with_release(service)
        old_leaf = LeafDocument.decode(service.state.leaf(sas))
        follower = Follower(service)
        read = follower.leaf(service, sas)
        index, entry = read.entries[0]
        proof = old_leaf.proof(index)
        follower.trust.check_entitlement(proof, peer_key=read.facts.key, manifest=entry.manifest)
        await service.apply_release(
            definition(targets='nodes = ["paris-1-salle"]'), source="d", by="t", confirm=True
        )
        follower.follow(service)
        with pytest.raises(Exception, match="denied"):
            follower.trust.check_entitlement(
                proof, peer_key=read.facts.key, manifest=entry.manifest
            )


async def test_a_removed_node_is_denied_at_once_and_its_leaf_is_gone(fleet: Fleet) -> None:
    with fleet.running() as service:
        _, sas = await fleet_with_release(service)
        with pytest.raises(TakesAway):
            await service.membership.remove_node("paris-1-sas", by="t")
        proof = LeafDocument.decode(service.state.leaf(sas)).proof()
        follower = Follower(service)
        key = follower.trust.check_leaf(LeafDocument.decode(service.state.leaf(sas))).facts.key
        await service.membership.remove_node("paris-1-sas", by="t", confirm=True)
        follower.follow(service)
        assert sas not in service.state.nodes
        with pytest.raises(Exception, match="revoked"):
            follower.trust.check_facts(proof, peer_key=key)
        with pytest.raises(NotFound):
            await service.membership.remove_node("paris-1-sas", by="t")


async def test_a_withdrawn_release_can_be_applied_again(fleet: Fleet) -> None:
    with fleet.running() as service:
        salle, _ = await fleet_with_release(service)
        await service.withdraw_release("Dune", confirm=True, by="t")
        follower = Follower(service)
        assert follower.leaf(service, salle).releases[0].withdrawn
        plan = await service.apply_release(definition(), source="d", by="t")
        assert plan.generation == 3
        assert plan.changes[0].before == "withdrawn"
        follower.follow(service)
        assert not follower.leaf(service, salle).releases[0].withdrawn


async def test_the_head_is_refreshed_over_the_same_grants_when_it_is_due(fleet: Fleet) -> None:
    with fleet.running() as service:
        before = service.state
        assert 0 < await service.tick() <= 60
        assert service.state.order == before.order
        fleet.clock.now += fleet.settings.head_refresh.total_seconds() + 1
        await service.tick()
        assert service.state.head.serial == before.head.serial + 1
        assert service.state.head.grants_roots == before.head.grants_roots
        assert service.state.head.expires_s > before.head.expires_s
        assert fleet.announced[-1] is service.state


async def test_a_clock_that_jumped_back_never_dates_a_head_before_the_last_one(
    fleet: Fleet,
) -> None:
    with fleet.running() as service:
        issued_s = service.state.head.issued_s
        fleet.clock.now -= 30 * DAY
        await publish(service, "x", "loop")
        assert service.state.head.issued_s == issued_s


async def test_going_back_and_forth_within_a_second_names_every_grants_root_anew(
    fleet: Fleet,
) -> None:
    with fleet.running() as service:
        follower = Follower(service)
        salle, _ = await fleet_with_release(service)
        seen = {service.state.grants_root}
        for start in ("2026-10-15T09:00:00Z", "2026-10-14T07:00:00Z", "2026-10-15T09:00:00Z"):
            await service.apply_release(definition(start=start), source="d", by="t")
            assert service.state.grants_root not in seen
            seen.add(service.state.grants_root)
            follower.follow(service)
            follower.leaf(service, salle)


async def test_everything_that_is_served_is_in_the_document_store(fleet: Fleet) -> None:
    with fleet.running() as service:
        nodes = await fleet_with_release(service)
        documents = DocumentStore(fleet.paths.documents)
        state = service.state
        assert documents.get_head(state.head.id) == state.head_envelope
        assert documents.get_leaf(nodes[0], state.grants_root) == state.leaf(nodes[0])
        assert documents.get_list(state.head.catalogue)
        assert documents.get_list(state.head.roster)
        for published in await service.scripts():
            assert documents.get_manifest(published.manifest) == published.envelope


async def test_what_is_signed_is_named_before_its_leaves_are_in_the_store(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever clears away the leaves of older heads would take them for such."""
    with fleet.running() as service:
        put, named = service._ledger.documents.put_leaf, []

        def put_leaf(node: NodeId, grants_root: DocumentId, leaf: bytes) -> None:
            named.append(grants_root in service.grants_roots)
            put(node, grants_root, leaf)

        monkeypatch.setattr(service._ledger.documents, "put_leaf", put_leaf)
        await fleet_with_release(service)
        assert service.state.grants_root in service.grants_roots
    assert named
    assert all(named)


async def test_a_restart_serves_the_same_state(fleet: Fleet) -> None:
    with fleet.running() as service:
        nodes = await fleet_with_release(service)
        before = service.state
    with fleet.running() as service:
        assert service.state.head_envelope == before.head_envelope
        assert service.state.leaf(nodes[0]) == before.leaf(nodes[0])
        assert service.state.complete
        assert dict(service.state.pages) == dict(before.pages)


async def test_a_failed_change_uses_up_no_serial_and_leaves_nothing(fleet: Fleet) -> None:
    with fleet.running() as service:
        await fleet_with_release(service)
        order = service.state.order
        for _ in range(3):
            with pytest.raises(TakesAway):
                await service.withdraw_release("Dune", by="t")
        await publish(service, "another", "loop")
        assert service.state.order == (order[0], order[1] + 1)
        assert (await service.release("Dune")).state == "active"


async def test_a_disk_that_fails_after_the_commit_is_told_and_made_up_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet.running() as service:
        announced = len(fleet.announced)

        def full(_: DocumentStore) -> None:
            raise StorageError("The disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(DocumentStore, "sync", full)
            with pytest.raises(StorageError):
                await join(service, SALLE, "paris-1-salle")
        assert len(fleet.announced) == announced, "told to nobody while it is not kept"
        await service.tick()
        assert fleet.announced[-1].order == service.state.order
        assert len(service.state.nodes) == 2


async def test_the_kind_of_a_script_does_not_change(fleet: Fleet) -> None:
    with fleet.running() as service:
        await publish(service, "dune", "feature")
        with pytest.raises(Conflict, match="is a feature script"):
            await service.begin_publication("dune", "loop")
        with pytest.raises(Conflict, match="differ from 'dune' by case"):
            await service.begin_publication("DUNE", "feature")


async def test_one_script_is_published_by_one_at_a_time(fleet: Fleet) -> None:
    with fleet.running() as service:
        first = await service.begin_publication("dune", "feature")
        with pytest.raises(Conflict, match="being published"):
            await service.begin_publication("dune", "feature")
        service.abandon_publication("dune")
        again = await service.begin_publication("dune", "feature")
        assert again == first


async def test_publishing_an_unchanged_folder_makes_no_version(fleet: Fleet) -> None:
    with fleet.running() as service:
        assert await publish(service, "dune", "feature", b"same") == 1
        order = service.state.order
        assert await publish(service, "dune", "feature", b"same") == 1
        assert service.state.order == order
        assert await publish(service, "dune", "feature", b"other") == 2


async def test_a_number_that_was_taken_meanwhile_is_refused(fleet: Fleet) -> None:
    with fleet.running() as service, fleet.running() as other:
        following = await service.begin_publication("dune", "feature")
        await publish(other, "dune", "feature", b"theirs")
        root = manifest_root(fleet.fleet, "dune", "feature", following.version, b"ours")
        with pytest.raises(Conflict, match="published by somebody else"):
            await service.commit_publication(root, by="t")


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 300, "tab\there", "film@3"])
async def test_a_script_name_that_cannot_be_is_refused(fleet: Fleet, name: str) -> None:
    with fleet.running() as service, pytest.raises(UsageError):
        await service.begin_publication(name, "feature")


# -- joining


async def test_two_joiners_with_one_token_of_which_one_wins(fleet: Fleet) -> None:
    with fleet.running() as service:
        made = await service.membership.create_token(SALLE, name="paris-1-salle", by="t")
        token = JoinToken.decode(made.text)
        outcomes: list[str] = []

        async def try_it() -> None:
            try:
                await service.membership.redeem(
                    token=token.token_id, secret=token.secret, public_key=new_key(), name=""
                )
                outcomes.append("in")
            except TokenRefused as error:
                outcomes.append(error.code)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(try_it)
        assert sorted(outcomes) == ["in", "token_used", "token_used", "token_used"]
        assert len(await service.membership.nodes()) == 2


async def test_a_joiner_that_lost_the_answer_gets_it_again(fleet: Fleet) -> None:
    with fleet.running() as service:
        made = await service.membership.create_token(SALLE, name="", by="t", lifetime_s=60)
        token = JoinToken.decode(made.text)
        key = new_key()
        first = await service.membership.redeem(
            token=token.token_id, secret=token.secret, public_key=key, name="cab-7"
        )
        order = service.state.order
        fleet.clock.now += 3600
        again = await service.membership.redeem(
            token=token.token_id, secret=token.secret, public_key=key, name="cab-7"
        )
        assert first.node.name == "cab-7"
        assert again.certificate == first.certificate
        assert again.leaf == first.leaf
        assert service.state.order == order
        ready = await service.membership.confirm(first.node.node)
        assert ready.state == "ready"
        assert (await service.membership.confirm(first.node.node)).ready_s == ready.ready_s


async def test_tokens_that_do_not_let_in(fleet: Fleet) -> None:
    with fleet.running() as service:
        made = await service.membership.create_token(SALLE, name="", by="t", lifetime_s=60)
        token = JoinToken.decode(made.text)

        async def refused(**changes: bytes | str) -> str:
            fields: dict[str, object] = {
                "token": token.token_id,
                "secret": token.secret,
                "public_key": new_key(),
                "name": "x",
            }
            with pytest.raises(TokenRefused) as caught:
                await service.membership.redeem(**(fields | changes))  # type: ignore[arg-type]
            return caught.value.code

        order = service.state.order
        assert await refused(secret=bytes(32)) == "token_invalid"
        assert await refused(token=bytes(16)) == "token_invalid"
        assert await refused(role="repo") == "token_wrong_role"
        fleet.clock.now += 61
        assert await refused() == "token_expired"
        assert service.state.order == order
        assert [row.state for row in await service.membership.tokens()] == ["expired"]


async def test_a_node_that_left_needs_a_new_identity(fleet: Fleet) -> None:
    with fleet.running() as service:
        key = new_key()
        await join(service, SALLE, "paris-1-salle", key)
        await service.membership.remove_node("paris-1-salle", by="t", confirm=True)
        with pytest.raises(Conflict, match="left the fleet"):
            await join(service, SALLE, "paris-1-salle", key)
        replaced = await join(service, SALLE, "paris-1-salle")
        assert replaced.node.name == "paris-1-salle"


@pytest.mark.parametrize("wanted", ["", "taken", "no good name", "x" * 300])
async def test_a_machine_whose_name_will_not_do_gets_one_of_its_place(
    fleet: Fleet, wanted: str
) -> None:
    with fleet.running() as service:
        await join(service, SAS, "taken")
        token = JoinToken.decode(
            (await service.membership.create_token(SALLE, name="", by="t")).text
        )
        joined = await service.membership.redeem(
            token=token.token_id, secret=token.secret, public_key=new_key(), name=wanted
        )
        assert joined.node.name.startswith("paris-1-salle-")


async def test_names_are_unique_whatever_their_case(fleet: Fleet) -> None:
    with fleet.running() as service:
        await join(service, SALLE, "paris-1")
        with pytest.raises(Conflict, match="taken"):
            await service.membership.create_token(SAS, name="Paris-1", by="t")


@pytest.mark.parametrize(
    "place",
    [
        Place("ice", "paris", "1", ""),
        Place("ice", "paris", "1", "balcony"),
        Place("ice", "", "1", "salle"),
        Place("ice", "par/is", "1", "salle"),
        Place("repo", "paris", "1", ""),
        Place("king"),
        Place("central"),
    ],
)
async def test_places_that_make_no_sense_get_no_token(fleet: Fleet, place: Place) -> None:
    with fleet.running() as service, pytest.raises(UsageError):
        await service.membership.create_token(place, name="", by="t")


async def test_the_database_holds_no_secret(fleet: Fleet) -> None:
    with fleet.running() as service:
        made = await service.membership.create_token(SALLE, name="", by="t")
        token = JoinToken.decode(made.text)
        await service.membership.redeem(
            token=token.token_id, secret=token.secret, public_key=new_key(), name="a"
        )
        keys = service._ledger.keys
        secrets = [
            token.secret,
            made.text.encode(),
            keys.salt_secret,
            keys.seal_key.private_bytes_raw(),
            *(key.private_bytes_raw() for key in keys.private_keys.values()),
        ]
        files = list(fleet.paths.state.glob("central.db*"))
        assert any(path.name.endswith("-wal") for path in files)
        for path in files:
            content = path.read_bytes()
            for secret in secrets:
                assert secret not in content
                assert secret.hex().encode() not in content
            assert path.stat().st_mode & 0o077 == 0
        assert token.secret not in b"".join(
            path.read_bytes() for path in fleet.paths.documents.rglob("*") if path.is_file()
        )
        assert repr(token.secret) not in repr(made)


async def test_two_daemons_on_one_database_never_sign_one_serial_twice(fleet: Fleet) -> None:
    with fleet.running() as one, fleet.running() as two:

        async def publish_some(service: CentralService, stem: str) -> None:
            for number in range(4):
                await publish(service, f"{stem}-{number}", "loop")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_some, one, "a")
            nursery.start_soon(publish_some, two, "b")
    rows = _heads(fleet.paths.state / "central.db")
    assert rows == [(1, serial) for serial in range(1, 10)]


def _heads(path: Path) -> list[tuple[int, int]]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.execute("SELECT epoch, serial FROM heads ORDER BY epoch, serial"))
    finally:
        connection.close()
