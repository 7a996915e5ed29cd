"""Paged lists: bounded pages, and a small change moves few of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import paged
from protocol.canonical import Value, pack
from protocol.errors import FormatError, LimitExceeded
from protocol.facts import NodeFacts
from protocol.ids import FleetId, ListId, ManifestId, PageId, TreeHash
from protocol.limits import MAX_PAGE_BYTES, MAX_ROW_BYTES, PAGE_MIN_BYTES, PAGE_TARGET_BYTES
from protocol.paged import CatalogueRow, GrantsRow, PageRef, RosterRow, decode_index, decode_page
from tests.unit.protocol.arbitrary import hostile_bytes, only_protocol_errors, values
from tests.unit.protocol.signed_fleet import Signer, digest, facts_of

FLEET = FleetId(digest("fleet"))
ROWS: list[Value] = [
    CatalogueRow(f"script {n:05}", "feature", 1, ManifestId(digest(str(n)))).to_value()
    for n in range(5000)
]
INDEX, LIST_ID, PAGES = paged.build(paged.CATALOGUE, FLEET, ROWS)


def test_a_list_comes_back_row_by_row() -> None:
    index = decode_index(INDEX)
    assert ListId.of(INDEX) == LIST_ID
    assert (index.list_type, index.fleet, index.row_count) == ("catalogue", FLEET, len(ROWS))
    assert list(paged.rows_of(index, PAGES)) == ROWS


def test_pages_have_the_size_that_was_aimed_at() -> None:
    sizes = [len(page) for page in PAGES.values()]
    assert max(sizes) <= MAX_PAGE_BYTES
    assert PAGE_TARGET_BYTES / 2 < sum(sizes) / len(sizes) < PAGE_TARGET_BYTES * 2
    assert min(sizes[:-1]) >= PAGE_MIN_BYTES


def test_a_changed_an_added_and_a_removed_row_move_few_pages() -> None:
    changed = list(ROWS)
    changed[2500] = CatalogueRow("script 02500", "feature", 2, ManifestId(digest("b"))).to_value()
    for rows in (changed, [*ROWS[:70], ROWS[0], *ROWS[70:]], [*ROWS[:70], *ROWS[71:]]):
        _, _, pages = paged.build(paged.CATALOGUE, FLEET, rows)
        assert 1 <= len(pages.keys() - PAGES.keys()) <= 3


def test_an_empty_list_has_no_pages() -> None:
    index, _, pages = paged.build(paged.ROSTER, FLEET, [])
    assert pages == {}
    assert paged.rows_of(decode_index(index), {}) == ()


@given(st.lists(values.filter(lambda row: len(pack(row)) < MAX_ROW_BYTES), max_size=30))
def test_any_rows_survive(rows: list[Value]) -> None:
    index, _, pages = paged.build("anything", FLEET, rows)
    assert list(paged.rows_of(decode_index(index), pages)) == rows


def test_rows_that_never_cut_are_cut_before_the_limit() -> None:
    row = next(
        value
        for n in range(100)
        if not paged._is_cut(pack(value := f"{n}" + "x" * 3000))  # the same row, again and again
    )
    index, _, pages = paged.build("anything", FLEET, [row] * 100)
    assert all(len(page) <= MAX_PAGE_BYTES for page in pages.values())
    assert list(paged.rows_of(decode_index(index), pages)) == [row] * 100


def test_a_row_over_its_limit_is_refused() -> None:
    with pytest.raises(LimitExceeded):
        paged.build("anything", FLEET, [b"x" * MAX_ROW_BYTES])


def test_another_page_is_refused() -> None:
    refs = decode_index(INDEX).pages
    page = PAGES[refs[0].id]
    assert decode_page(page, refs[0], "catalogue")
    for data in (PAGES[refs[1].id], page[:-1], page + b"\0", b""):
        with pytest.raises(FormatError):
            decode_page(data, refs[0], "catalogue")
    with pytest.raises(FormatError, match="list type"):
        decode_page(page, refs[0], "roster")
    with pytest.raises(FormatError, match="number of rows"):
        decode_page(page, replace(refs[0], row_count=1), "catalogue")


def test_an_index_whose_rows_do_not_add_up_is_refused() -> None:
    refs: list[Value] = [[PageId(digest("page")), 3, 100]]
    assert decode_index(pack(["list", 1, "catalogue", FLEET, 3, refs])).row_count == 3
    with pytest.raises(FormatError, match="as many rows"):
        decode_index(pack(["list", 1, "catalogue", FLEET, 4, refs]))


def test_rows_survive_their_values_and_ignore_a_tail() -> None:
    catalogue = CatalogueRow("script", "feature", 4, ManifestId(digest("m")))
    roster = RosterRow(facts_of(Signer("ice")))
    grants = GrantsRow(Signer("ice").node, 5, TreeHash(digest("leaf")))
    for row in (catalogue, roster, grants):
        value = row.to_value()
        assert isinstance(value, list)
        assert type(row).from_value(value) == row
        assert type(row).from_value([*value, "new"]) == row
        with pytest.raises(FormatError):
            type(row).from_value(value[:-1])
    assert isinstance(roster.facts, NodeFacts)


@given(hostile_bytes(paged.build("roster", FLEET, [["a", 1]] * 3)[0]))
def test_no_bytes_break_the_decoder_of_an_index(data: bytes) -> None:
    only_protocol_errors(decode_index, data)


@given(hostile_bytes(pack(["roster", [["a", 1]] * 3])))
def test_no_bytes_break_the_decoder_of_a_page_or_its_rows(data: bytes) -> None:
    def decode(raw: bytes) -> None:
        for row in decode_page(raw, PageRef(PageId.of(raw), 3, len(raw)), "roster"):
            RosterRow.from_value(row)

    only_protocol_errors(decode, data)
