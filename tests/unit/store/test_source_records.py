"""What is remembered of the folders from which versions were published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from archid.source_listing import FACTS_BYTES
from archid.store.database import Database
from archid.store.index import MIGRATIONS
from archid.store.source_records import NO_FACTS, SourceRecord, SourceRecords
from protocol.ids import ManifestId

ONE, OTHER = ManifestId(b"1" * 32), ManifestId(b"2" * 32)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "node.db", MIGRATIONS) as opened:
        yield opened


def test_a_record_is_of_one_version_of_one_script(database: Database) -> None:
    records = SourceRecords(database)
    record = SourceRecord(ONE, b"l" * 32, b"f" * FACTS_BYTES)
    records.keep("film", record)
    assert records.get("film", ONE) == record
    assert records.listing("film", ONE) == b"l" * 32
    assert records.get("film", OTHER) is None
    assert records.get("sas", ONE) is None
    records.keep("film", SourceRecord(OTHER, None, b""))
    assert records.get("film", ONE) is None
    assert records.listing("film", OTHER) is None


def test_a_row_of_zeros_and_a_row_that_is_not_there_say_nothing() -> None:
    record = SourceRecord(ONE, None, b"f" * FACTS_BYTES + NO_FACTS + b"half")
    assert record.facts_of(0) == b"f" * FACTS_BYTES
    assert [record.facts_of(n) for n in (1, 2, 3)] == [None, None, None]


def test_a_database_that_fails_costs_a_reading_and_no_more(tmp_path: Path) -> None:
    with Database(tmp_path / "other.db", ("CREATE TABLE other (x)",)) as database:
        records = SourceRecords(database)
        with capture_logs() as logs:
            records.keep("film", SourceRecord(ONE, None, b""))
            assert records.get("film", ONE) is None
    assert [line["event"] for line in logs] == ["source_not_recorded", "source_record_unreadable"]
