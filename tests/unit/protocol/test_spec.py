"""SPEC.md says what the code does: generated blocks are current, and every name it uses exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocol import limits, spec_tables
from protocol.connection_states import State, Trigger
from protocol.messages import MESSAGE_TYPES, ErrorCode

TEXT = spec_tables.SPEC.read_text(encoding="utf-8")


def test_the_generated_blocks_are_current() -> None:
    assert spec_tables.regenerate(TEXT) == TEXT, "run python -m protocol.spec_tables --write"


def test_every_message_error_and_state_is_in_the_specification() -> None:
    for kind in MESSAGE_TYPES.values():
        assert f"| {kind.TYPE} | `{kind.__name__}` |" in TEXT
    for code in ErrorCode:
        assert f"| {code.value} | `{code.name_text}` |" in TEXT
    for state in State:
        assert f"`{state.name}`" in TEXT
    for trigger in Trigger:
        assert f"`{trigger.name}`" in TEXT


def test_every_limit_that_the_specification_names_exists() -> None:
    for name in re.findall(r"`(MAX_[A-Z_]+)`", TEXT):
        assert hasattr(limits, name), name


def test_every_chapter_has_text() -> None:
    chapters = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    assert len(chapters) == 13
    for chapter in chapters:
        title, _, body = chapter.partition("\n")
        assert body.strip(), title


def test_chapters_and_sections_are_counted_without_a_gap() -> None:
    chapters = [int(number) for number in re.findall(r"^## (\d+)\. ", TEXT, re.MULTILINE)]
    assert chapters == list(range(1, len(chapters) + 1))
    for chapter in chapters:
        pattern = rf"^### {chapter}\.(\d+) "
        sections = [int(number) for number in re.findall(pattern, TEXT, re.MULTILINE)]
        assert sections == list(range(1, len(sections) + 1)), chapter
    assert len(re.findall(r"^### ", TEXT, re.MULTILINE)) == len(
        re.findall(r"^### \d+\.\d+ \S", TEXT, re.MULTILINE)
    )


def test_check_reports_and_write_repairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "SPEC.md"
    copy.write_text(TEXT.replace("| 8 | `not_ready` |", "| 8 | `not_steady` |"), encoding="utf-8")
    monkeypatch.setattr(spec_tables, "SPEC", copy)
    assert spec_tables.main(["--check"]) == 1
    assert "--write" in capsys.readouterr().err
    assert spec_tables.main(["--write"]) == 0
    assert copy.read_text(encoding="utf-8") == TEXT
    assert spec_tables.main(["--check"]) == 0
    assert spec_tables.main([]) == 2


def test_a_lost_block_is_noticed() -> None:
    with pytest.raises(ValueError, match="errors"):
        spec_tables.regenerate(TEXT.replace("<!-- generated: errors -->", ""))
    with pytest.raises(ValueError, match="nothing makes"):
        spec_tables.regenerate(TEXT.replace("generated: errors", "generated: horrors"))
