"""Leaves and proofs: a node can show what it was given and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import pack
from protocol.errors import FormatError, LimitExceeded, ProtocolError
from protocol.facts import Entry, LeafItem, ReleaseHeader, decode_item
from protocol.grants import GrantsTree, LeafDocument, Proof, ProofInvalid, build_grants
from protocol.ids import DocumentId, NodeId, TreeHash
from protocol.limits import MAX_LEAF_ITEMS
from protocol.merkle import MerkleTree, leaf_hash, node_hash
from tests.unit.protocol.arbitrary import mutations
from tests.unit.protocol.signed_fleet import (
    FEATURE,
    RELEASE,
    SAS,
    Estate,
    SignedFleet,
    Signer,
    digest,
    facts_of,
    items_of,
    leaf_items,
)

ESTATE = Estate()
ROOT = ESTATE.grants_root
LEAF = ESTATE.tree.leaf(ESTATE.ice.node, ROOT.id)
NEIGHBOURS = ESTATE.tree.leaf(ESTATE.neighbour.node, ROOT.id)
FEATURE_ITEM, SAS_ITEM = 2, 3


def refused(proof: Proof | LeafDocument) -> None:
    with pytest.raises(ProofInvalid):
        proof.verify(ROOT)


def test_a_leaf_tells_its_node_everything() -> None:
    leaf = LeafDocument.decode(LEAF.encode()).verify(ROOT)
    assert leaf.facts == facts_of(ESTATE.ice)
    assert [release.name for release in leaf.releases] == ["Film"]
    assert [(index, entry.manifest) for index, entry in leaf.entries] == [
        (FEATURE_ITEM, FEATURE),
        (SAS_ITEM, SAS),
    ]
    assert [entry.kind for entry in leaf.entries_of(RELEASE)] == ["feature", "sas"]


def test_a_proof_shows_facts_and_one_entry() -> None:
    facts, entry = Proof.decode(LEAF.proof(SAS_ITEM).encode()).verify(ROOT)
    assert facts == facts_of(ESTATE.ice)
    assert entry is not None
    assert entry.manifest == SAS
    assert LEAF.proof().verify(ROOT) == (facts, None)


def test_a_proof_gives_away_neither_the_release_nor_other_entries() -> None:
    shown = LEAF.proof(FEATURE_ITEM).encode()
    assert b"Film" not in shown
    assert bytes(SAS) not in shown
    # Without the salt nobody can test a guess against the path.
    salt_start = LEAF.items[SAS_ITEM].index(b"\xc4\x10") + 2
    guess = bytearray(LEAF.items[SAS_ITEM])
    guess[salt_start : salt_start + 16] = bytes(16)
    assert leaf_hash(bytes(guess)) not in LEAF.proof(FEATURE_ITEM).entry_path


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_every_leaf_of_a_tree_of_any_size_is_proven(count: int) -> None:
    signers = [Signer(f"node {n}") for n in range(count)]
    tree, root = SignedFleet().grants({one.node: leaf_items(one) for one in signers})
    for signer in signers:
        leaf = tree.leaf(signer.node, root.id)
        assert leaf.verify(root).facts.name == signer.name
        for index in (FEATURE_ITEM, SAS_ITEM):
            assert leaf.proof(index).verify(root)[0].node == signer.node


def test_a_leaf_is_refused_when_an_item_is_kept_back_added_or_swapped() -> None:
    refused(replace(LEAF, items=LEAF.items[:-1]))
    refused(replace(LEAF, items=(*LEAF.items, LEAF.items[-1])))
    refused(replace(LEAF, items=(LEAF.items[0], *LEAF.items[:0:-1])))
    refused(replace(LEAF, items=()))
    refused(replace(LEAF, items=NEIGHBOURS.items))
    refused(replace(LEAF, node=NEIGHBOURS.node))


def test_a_leaf_is_refused_when_it_lies_about_its_place_or_the_count() -> None:
    refused(replace(LEAF, leaf_count=LEAF.leaf_count + 1))
    refused(replace(LEAF, leaf_index=(LEAF.leaf_index + 1) % LEAF.leaf_count))
    refused(replace(LEAF, leaf_index=LEAF.leaf_count))
    refused(replace(LEAF, path=LEAF.path[:-1]))
    refused(replace(LEAF, path=(*LEAF.path, LEAF.path[-1])))
    refused(replace(LEAF, grants_root=DocumentId(digest("other"))))


def test_a_root_that_counts_otherwise_does_not_verify_the_leaf() -> None:
    fewer = replace(ROOT, leaf_count=2)
    with pytest.raises(ProofInvalid):
        replace(LEAF, leaf_count=2, grants_root=fewer.id).verify(fewer)


def test_a_proof_cannot_borrow_another_nodes_facts_or_entry() -> None:
    mine, theirs = LEAF.proof(FEATURE_ITEM), NEIGHBOURS.proof(FEATURE_ITEM)
    refused(replace(mine, node=theirs.node))
    refused(replace(mine, facts_item=theirs.facts_item))
    refused(replace(mine, facts_item=theirs.facts_item, facts_path=theirs.facts_path))
    refused(replace(mine, entry_item=theirs.entry_item))
    refused(replace(mine, entry_item=theirs.entry_item, entry_path=theirs.entry_path))
    refused(replace(mine, leaf_path=theirs.leaf_path, leaf_index=theirs.leaf_index))


def test_a_proof_is_refused_when_a_count_or_a_place_is_a_lie() -> None:
    proof = LEAF.proof(FEATURE_ITEM)
    assert proof.item_count == 4
    for count in (1, 2, 3, 5, 6):
        refused(replace(proof, item_count=count))
        # The path of the facts has the same length in a list of three: only the bound count
        # tells, and without it a proof could hide that there is more.
        refused(replace(LEAF.proof(), item_count=count))
    refused(replace(proof, entry_index=SAS_ITEM))
    refused(replace(proof, entry_index=99))
    refused(replace(proof, entry_path=()))
    refused(replace(proof, facts_path=proof.facts_path[:-1]))


def test_facts_or_a_release_header_do_not_pass_for_an_entry() -> None:
    for index in (0, 1):
        with pytest.raises(FormatError, match="than an entry"):
            LEAF.proof(index).verify(ROOT)


def test_an_entry_does_not_pass_for_facts() -> None:
    items = items_of("x", [Entry(RELEASE, 1, FEATURE, "feature"), facts_of(ESTATE.ice)])
    with pytest.raises(FormatError, match="not facts"):
        build_grants({ESTATE.ice.node: items})
    tree = GrantsTree({ESTATE.ice.node: items})
    root = replace(ROOT, tree=tree.tree, leaf_count=1)
    leaf = tree.leaf(ESTATE.ice.node, root.id)
    with pytest.raises(FormatError, match="not facts"):
        leaf.verify(root)
    with pytest.raises(FormatError, match="not facts"):
        leaf.proof().verify(root)


def test_facts_of_another_node_are_refused_in_a_leaf() -> None:
    items = items_of("x", [facts_of(ESTATE.ice)])
    with pytest.raises(FormatError, match="another node"):
        build_grants({ESTATE.far.node: items})
    tree = GrantsTree({ESTATE.far.node: items})
    root = replace(ROOT, tree=tree.tree, leaf_count=1)
    with pytest.raises(FormatError, match="another node"):
        tree.leaf(ESTATE.far.node, root.id).proof().verify(root)


def test_a_leaf_with_facts_or_a_release_twice_is_refused() -> None:
    header = ReleaseHeader(RELEASE, "Film", 1, "active", 0, 0, 0)
    facts = facts_of(ESTATE.ice)
    twice: list[list[LeafItem]] = [[facts, facts], [facts, header, header]]
    for items in twice:
        tree = build_grants({ESTATE.ice.node: items_of("x", items)})
        root = replace(ROOT, tree=tree.tree, leaf_count=1)
        with pytest.raises(FormatError, match="twice"):
            tree.leaf(ESTATE.ice.node, root.id).verify(root)


def test_an_inner_node_of_the_list_does_not_pass_for_an_item() -> None:
    """Second preimage: show a shorter list whose items are the inner nodes of the real one."""
    hashes = [leaf_hash(item) for item in LEAF.items]
    inner = [hashes[0] + hashes[1], hashes[2] + hashes[3]]
    refused(replace(LEAF, items=tuple(inner)))
    refused(replace(LEAF, items=tuple(b"\1" + one for one in inner)))
    refused(
        replace(
            LEAF.proof(FEATURE_ITEM),
            item_count=2,
            entry_item=hashes[2] + hashes[3],
            entry_index=1,
            entry_path=(node_hash(hashes[0], hashes[1]),),
        )
    )


def test_an_inner_node_of_the_tree_does_not_pass_for_a_leaf() -> None:
    rows = [row.leaf_hash for row in ESTATE.tree.index_rows]
    fake = replace(
        LEAF,
        items=(rows[0] + rows[1],),
        leaf_index=0,
        path=(node_hash(rows[2], rows[3]),),
    )
    refused(fake)
    refused(replace(fake, leaf_count=2))


def test_an_unknown_item_is_hashed_but_passed_over() -> None:
    items = [*leaf_items(ESTATE.ice), pack(["hologram", bytes(16), 1])]
    tree = build_grants({ESTATE.ice.node: items})
    root = replace(ROOT, tree=tree.tree, leaf_count=1)
    leaf = tree.leaf(ESTATE.ice.node, root.id)
    assert len(leaf.verify(root).entries) == 2
    with pytest.raises(ProofInvalid):
        replace(leaf, items=leaf.items[:-1]).verify(root)
    with pytest.raises(FormatError, match="than an entry"):
        leaf.proof(4).verify(root)


@given(mutations(LEAF.proof(FEATURE_ITEM).encode()))
def test_a_mutated_proof_proves_nothing_new(data: bytes) -> None:
    try:
        facts, entry = Proof.decode(data).verify(ROOT)
    except ProtocolError:
        return
    # Only a tail that is ignored, or an entry that is no longer shown, may differ.
    assert facts == facts_of(ESTATE.ice)
    assert entry is None or entry == decode_item(LEAF.items[FEATURE_ITEM])


@given(mutations(LEAF.encode()))
def test_a_mutated_leaf_says_nothing_else(data: bytes) -> None:
    try:
        leaf = LeafDocument.decode(data).verify(ROOT)
    except ProtocolError:
        return
    assert leaf == LEAF.verify(ROOT)


@given(st.permutations(sorted(ESTATE.leaves)))
def test_the_tree_does_not_depend_on_the_order_it_is_given(order: list[NodeId]) -> None:
    tree = build_grants({node: ESTATE.leaves[node] for node in order})
    assert tree.tree == ROOT.tree
    assert [row.node for row in tree.index_rows] == sorted(order)


def test_the_index_rows_lead_to_the_tree() -> None:
    rows = ESTATE.tree.index_rows
    assert MerkleTree([row.leaf_hash for row in rows]).root == ROOT.tree
    assert [row.item_count for row in rows] == [len(ESTATE.leaves[row.node]) for row in rows]


def test_a_fleet_without_nodes_has_an_empty_tree() -> None:
    tree = build_grants({})
    assert (tree.leaf_count, tree.tree) == (0, TreeHash.of(b""))
    with pytest.raises(ProofInvalid):
        LEAF.proof().verify(replace(ROOT, tree=tree.tree, leaf_count=0))


def test_leaves_without_or_with_too_many_items_are_not_built() -> None:
    with pytest.raises(LimitExceeded):
        build_grants({ESTATE.ice.node: []})
    facts = items_of("x", [facts_of(ESTATE.ice)])
    with pytest.raises(LimitExceeded):
        build_grants({ESTATE.ice.node: [*facts, *[b""] * MAX_LEAF_ITEMS]})
