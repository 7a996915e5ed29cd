"""Leaves of the Grants tree and proofs from them.

Grants are a Merkle tree of leaves, one a node, sorted by node id; a leaf is itself a Merkle list
of salted items (`protocol.facts`), the node's facts first. What the upper tree hashes for a node
binds its id and the number of its items, so that a whole leaf also proves that nothing was kept
from it. Whether a Grants root is accepted, and whether what is proven suffices, is decided in
`protocol.trust`. Leaves under a Syncs root have the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from protocol.canonical import Fields, Value, pack
from protocol.documents import Document, TreeRoot
from protocol.errors import FormatError, LimitExceeded, TrustError
from protocol.facts import Entry, NodeFacts, ReleaseHeader, SyncItem, decode_item
from protocol.ids import DocumentId, NodeId, ReleaseId, TreeHash
from protocol.limits import (
    MAX_DOCUMENT_BYTES,
    MAX_ITEM_BYTES,
    MAX_LEAF_ITEMS,
    MAX_LEAVES,
    MAX_MERKLE_DEPTH,
    MAX_PROOF_BYTES,
)
from protocol.merkle import MerkleTree, leaf_hash, root_from_path
from protocol.paged import GrantsRow

FACTS_INDEX: Final = 0


class ProofInvalid(TrustError):
    """A leaf or a proof does not lead to the Grants root that it names."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A verified leaf: everything that its node is told."""

    facts: NodeFacts
    releases: tuple[ReleaseHeader, ...]
    entries: tuple[tuple[int, Entry], ...]
    """Entries with their place in the leaf, which `LeafDocument.proof` takes."""
    syncs: tuple[SyncItem, ...] = ()

    def entries_of(self, release: ReleaseId) -> tuple[Entry, ...]:
        """What one release has for this node."""
        return tuple(entry for _, entry in self.entries if entry.release == release)


@dataclass(frozen=True)
class LeafDocument(Document):
    """A node's whole leaf with the path to a Grants root."""

    TYPE: ClassVar[str] = "leaf"
    MAX_BYTES: ClassVar[int] = MAX_DOCUMENT_BYTES

    node: NodeId
    items: tuple[bytes, ...]
    leaf_index: int
    leaf_count: int
    path: tuple[TreeHash, ...]
    grants_root: DocumentId

    def verify(self, grants_root: TreeRoot) -> Leaf:
        """Check the path and read the items.

        Raises ProofInvalid when the leaf is not whole under that root, FormatError when an item
        of a known kind is malformed or the first item is not the node's facts.
        """
        if not self.items:
            raise ProofInvalid("a leaf has no items")
        if self.leaf_count != grants_root.leaf_count:
            raise ProofInvalid(
                f"a leaf counts {self.leaf_count} leaves where its root has "
                f"{grants_root.leaf_count}"
            )
        inner = MerkleTree([leaf_hash(item) for item in self.items]).root
        _check_path(
            grants_root,
            named=self.grants_root,
            leaf=node_leaf_hash(self.node, len(self.items), inner),
            index=self.leaf_index,
            path=self.path,
        )
        return read_items(self.node, self.items)

    def proof(self, entry_item_index: int | None = None) -> Proof:
        """The facts, and one entry if wanted, with their paths; raises IndexError."""
        inner = MerkleTree([leaf_hash(item) for item in self.items])
        return Proof(
            node=self.node,
            grants_root=self.grants_root,
            leaf_index=self.leaf_index,
            leaf_path=self.path,
            item_count=len(self.items),
            facts_item=self.items[FACTS_INDEX],
            facts_path=inner.path(FACTS_INDEX),
            entry_item=None if entry_item_index is None else self.items[entry_item_index],
            entry_index=0 if entry_item_index is None else entry_item_index,
            entry_path=() if entry_item_index is None else inner.path(entry_item_index),
        )

    def _fields(self) -> Sequence[Value]:
        return [
            self.node,
            self.items,
            self.leaf_index,
            self.leaf_count,
            self.path,
            self.grants_root,
        ]

    @classmethod
    def _parse(cls, fields: Fields) -> Self:
        return cls(
            node=fields.identity("node", NodeId),
            items=fields.binaries("items", max_items=MAX_LEAF_ITEMS, max_bytes=MAX_ITEM_BYTES),
            leaf_index=fields.integer("leaf index", high=MAX_LEAVES),
            leaf_count=fields.integer("leaf count", high=MAX_LEAVES),
            path=fields.identities("path", TreeHash, max_items=MAX_MERKLE_DEPTH),
            grants_root=fields.identity("grants root", DocumentId),
        )


