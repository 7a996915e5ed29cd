"""Errors are sentences for people and stable fields for programs."""

from __future__ import annotations

import pytest

from archid.errors import (
    ERROR_CLASSES,
    ArchidError,
    Conflict,
    NotFound,
    error_from_json,
    exit_codes,
)


def test_the_sentence_joins_message_and_remedy_with_one_full_stop_each() -> None:
    error = NotFound("There is no script 'Dune'", remedy="list them with 'archid scripts'.")
    assert error.sentence == "There is no script 'Dune'. List them with 'archid scripts'."
    assert str(error) == "There is no script 'Dune'"
    assert NotFound("Gone.").sentence == "Gone."


@pytest.mark.parametrize("error_class", ERROR_CLASSES)
def test_every_error_survives_the_control_socket(error_class: type[ArchidError]) -> None:
    error = error_class("It broke", remedy="Mend it", code="it_broke")
    again = error_from_json(error.to_json())
    assert type(again) is error_class
    assert again.to_json() == error.to_json()


def test_exit_codes_are_distinct_and_documented() -> None:
    assert len({each.exit_code for each in ERROR_CLASSES}) == len(ERROR_CLASSES)
    assert len({each.code for each in ERROR_CLASSES}) == len(ERROR_CLASSES)
    assert exit_codes().keys() == {0, 1, 2, 3, 4, 5, 6, 7, 8, 130}


def test_a_code_of_its_own_does_not_change_the_class() -> None:
    assert Conflict("Two daemons", code="state_locked").code == "state_locked"
    assert Conflict("Two daemons").code == "conflict"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"exit_code": 99, "message": "From the future"},
        {"exit_code": "7", "message": ["a", "list"], "remedy": 3, "code": None},
    ],
)
def test_an_error_described_by_another_version_is_still_an_error(fields: dict[str, object]) -> None:
    error = error_from_json(fields)
    assert error.exit_code == 1
    assert error.sentence.endswith(".")
