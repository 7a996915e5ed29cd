"""Release files: what is read, and how each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from archid.central.release_definition import ScriptChoice, parse_release
from archid.errors import UsageError
from tests.unit.central.fleet import definition


def problem(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_release(text, source="dune.toml")
    assert caught.value.code == "definition_invalid"
    return caught.value.message


def test_a_definition_is_read() -> None:
    parsed = parse_release(definition(feature="dune-feature@3"), source="d")
    assert parsed.feature == ScriptChoice("dune-feature", 3)
    assert parsed.sas == ScriptChoice("dune-sas", None)
    assert parsed.start_s == 1791961200
    assert parsed.targets.rows == (("site", "paris"),)


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    text = definition().replace("prefetch =", "prefech =")
    said = problem(text)
    assert "'prefech' is not known at the top of the file; did you mean 'prefetch'?" in said
    text = definition(targets='site = ["paris"]')
    assert "did you mean 'sites'?" in problem(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (definition(start="2026-10-14T09:00:00"), "start: 2026-10-14T09:00:00 does not say its"),
        (definition(end="2026-12-01"), "end: 2026-12-01 has no time of day"),
        (definition(start='"2026-10-14T09:00:00Z"'), "without quotes"),
        (definition(end="2026-10-14T08:59:59+02:00"), "at or before its start"),
        (definition(end="2026-10-14T09:00:00+02:00"), "at or before its start"),
        (definition(prefetch="2026-10-14T07:00:01Z"), "prefetch"),
        (definition(targets=""), "names no server"),
        (definition(targets='sites = ["a", "a"]'), "listed twice"),
        (definition(targets='rooms = ["paris"]'), "'site/room'"),
        (definition(targets='sites = "paris"'), "must be a list"),
        (definition(name="../etc"), "name"),
        (definition(feature="x@0"), "counted from 1"),
        (definition(feature="a/b"), "slash"),
        (definition().replace('loop = "dune-loop"', ""), "loop is missing"),
        (definition().replace('loop = "dune-loop"', "loop = 3"), "must be text"),
        ("name = ", "not valid TOML"),
        ("name = " + "[" * 5000, "nested too deeply"),
        ("name = 1" + "0" * 5000, "not valid TOML"),
        (definition() + "x = 1\n" + "\n" * 20_000, "'x' is not known"),
    ],
)
def test_each_mistake_is_told_in_words(text: str, said: str) -> None:
    assert said in problem(text)


def test_the_line_of_a_mistake_is_given() -> None:
    assert "dune.toml, line 7:" in problem(definition(start="2026-10-14T09:00:00"))


def test_the_commented_example_is_a_definition() -> None:
    path = Path(__file__).parents[3] / "config" / "release-example.toml"
    parsed = parse_release(path.read_text(), source=path.name)
    assert len(parsed.targets.rows) == 4
    assert all(
        f"\n{key}" in path.read_text() for key in type(parsed).model_fields if key != "targets"
    )