@dataclass(frozen=True)
class Proof(Document):
    """What a node shows a peer: its facts and at most one entry, each with its path."""

    TYPE: ClassVar[str] = "proof"
    MAX_BYTES: ClassVar[int] = MAX_PROOF_BYTES

    node: NodeId
    grants_root: DocumentId
    leaf_index: int
    leaf_path: tuple[TreeHash, ...]
    item_count: int
    facts_item: bytes
    facts_path: tuple[TreeHash, ...]
    entry_item: bytes | None = None
    entry_index: int = 0
    entry_path: tuple[TreeHash, ...] = ()

    def verify(self, grants_root: TreeRoot) -> tuple[NodeFacts, Entry | None]:
        """What the proof proves under that root.

        Raises ProofInvalid when a path does not lead there, FormatError when what it leads to
        is not facts and an entry.
        """
        inner = _root(leaf_hash(self.facts_item), FACTS_INDEX, self.item_count, self.facts_path)
        _check_path(
            grants_root,
            named=self.grants_root,
            leaf=node_leaf_hash(self.node, self.item_count, inner),
            index=self.leaf_index,
            path=self.leaf_path,
        )
        facts = _facts(self.node, self.facts_item)
        if self.entry_item is None:
            return facts, None
        item_hash = leaf_hash(self.entry_item)
        if _root(item_hash, self.entry_index, self.item_count, self.entry_path) != inner:
            raise ProofInvalid("an entry is not in the leaf that a proof shows")
        entry = decode_item(self.entry_item)
        if not isinstance(entry, Entry):
            raise FormatError("a proof shows something else than an entry")
        return facts, entry

    def _fields(self) -> Sequence[Value]:
        return [
            self.node,
            self.grants_root,
            self.leaf_index,
            self.leaf_path,
            self.item_count,
            self.facts_item,
            self.facts_path,
            self.entry_item,
            self.entry_index,
            self.entry_path,
        ]

    @classmethod
    def _parse(cls, fields: Fields) -> Self:
        return cls(
            node=fields.identity("node", NodeId),
            grants_root=fields.identity("grants root", DocumentId),
            leaf_index=fields.integer("leaf index", high=MAX_LEAVES),
            leaf_path=fields.identities("leaf path", TreeHash, max_items=MAX_MERKLE_DEPTH),
            item_count=fields.integer("item count", low=1, high=MAX_LEAF_ITEMS),
            facts_item=fields.binary("facts", max_bytes=MAX_ITEM_BYTES),
            facts_path=fields.identities("facts path", TreeHash, max_items=MAX_MERKLE_DEPTH),
            entry_item=(
                None if fields.next_is_nil() else fields.binary("entry", max_bytes=MAX_ITEM_BYTES)
            ),
            entry_index=fields.integer("entry index", high=MAX_LEAF_ITEMS),
            entry_path=fields.identities("entry path", TreeHash, max_items=MAX_MERKLE_DEPTH),
        )


