"""What a peer may read on a connection that stands while heads come and go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from archid.sync.access import Access
from protocol.grants import GrantsTree, LeafDocument
from protocol.head import DENIED_NODE, DENIED_RELEASE, Denial
from protocol.ids import DocumentId, NodeId
from protocol.refusals import FactsMismatch, GrantsNotAccepted, NodeDenied
from tests.unit.protocol.signed_fleet import (
    FEATURE,
    NOW_S,
    RELEASE,
    Estate,
    facts_of,
    leaf_items,
)


def nobody(_node: NodeId) -> LeafDocument | None:
    return None


def access_of(
    estate: Estate, *, leaf_of: Callable[[NodeId], LeafDocument | None] = nobody
) -> Access:
    """What the ICE node may read at a REPO, admitted under the Grants root signed so far."""
    leaf = estate.tree.leaf(estate.ice.node, estate.grants_root.id)
    return Access(
        estate.trusted,
        facts_of(estate.ice),
        estate.ice.public_key,
        facts_of(estate.repo, "repo", ""),
        proof=leaf.proof(),
        leaf_of=leaf_of,
    )


def entry_proof(estate: Estate, tree: GrantsTree, grants_root: DocumentId) -> bytes:
    return tree.leaf(estate.ice.node, grants_root).proof(2).encode()


def newer_grants(estate: Estate, **changes: object) -> tuple[GrantsTree, DocumentId]:
    """Sign the same leaves anew and let the next head name that root first, or alone."""
    tree, root = estate.fleet.grants(estate.leaves, issued_s=NOW_S + estate.head.serial)
    older = changes.pop("older", estate.head.grants_roots)
    estate.next_head(grants_roots=(root.id, *older), **changes)  # type: ignore[misc]
    estate.trusted.accept_grants(estate.fleet.sign_grants(root))
    return tree, root.id


def test_a_peer_that_is_revoked_is_no_longer_believed() -> None:
    estate = Estate()
    access = access_of(estate)
    access.judge_again()
    newer_grants(
        estate, denied=(Denial(DENIED_NODE, estate.ice.node, estate.head.grants_roots[0]),)
    )
    with pytest.raises(NodeDenied):
        access.judge_again()
    with pytest.raises(NodeDenied):
        access.judge_again()


def test_a_peer_that_was_denied_and_is_granted_again_stays() -> None:
    estate = Estate()
    before = estate.grants_root.id
    tree, root = newer_grants(estate, denied=(Denial(DENIED_NODE, estate.ice.node, before),))
    leaf = tree.leaf(estate.ice.node, root)
    access = Access(
        estate.trusted,
        facts_of(estate.ice),
        estate.ice.public_key,
        facts_of(estate.repo, "repo", ""),
        proof=leaf.proof(),
        leaf_of=nobody,
    )
    access.judge_again()


def test_a_proof_under_grants_that_are_no_longer_accepted_is_worth_nothing() -> None:
    estate = Estate()
    access = access_of(estate)
    newer_grants(estate, older=())
    with pytest.raises(GrantsNotAccepted):
        access.judge_again()


def test_then_the_newer_leaf_of_the_peer_counts_where_it_is_held() -> None:
    estate = Estate()
    held: dict[NodeId, LeafDocument] = {}
    access = access_of(estate, leaf_of=held.get)
    tree, root = newer_grants(estate, older=())
    held[estate.ice.node] = tree.leaf(estate.ice.node, root)
    access.judge_again()
    newer_grants(estate, older=(root,), denied=(Denial(DENIED_NODE, estate.ice.node, root),))
    with pytest.raises(NodeDenied):
        access.judge_again()


def test_a_peer_whose_facts_are_others_now_is_not_taken_for_what_it_was() -> None:
    estate = Estate()
    held: dict[NodeId, LeafDocument] = {}
    access = access_of(estate, leaf_of=held.get)
    estate.leaves[estate.ice.node] = leaf_items(estate.ice, site="paris")
    tree, root = newer_grants(estate, older=())
    held[estate.ice.node] = tree.leaf(estate.ice.node, root)
    with pytest.raises(FactsMismatch):
        access.judge_again()


def test_an_entry_of_a_release_that_is_denied_is_forgotten_and_can_be_shown_anew() -> None:
    estate = Estate()
    access = access_of(estate)
    access.show(FEATURE, entry_proof(estate, estate.tree, estate.grants_root.id))
    assert access.may_read(FEATURE)
    assert access.still_may_read(FEATURE)
    tree, root = newer_grants(
        estate, denied=(Denial(DENIED_RELEASE, RELEASE, estate.grants_root.id),)
    )
    assert not access.still_may_read(FEATURE)  # nobody has judged by the new head yet
    access.judge_again()
    assert not access.may_read(FEATURE)
    assert not access.still_may_read(FEATURE)
    access.show(FEATURE, entry_proof(estate, tree, root))
    assert access.may_read(FEATURE)
