"""Merkle trees in the shape of RFC 6962, with BLAKE3 in a context of its own.

Leaves are hashed with prefix 0 and inner nodes with prefix 1, so neither passes for the other.
A path is checked against a position and a count that somebody signed: a path alone proves
membership in a tree of some size only.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import TrustError
from protocol.ids import TreeHash
from protocol.limits import MAX_MERKLE_DEPTH


def leaf_hash(data: bytes) -> TreeHash:
    """The hash of a leaf's bytes."""
    return TreeHash.of(b"\0" + data)


def node_hash(left: TreeHash, right: TreeHash) -> TreeHash:
    """The hash of an inner node."""
    return TreeHash.of(b"\1" + left + right)


class MerkleTree:
    """A whole tree over leaf hashes, kept level by level so that every path is cheap.

    Pairing from the left and carrying an odd last hash up unchanged gives the shape of RFC 6962
    section 2.1, whose split is at the largest power of two below the count.
    """

    def __init__(self, hashes: Sequence[TreeHash]) -> None:
        self._levels: list[list[TreeHash]] = [list(hashes)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            level = [node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
            if len(below) % 2:
                level.append(below[-1])
            self._levels.append(level)

    @property
    def root(self) -> TreeHash:
        """The tree's hash; that of no bytes at all for an empty tree."""
        return self._levels[-1][0] if self._levels[0] else TreeHash.of(b"")

    def __len__(self) -> int:
        return len(self._levels[0])

    def path(self, index: int) -> tuple[TreeHash, ...]:
        """The siblings from the leaf up to the root; raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"leaf {index} of {len(self)}")
        siblings = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                siblings.append(level[sibling])
            index //= 2
        return tuple(siblings)


def root(hashes: Sequence[TreeHash]) -> TreeHash:
    """The hash of the tree over these leaf hashes."""
    return MerkleTree(hashes).root


def path(hashes: Sequence[TreeHash], index: int) -> tuple[TreeHash, ...]:
    """The siblings of one leaf; for several leaves of one tree, keep a MerkleTree."""
    return MerkleTree(hashes).path(index)


def root_from_path(
    leaf: TreeHash, index: int, count: int, siblings: Sequence[TreeHash]
) -> TreeHash:
    """The root that a path leads to (RFC 9162, 2.1.3.2).

    Raises TrustError when a tree of `count` leaves has no path of that length at `index`.
    """
    if not 0 <= index < count:
        raise TrustError(f"a path claims leaf {index} of {count}")
    if len(siblings) > MAX_MERKLE_DEPTH:
        raise TrustError(f"a path is longer than {MAX_MERKLE_DEPTH}")
    last = count - 1
    value = leaf
    for sibling in siblings:
        if last == 0:
            raise TrustError("a path is too long for its tree")
        if index % 2 or index == last:
            value = node_hash(sibling, value)
            while index % 2 == 0 and index:
                index //= 2
                last //= 2
        else:
            value = node_hash(value, sibling)
        index //= 2
        last //= 2
    if last:
        raise TrustError("a path is too short for its tree")
    return value
