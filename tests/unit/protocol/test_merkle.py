"""Merkle paths prove one place in a tree of one size, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import TrustError
from protocol.ids import TreeHash
from protocol.limits import MAX_MERKLE_DEPTH
from protocol.merkle import MerkleTree, leaf_hash, node_hash, path, root, root_from_path


def leaves(count: int) -> list[TreeHash]:
    return [leaf_hash(str(n).encode()) for n in range(count)]


def rfc6962_root(hashes: list[TreeHash]) -> TreeHash:
    """The definition in RFC 6962, section 2.1, written down as it stands there."""
    if not hashes:
        return TreeHash.of(b"")
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return node_hash(rfc6962_root(hashes[:split]), rfc6962_root(hashes[split:]))


@pytest.mark.parametrize("count", range(40))
def test_the_tree_has_the_shape_of_rfc_6962(count: int) -> None:
    assert root(leaves(count)) == rfc6962_root(leaves(count))


@pytest.mark.parametrize("count", range(1, 34))
def test_every_leaf_has_a_path_to_the_root(count: int) -> None:
    tree = MerkleTree(leaves(count))
    for index, leaf in enumerate(leaves(count)):
        assert root_from_path(leaf, index, count, tree.path(index)) == tree.root
        assert tree.path(index) == path(leaves(count), index)


@given(st.integers(1, 200), st.data())
def test_a_path_proves_nothing_at_another_index(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    elsewhere = data.draw(st.integers(0, count - 1).filter(lambda n: n != index or count == 1))
    if count == 1:
        return
    tree = MerkleTree(leaves(count))
    try:
        reached = root_from_path(leaves(count)[index], elsewhere, count, tree.path(index))
    except TrustError:
        return
    assert reached != tree.root


@given(st.integers(1, 100), st.data())
def test_a_path_of_another_length_proves_nothing(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    whole = path(leaves(count), index)
    leaf = leaves(count)[index]
    with pytest.raises(TrustError):
        root_from_path(leaf, index, count, [*whole, leaf])
    if whole:
        with pytest.raises(TrustError):
            root_from_path(leaf, index, count, whole[:-1])


def test_an_inner_node_does_not_pass_for_a_leaf() -> None:
    four = leaves(4)
    left, right = node_hash(four[0], four[1]), node_hash(four[2], four[3])
    assert leaf_hash(four[0] + four[1]) != left
    assert leaf_hash(b"\1" + four[0] + four[1]) != left
    # Taken for a tree of two leaves the hash is the same: the count has to be signed.
    assert root_from_path(left, 0, 2, [right]) == root(four)
    with pytest.raises(TrustError):
        root_from_path(left, 0, 4, [right])


def test_an_index_outside_the_tree_is_refused() -> None:
    leaf = leaves(1)[0]
    for index, count in ((1, 1), (-1, 1), (0, 0), (5, 4)):
        with pytest.raises(TrustError):
            root_from_path(leaf, index, count, ())
    with pytest.raises(IndexError):
        path(leaves(3), 3)
    with pytest.raises(IndexError):
        path(leaves(3), -1)


def test_a_path_longer_than_any_tree_is_refused() -> None:
    leaf = leaves(1)[0]
    with pytest.raises(TrustError, match="longer"):
        root_from_path(leaf, 0, 1 << 62, [leaf] * (MAX_MERKLE_DEPTH + 1))
