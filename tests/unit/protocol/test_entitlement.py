"""Who a peer is and what it may read: proofs, denials, tickets, under accepted Grants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.documents import Ticket
from protocol.envelope import Envelope
from protocol.errors import TrustError
from protocol.facts import Entry
from protocol.grants import GrantsTree, ProofInvalid
from protocol.head import Denial
from protocol.ids import DocumentId, ManifestId
from protocol.root import POLICY_SAME_SITE_ONLY
from protocol.trust import (
    FactsMismatch,
    GrantsNotAccepted,
    NodeDenied,
    NotEntitled,
    SignatureMissing,
    WrongFleet,
)
from tests.unit.protocol.signed_fleet import (
    FEATURE,
    NOW_S,
    RELEASE,
    SAS,
    Estate,
    SignedFleet,
    Signer,
    digest,
    facts_of,
    items_of,
    leaf_items,
    sign,
)

FLEET = SignedFleet()
OTHER = SignedFleet("other")


# Facts and entitlement


def test_a_peer_is_who_its_proof_and_its_key_say() -> None:
    estate = Estate()
    proof = estate.tree.leaf(estate.ice.node, estate.grants_root.id).proof()
    key = estate.ice.public_key
    assert estate.trusted.check_facts(proof, peer_key=key) == facts_of(estate.ice)


def test_a_proof_shown_by_another_key_is_refused() -> None:
    estate = Estate()
    proof = estate.tree.leaf(estate.ice.node, estate.grants_root.id).proof(2)
    with pytest.raises(FactsMismatch):
        estate.trusted.check_facts(proof, peer_key=estate.neighbour.public_key)
    with pytest.raises(FactsMismatch):
        estate.trusted.check_entitlement(
            proof, peer_key=estate.neighbour.public_key, manifest=FEATURE
        )


def test_a_replaced_key_counts_under_newer_grants_and_keeps_the_node_id() -> None:
    estate = Estate()
    new_key = Signer("ice, second key")
    facts = replace(facts_of(estate.ice), key=new_key.public_key)
    tree, grants = FLEET.grants(
        estate.leaves | {estate.ice.node: items_of("ice", [facts])}, issued_s=NOW_S + 9
    )
    estate.next_head(
        grants_roots=(grants.id, estate.grants_root.id),
        denied=(Denial("node", estate.ice.node, estate.grants_root.id),),
    )
    estate.trusted.accept_grants(FLEET.sign_grants(grants))
    proof = tree.leaf(estate.ice.node, grants.id).proof()
    assert estate.trusted.check_facts(proof, peer_key=new_key.public_key) == facts
    old = estate.tree.leaf(estate.ice.node, estate.grants_root.id).proof()
    with pytest.raises(NodeDenied):
        estate.trusted.check_facts(old, peer_key=estate.ice.public_key)


def test_an_entry_entitles_to_its_manifest_only() -> None:
    estate = Estate()
    leaf = estate.tree.leaf(estate.ice.node, estate.grants_root.id)
    key = estate.ice.public_key
    estate.trusted.check_entitlement(leaf.proof(2), peer_key=key, manifest=FEATURE)
    estate.trusted.check_entitlement(leaf.proof(3), peer_key=key, manifest=SAS)
    for proof, manifest in (
        (leaf.proof(2), SAS),
        (leaf.proof(), FEATURE),
        (leaf.proof(3), ManifestId(digest("unrelated"))),
    ):
        with pytest.raises(NotEntitled):
            estate.trusted.check_entitlement(proof, peer_key=key, manifest=manifest)


@pytest.mark.parametrize("role", ["repo", "central"])
def test_facts_entitle_repos_and_central_to_everything(role: str) -> None:
    fleet = Estate()
    signer = Signer("keeper")
    tree, grants = FLEET.grants({signer.node: leaf_items(signer, role=role, site="")})
    fleet.next_head(grants_roots=(grants.id,))
    fleet.trusted.accept_grants(FLEET.sign_grants(grants))
    fleet.trusted.check_entitlement(
        tree.leaf(signer.node, grants.id).proof(), peer_key=signer.public_key, manifest=FEATURE
    )


def test_an_unknown_role_entitles_to_nothing_by_itself() -> None:
    estate = Estate()
    signer = Signer("new kind")
    tree, grants = FLEET.grants({signer.node: leaf_items(signer, role="repository-mirror")})
    estate.next_head(grants_roots=(grants.id,))
    estate.trusted.accept_grants(FLEET.sign_grants(grants))
    with pytest.raises(NotEntitled):
        estate.trusted.check_entitlement(
            tree.leaf(signer.node, grants.id).proof(),
            peer_key=signer.public_key,
            manifest=FEATURE,
        )


def test_a_proof_under_grants_that_are_unknown_or_no_longer_accepted_is_refused() -> None:
    estate = Estate()
    proof = estate.tree.leaf(estate.ice.node, estate.grants_root.id).proof()
    _, newer = FLEET.grants({}, issued_s=NOW_S + 5)
    estate.next_head(grants_roots=(newer.id,))
    with pytest.raises(GrantsNotAccepted) as gone:
        estate.trusted.check_facts(proof, peer_key=estate.ice.public_key)
    assert not gone.value.named
    with pytest.raises(GrantsNotAccepted) as unfetched:
        estate.trusted.check_facts(
            replace(proof, grants_root=newer.id), peer_key=estate.ice.public_key
        )
    assert unfetched.value.named
    assert unfetched.value.grants_root == newer.id


def test_a_proof_made_by_the_node_itself_is_refused() -> None:
    estate = Estate()
    liar = Signer("liar")
    own = GrantsTree(
        {liar.node: items_of("x", [facts_of(liar, "repo"), Entry(RELEASE, 1, FEATURE, "feature")])}
    )
    forged = own.leaf(liar.node, estate.grants_root.id).proof(1)
    with pytest.raises(ProofInvalid):
        estate.trusted.check_entitlement(forged, peer_key=liar.public_key, manifest=FEATURE)


def test_a_denial_covers_its_grants_and_older_ones_and_spares_newer_ones() -> None:
    estate = Estate()
    tree, newer = FLEET.grants(estate.leaves, issued_s=NOW_S + 5)
    estate.next_head(
        grants_roots=(newer.id, estate.grants_root.id),
        denied=(Denial("node", estate.ice.node, estate.grants_root.id),),
    )
    estate.trusted.accept_grants(FLEET.sign_grants(newer))
    key = estate.ice.public_key
    old = estate.tree.leaf(estate.ice.node, estate.grants_root.id).proof()
    new = tree.leaf(estate.ice.node, newer.id).proof()
    with pytest.raises(NodeDenied):
        estate.trusted.check_facts(old, peer_key=key)
    estate.trusted.check_facts(new, peer_key=key)
    assert estate.trusted.is_denied(estate.ice.node)
    assert not estate.trusted.is_denied(estate.neighbour.node)

    estate.next_head(denied=(Denial("node", estate.ice.node, newer.id),))
    for proof in (old, new):
        with pytest.raises(NodeDenied):
            estate.trusted.check_facts(proof, peer_key=key)


def test_a_denial_under_a_root_that_is_not_listed_covers_all() -> None:
    estate = Estate()
    estate.next_head(denied=(Denial("node", estate.ice.node, DocumentId(digest("gone"))),))
    proof = estate.tree.leaf(estate.ice.node, estate.grants_root.id).proof()
    with pytest.raises(NodeDenied):
        estate.trusted.check_facts(proof, peer_key=estate.ice.public_key)


@pytest.mark.parametrize(("kind", "identity"), [("manifest", FEATURE), ("release", RELEASE)])
def test_a_denied_manifest_or_release_entitles_nobody(kind: str, identity: bytes) -> None:
    estate = Estate()
    estate.next_head(denied=(Denial(kind, identity, estate.grants_root.id),))
    leaf = estate.tree.leaf(estate.ice.node, estate.grants_root.id)
    key = estate.ice.public_key
    with pytest.raises(NotEntitled, match="denied"):
        estate.trusted.check_entitlement(leaf.proof(2), peer_key=key, manifest=FEATURE)
    estate.trusted.check_facts(leaf.proof(2), peer_key=key)
    if kind == "manifest":
        estate.trusted.check_entitlement(leaf.proof(3), peer_key=key, manifest=SAS)
    repo = estate.tree.leaf(estate.repo.node, estate.grants_root.id).proof()
    estate.trusted.check_entitlement(repo, peer_key=estate.repo.public_key, manifest=FEATURE)


def test_a_denial_of_an_unknown_kind_denies_nothing() -> None:
    estate = Estate()
    estate.next_head(denied=(Denial("hologram", estate.ice.node, estate.grants_root.id),))
    proof = estate.tree.leaf(estate.ice.node, estate.grants_root.id).proof()
    estate.trusted.check_facts(proof, peer_key=estate.ice.public_key)


def test_the_policy_can_keep_nodes_to_their_site() -> None:
    estate = Estate(root=FLEET.root(policy=POLICY_SAME_SITE_ONLY))
    proof = estate.tree.leaf(estate.ice.node, estate.grants_root.id).proof(2)
    key = estate.ice.public_key

    def check(server: Signer, role: str, site: str) -> None:
        estate.trusted.check_entitlement(
            proof, peer_key=key, manifest=FEATURE, server=facts_of(server, role, site)
        )

    check(estate.neighbour, "ice", "lyon")
    check(estate.repo, "repo", "")
    with pytest.raises(NotEntitled, match="site"):
        check(estate.far, "ice", "paris")


def test_a_leaf_of_any_node_is_checked_against_accepted_grants() -> None:
    estate = Estate()
    document = estate.tree.leaf(estate.neighbour.node, estate.grants_root.id)
    assert estate.trusted.check_leaf(document).facts.name == "neighbour"
    with pytest.raises(ProofInvalid):
        estate.trusted.check_leaf(replace(document, items=document.items[:1]))
    with pytest.raises(GrantsNotAccepted):
        estate.trusted.check_leaf(replace(document, grants_root=DocumentId(digest("x"))))


# Tickets


def test_a_ticket_is_for_one_node_one_manifest_and_a_short_while() -> None:
    estate = Estate()
    facts = facts_of(estate.far)
    ticket = Ticket(FLEET.fleet, estate.far.node, FEATURE, "relay", NOW_S + 60)

    def check(envelope: Envelope, manifest: ManifestId = FEATURE, now: float = NOW_S) -> Ticket:
        return estate.trusted.check_ticket(envelope, facts=facts, manifest=manifest, now=now)

    good = sign(ticket, FLEET.signers["tickets"])
    assert check(good) == ticket
    refusals: list[tuple[type[TrustError], Callable[[], Ticket]]] = [
        (NotEntitled, lambda: check(good, manifest=SAS)),
        (NotEntitled, lambda: check(good, now=NOW_S + 60)),
        (
            NotEntitled,
            lambda: check(sign(replace(ticket, node=estate.ice.node), FLEET.signers["tickets"])),
        ),
        (
            WrongFleet,
            lambda: check(sign(replace(ticket, fleet=OTHER.fleet), FLEET.signers["tickets"])),
        ),
        (SignatureMissing, lambda: check(sign(ticket, FLEET.signers["grants"]))),
    ]
    for refusal, attempt in refusals:
        with pytest.raises(refusal):
            attempt()
    for kind, identity in (("node", bytes(estate.far.node)), ("manifest", bytes(FEATURE))):
        estate.next_head(denied=(Denial(kind, identity, estate.grants_root.id),))
        with pytest.raises(NotEntitled, match="denied"):
            check(good)
