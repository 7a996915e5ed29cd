"""Addresses that other nodes name: bounded, checked, kept, and never more than a hint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archid.addresses import Address
from archid.sync.address_book import (
    FORGOTTEN_AFTER_S,
    MAX_NODES,
    NEW_FOR_S,
    TOLD_FOR_S,
    AddressBook,
)
from protocol.ids import NodeId
from protocol.limits import MAX_ADDRESSES
from protocol.messages import PeerHint

OWN = NodeId.of(b"own")
GOOD = ("repo.example:4777",)


def node(number: int) -> NodeId:
    return NodeId.of(b"node %d" % number)


def hint(number: int, *addresses: str, role: str = "repo") -> PeerHint:
    return PeerHint(node(number), role, addresses or GOOD)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "addresses.json"


@pytest.fixture
def book(path: Path) -> AddressBook:
    return AddressBook(path, OWN, "ice", ())


def again(path: Path) -> AddressBook:
    return AddressBook(path, OWN, "ice", ())


def test_what_was_learnt_is_there_after_a_restart(book: AddressBook, path: Path) -> None:
    book.learn([hint(1, "a.example:1"), hint(2, "[::1]:2", "b.example:3", role="central")])
    known = {Address("a.example", 1), Address("::1", 2), Address("b.example", 3)}
    assert set(book.addresses()) == set(again(path).addresses()) == known
    assert book.changed.version == 1
    book.learn([hint(1, "a.example:1")])
    assert book.changed.version == 1, "nothing new"
    book.learn([hint(1, "elsewhere.example:1")])
    assert Address("elsewhere.example", 1) in again(path).addresses()


@pytest.mark.parametrize(
    "hostile",
    [
        hint(1, "not an address"),
        hint(1, "0.0.0.0:1"),
        hint(1, "[::]:1"),
        hint(1, "x:99999"),
        hint(1, ""),
        hint(1, "a" * 5000),
        hint(1, role="ice"),
        hint(1, role="r" * 1000),
        PeerHint(node(1), "repo", ()),
        PeerHint(OWN, "repo", GOOD),
    ],
)
def test_hints_that_lead_nowhere_are_passed_over(
    book: AddressBook, path: Path, hostile: PeerHint
) -> None:
    book.learn([hostile, hint(2)])
    assert [one.node for one in book.hints()] == [node(2)]
    assert book.addresses() == again(path).addresses() == (Address("repo.example", 4777),)


def test_one_node_has_a_few_addresses_only(book: AddressBook) -> None:
    book.learn([hint(1, *(f"host{number}.example:1" for number in range(100)))])
    assert len(book.addresses()) == MAX_ADDRESSES


def test_a_flood_of_hints_neither_grows_the_book_nor_drives_out_who_was_met(
    book: AddressBook, path: Path
) -> None:
    book.learn([hint(0, "honest.example:1")])
    book.confirm(node(0))
    for number in range(1, 1000):
        book.learn([hint(number)])
    assert len(book.hints()) == MAX_NODES
    assert Address("honest.example", 1) in book.addresses()
    # An honest newcomer still finds a place after all of them.
    book.learn([hint(5000, "newcomer.example:1")])
    assert Address("newcomer.example", 1) in again(path).addresses()


def test_a_book_of_nodes_that_were_all_met_takes_no_more(book: AddressBook) -> None:
    for number in range(MAX_NODES):
        book.learn([hint(number)])
        book.confirm(node(number))
    book.learn([hint(5000, "newcomer.example:1")])
    assert Address("newcomer.example", 1) not in book.addresses()
    book.forget([node(3)])
    book.learn([hint(5000, "newcomer.example:1")])
    assert Address("newcomer.example", 1) in book.addresses()


def test_who_is_forgotten_is_not_dialled_any_more(book: AddressBook, path: Path) -> None:
    book.learn([hint(1), hint(2)])
    book.forget([node(1), node(7)])
    assert [one.node for one in book.hints()] == [node(2)]
    assert len(again(path).addresses()) == 1


def test_central_and_repos_tell_their_own_addresses_and_do_not_dial_them(path: Path) -> None:
    own = AddressBook(path, OWN, "repo", [Address("own.example", 1)])
    own.learn([hint(1)])
    assert [one.node for one in own.hints()] == [OWN, node(1)]
    assert own.addresses() == (Address("repo.example", 4777),)
    # What moved: the file never says who this node is.
    assert AddressBook(path, OWN, "repo", ()).hints() == (hint(1),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[" * 100_000,
        b"{}",
        b"[1, 2]",
        json.dumps([{"node": "00", "role": "repo", "addresses": ["a.example:1"]}]).encode(),
        json.dumps([{"node": 7, "role": "repo", "addresses": ["a.example:1"]}]).encode(),
        json.dumps([{"node": node(1).hex(), "role": [], "addresses": GOOD}]).encode(),
        json.dumps([{"node": node(1).hex(), "role": "repo", "addresses": 5}]).encode(),
        b'"' + b"x" * (2 << 20) + b'"',
    ],
)
def test_a_file_that_is_none_costs_the_hints_and_not_the_node(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    book = again(path)
    assert book.addresses() == ()
    book.learn([hint(2)])
    assert len(again(path).addresses()) == 1


def test_a_place_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "nowhere" / "addresses.json", OWN, "ice", ())
    book.learn([hint(1)])
    assert len(book.addresses()) == 1


def test_who_is_silent_for_long_is_told_no_more_then_forgotten_and_does_not_come_back(
    path: Path,
) -> None:
    now = 1e9
    book = AddressBook(path, OWN, "repo", (), clock=lambda: now)
    other = AddressBook(path.with_name("other"), OWN, "repo", (), clock=lambda: now)
    alive, connected, dead, unheard = (hint(number) for number in range(1, 5))
    book.learn([alive, connected, dead, unheard])
    book.learn_state(dead, now)
    now += NEW_FOR_S
    assert unheard not in book.hints()
    now += TOLD_FOR_S - NEW_FOR_S
    book.age([connected.node])
    book.learn_state(alive, now)
    assert {*book.hints()} == {alive, connected}
    other.learn(book.hints())
    now += TOLD_FOR_S - 1
    book.learn_state(alive, now)
    book.age([connected.node])
    assert dead in book.known(), "it may still come back"
    now += 1
    book.age([connected.node])
    restarted = AddressBook(path, OWN, "repo", (), clock=lambda: now)
    assert {*book.known()} == {*restarted.known()} == {alive, connected}
    now += FORGOTTEN_AFTER_S
    book.learn(other.hints())
    book.age([])
    assert book.known() == ()


def test_where_a_node_says_to_be_counts_for_more_than_where_others_say_it_is(
    book: AddressBook,
) -> None:
    book.learn([hint(1, "old.example:1")])
    book.learn_state(hint(1, "new.example:1"), 1.0)
    book.learn([hint(1, "old.example:1")])
    assert book.addresses() == (Address("new.example", 1),)


def test_a_clock_that_was_wrong_keeps_nobody_for_ever(path: Path) -> None:
    now = 4e9
    AddressBook(path, OWN, "ice", (), clock=lambda: now).learn([hint(1)])
    now = 1e9
    book = AddressBook(path, OWN, "ice", (), clock=lambda: now)
    book.learn_state(hint(1), 4e9)
    now += FORGOTTEN_AFTER_S
    book.age([])
    assert book.known() == ()