class GrantsTree:
    """A whole tree, as central builds it and as a REPO that holds every leaf can again."""

    def __init__(self, leaves: Mapping[NodeId, Sequence[bytes]]) -> None:
        if len(leaves) > MAX_LEAVES:
            raise LimitExceeded(f"{len(leaves)} leaves where at most {MAX_LEAVES} are allowed")
        self._items = {node: tuple(leaves[node]) for node in sorted(leaves)}
        self._positions = {node: index for index, node in enumerate(self._items)}
        rows = []
        for node, items in self._items.items():
            if not items or len(items) > MAX_LEAF_ITEMS:
                raise LimitExceeded(f"the leaf of {node.short} has {len(items)} items")
            inner = MerkleTree([leaf_hash(item) for item in items]).root
            rows.append(GrantsRow(node, len(items), node_leaf_hash(node, len(items), inner)))
        self.index_rows: Final = tuple(rows)
        """One row a leaf in the order of node ids: the list that `GrantsRoot.index` names."""
        self._merkle = MerkleTree([row.leaf_hash for row in rows])

    @property
    def tree(self) -> TreeHash:
        """The hash that a Grants root carries."""
        return self._merkle.root

    @property
    def leaf_count(self) -> int:
        return len(self._items)

    def leaf(self, node: NodeId, grants_root_id: DocumentId) -> LeafDocument:
        """One node's leaf under the Grants root that was signed; raises KeyError."""
        index = self._positions[node]
        return LeafDocument(
            node=node,
            items=self._items[node],
            leaf_index=index,
            leaf_count=self.leaf_count,
            path=self._merkle.path(index),
            grants_root=grants_root_id,
        )


def build_grants(leaves: Mapping[NodeId, Sequence[bytes]]) -> GrantsTree:
    """The tree over these leaves, each a list of encoded items with the facts first.

    Raises FormatError when a leaf's first item is not its node's facts, LimitExceeded.
    """
    for node, items in leaves.items():
        if items:
            _facts(node, items[FACTS_INDEX])
    return GrantsTree(leaves)


def node_leaf_hash(node: NodeId, item_count: int, inner: TreeHash) -> TreeHash:
    """What the upper tree holds for a node: bound to its id and to the number of its items."""
    return leaf_hash(pack([node, item_count, inner]))


def read_items(node: NodeId, items: Sequence[bytes]) -> Leaf:
    """Sort the items of a leaf by kind; raises FormatError or LimitExceeded."""
    releases: dict[ReleaseId, ReleaseHeader] = {}
    entries = []
    syncs = []
    facts = _facts(node, items[FACTS_INDEX])
    for index, data in enumerate(items):
        if index == FACTS_INDEX:
            continue
        item = decode_item(data)
        if isinstance(item, NodeFacts):
            raise FormatError("a leaf holds facts twice")
        if isinstance(item, ReleaseHeader):
            if item.release in releases:
                raise FormatError("a leaf holds a release twice")
            releases[item.release] = item
        elif isinstance(item, Entry):
            entries.append((index, item))
        elif isinstance(item, SyncItem):
            syncs.append(item)
    return Leaf(facts, tuple(releases.values()), tuple(entries), tuple(syncs))


def _facts(node: NodeId, item: bytes) -> NodeFacts:
    facts = decode_item(item)
    if not isinstance(facts, NodeFacts):
        raise FormatError("the first item of a leaf is not facts")
    if facts.node != node:
        raise FormatError("the facts in a leaf are another node's")
    return facts


def _root(leaf: TreeHash, index: int, count: int, path: Sequence[TreeHash]) -> TreeHash:
    try:
        return root_from_path(leaf, index, count, path)
    except TrustError as error:
        raise ProofInvalid(str(error)) from error


def _check_path(
    grants_root: TreeRoot,
    *,
    named: DocumentId,
    leaf: TreeHash,
    index: int,
    path: Sequence[TreeHash],
) -> None:
    if named != grants_root.id:
        raise ProofInvalid("a proof names another Grants root")
    if _root(leaf, index, grants_root.leaf_count, path) != grants_root.tree:
        raise ProofInvalid("a proof does not lead to its Grants root")
