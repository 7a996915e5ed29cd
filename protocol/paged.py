"""Long lists in content-addressed pages: Catalogue, Roster and the list of Grants leaves.

They go to central and REPOs only. Pages are cut by content, so that a changed row changes one
page and the small index over the pages. What names a list (its id in a signed Head or Grants
root) thereby names every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from blake3 import blake3

from protocol.canonical import Fields, Value, open_document, pack, unpack
from protocol.errors import FormatError, LimitExceeded
from protocol.facts import NodeFacts
from protocol.ids import FleetId, ListId, ManifestId, NodeId, PageId, TreeHash
from protocol.limits import (
    MAX_DOCUMENT_BYTES,
    MAX_LEAF_ITEMS,
    MAX_LIST_PAGES,
    MAX_LIST_ROWS,
    MAX_PAGE_BYTES,
    MAX_ROW_BYTES,
    MAX_SCRIPT_NAME_BYTES,
    MAX_SERIAL,
    MAX_TYPE_BYTES,
    PAGE_MIN_BYTES,
    PAGE_TARGET_BYTES,
)

INDEX_TYPE: Final = "list"
CATALOGUE: Final = "catalogue"
ROSTER: Final = "roster"
GRANTS: Final = "grants"

_PAGE_OVERHEAD_BYTES: Final = 64
"""More than a page's own headers ever take."""


@dataclass(frozen=True, slots=True)
class PageRef:
    """One page as the index names it."""

    id: PageId
    row_count: int
    length: int


@dataclass(frozen=True, slots=True)
class ListIndex:
    """The pages of a list, in order."""

    list_type: str
    fleet: FleetId
    row_count: int
    pages: tuple[PageRef, ...]


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """One published version of one script."""

    name: str
    kind: str
    version: int
    manifest: ManifestId

    def to_value(self) -> Value:
        return [self.name, self.kind, self.version, self.manifest]

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """Raises FormatError or LimitExceeded."""
        fields = Fields(value, "catalogue row")
        return cls(
            name=fields.text("name", max_bytes=MAX_SCRIPT_NAME_BYTES),
            kind=fields.text("kind", max_bytes=MAX_TYPE_BYTES),
            version=fields.integer("version", low=1, high=MAX_SERIAL),
            manifest=fields.identity("manifest", ManifestId),
        )


@dataclass(frozen=True, slots=True)
class RosterRow:
    """One node of the fleet."""

    facts: NodeFacts

    def to_value(self) -> Value:
        return self.facts.fields()

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """Raises FormatError or LimitExceeded."""
        return cls(NodeFacts.parse(Fields(value, "roster row")))


@dataclass(frozen=True, slots=True)
class GrantsRow:
    """One leaf of the Grants tree: enough to see which leaves changed and to make paths."""

    node: NodeId
    item_count: int
    leaf_hash: TreeHash

    def to_value(self) -> Value:
        return [self.node, self.item_count, self.leaf_hash]

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """Raises FormatError or LimitExceeded."""
        fields = Fields(value, "grants row")
        return cls(
            node=fields.identity("node", NodeId),
            item_count=fields.integer("item count", low=1, high=MAX_LEAF_ITEMS),
            leaf_hash=fields.identity("leaf hash", TreeHash),
        )


def build(
    list_type: str, fleet: FleetId, rows: Sequence[Value]
) -> tuple[bytes, ListId, dict[PageId, bytes]]:
    """Cut rows into pages: the index, its id, and the pages by id.

    Rows that keep their order (sort them) keep their pages. Raises LimitExceeded.
    """
    if len(rows) > MAX_LIST_ROWS:
        raise LimitExceeded(f"{len(rows)} rows where at most {MAX_LIST_ROWS} are allowed")
    pages: dict[PageId, bytes] = {}
    refs: list[Value] = []

    def close(page_rows: list[Value]) -> None:
        data = pack([list_type, page_rows])
        page = PageId.of(data)
        pages[page] = data
        refs.append([page, len(page_rows), len(data)])

    current: list[Value] = []
    size = 0
    for row in rows:
        encoded = pack(row)
        if len(encoded) > MAX_ROW_BYTES:
            raise LimitExceeded(f"a row of {list_type} has {len(encoded)} bytes")
        if size + len(encoded) > MAX_PAGE_BYTES - _PAGE_OVERHEAD_BYTES:
            close(current)
            current, size = [], 0
        current.append(row)
        size += len(encoded)
        if size >= PAGE_MIN_BYTES and _is_cut(encoded):
            close(current)
            current, size = [], 0
    if current:
        close(current)
    if len(refs) > MAX_LIST_PAGES:
        raise LimitExceeded(f"{list_type} has {len(refs)} pages, over {MAX_LIST_PAGES}")
    index = pack([INDEX_TYPE, 1, list_type, fleet, len(rows), refs])
    return index, ListId.of(index), pages


def _is_cut(encoded_row: bytes) -> bool:
    """Whether a page may end after this row: by chance, in proportion to the row's length.

    Counting bytes and not rows keeps pages alike whatever the rows; the mean beyond the minimum
    is what is left to the target.
    """
    selector = int.from_bytes(blake3(encoded_row).digest(length=4), "big")
    return selector * (PAGE_TARGET_BYTES - PAGE_MIN_BYTES) < len(encoded_row) << 32


def decode_index(data: bytes | bytearray | memoryview) -> ListIndex:
    """Parse an index; raises FormatError or LimitExceeded.

    The caller compares `ListId.of(data)` with the id that a signed document names.
    """
    fields = open_document(data, INDEX_TYPE, max_bytes=MAX_DOCUMENT_BYTES)
    index = ListIndex(
        list_type=fields.text("list type", max_bytes=MAX_TYPE_BYTES),
        fleet=fields.identity("fleet", FleetId),
        row_count=fields.integer("row count", high=MAX_LIST_ROWS),
        pages=tuple(_page_ref(item) for item in fields.array("pages", max_items=MAX_LIST_PAGES)),
    )
    if sum(page.row_count for page in index.pages) != index.row_count:
        raise FormatError("the pages of a list do not have as many rows as it says")
    return index


def _page_ref(item: Value) -> PageRef:
    fields = Fields(item, "page reference")
    return PageRef(
        id=fields.identity("id", PageId),
        row_count=fields.integer("row count", low=1, high=MAX_PAGE_BYTES),
        length=fields.integer("length", low=1, high=MAX_PAGE_BYTES),
    )


def decode_page(
    data: bytes | bytearray | memoryview, ref: PageRef, list_type: str
) -> tuple[Value, ...]:
    """The rows of a page that the index names; raises FormatError when it is not that page."""
    raw = bytes(data)
    if len(raw) != ref.length or PageId.of(raw) != ref.id:
        raise FormatError("a page is not the one that its list names")
    fields = Fields(unpack(raw, max_bytes=MAX_PAGE_BYTES), "page")
    fields.constant("list type", list_type)
    rows = fields.array("rows", max_items=MAX_PAGE_BYTES)
    if len(rows) != ref.row_count:
        raise FormatError("a page has another number of rows than its list says")
    return tuple(rows)


def rows_of(index: ListIndex, pages: Mapping[PageId, bytes]) -> tuple[Value, ...]:
    """Every row of a list whose pages are all at hand; raises KeyError or FormatError."""
    rows: list[Value] = []
    for ref in index.pages:
        rows.extend(decode_page(pages[ref.id], ref, index.list_type))
    return tuple(rows)
