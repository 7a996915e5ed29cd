"""The journal: what was written stays provable, and its numbers never go back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archid.identity import Identity
from archid.journal import MIGRATIONS, Journal, JournalDamaged
from archid.store.database import Database
from protocol.errors import FormatError

NOW = 1_800_000_000.5


class Node:
    def __init__(self, base: Path) -> None:
        self.path = base / "journal.db"
        self.identity = Identity.create(base / "state")
        self.database = Database(self.path, MIGRATIONS, durable=True)
        self.journal = Journal(self.database, self.identity, clock=lambda: NOW)

    def reopen(self) -> None:
        self.database.close()
        self.database = Database(self.path, MIGRATIONS, durable=True)
        self.journal = Journal(self.database, self.identity, clock=lambda: NOW)

    def tamper(self, statement: str, *args: object) -> None:
        with sqlite3.connect(self.path) as connection:
            connection.execute(statement, args)
        connection.close()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_entries_follow_one_another_and_are_signed(node: Node) -> None:
    for number in range(1, 6):
        entry = node.journal.append("tree_placed", {"name": "A film", "version": number})
        assert (entry.seq, entry.at_s, entry.kind) == (number, int(NOW), "tree_placed")
    node.reopen()
    assert node.journal.verify() == 5
    tail = node.journal.tail(2)
    assert [entry.fields["version"] for entry in tail] == [4, 5]
    assert tail[1].previous == tail[0].hash
    assert tail[1].node == node.identity.node_id
    assert len(list(node.journal.entries(3))) == 3


@given(
    fields=st.dictionaries(
        st.text(max_size=20),
        st.one_of(
            st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(), st.binary()
        ),
        max_size=8,
    )
)
def test_fields_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, str | int | bytes | None]
) -> None:
    node = Node(tmp_path_factory.mktemp("journal"))
    node.journal.append("kind", fields)
    assert node.journal.tail(1)[0].fields == fields
    assert node.journal.verify() == 1
    node.database.close()


def test_what_cannot_be_read_again_is_not_written(node: Node) -> None:
    with pytest.raises(FormatError):
        node.journal.append("kind", {"a": [1]})  # type: ignore[dict-item]
    assert node.journal.verify() == 0
    assert node.journal.append("kind").seq == 1


@pytest.mark.parametrize(
    ("statement", "at"),
    [
        ("UPDATE entry SET payload = (SELECT payload FROM entry WHERE seq = 2) WHERE seq = 3", 3),
        ("UPDATE entry SET signature = zeroblob(64) WHERE seq = 4", 4),
        ("UPDATE entry SET hash = zeroblob(32) WHERE seq = 2", 2),
        ("UPDATE entry SET key_id = zeroblob(32) WHERE seq = 5", 5),
        ("DELETE FROM entry WHERE seq = 1", 1),
        ("DELETE FROM entry WHERE seq = 3", 3),
        ("UPDATE entry SET payload = substr(payload, 1, 20) WHERE seq = 2", 2),
    ],
)
def test_whatever_is_changed_is_found(node: Node, statement: str, at: int) -> None:
    for number in range(5):
        node.journal.append("kind", {"number": number})
    node.tamper(statement)
    with pytest.raises(JournalDamaged, match=f"entry {at}"):
        node.journal.verify()


def test_a_chain_by_another_node_is_not_ours(node: Node, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Node(tmp_path / "other")
    other.journal.append("kind")
    with pytest.raises(JournalDamaged, match="another node"):
        Journal(other.database, node.identity).verify()


def test_the_floor_only_rises_and_survives(node: Node) -> None:
    assert node.journal.floor() == (0, 0)
    for order, expected in (
        ((1, 7), (1, 7)),
        ((1, 3), (1, 7)),
        ((0, 99), (1, 7)),
        ((2, 1), (2, 1)),
        ((2, 1), (2, 1)),
    ):
        node.journal.raise_floor(order)
        node.reopen()
        assert node.journal.floor() == expected


def test_no_two_calls_get_the_same_number(node: Node) -> None:
    assert node.journal.counter("incarnation") == 0
    assert node.journal.advance("incarnation") == 1
    node.reopen()
    assert node.journal.advance("incarnation") == 2
    assert node.journal.advance("other") == 1
    assert node.journal.counter("incarnation") == 2
