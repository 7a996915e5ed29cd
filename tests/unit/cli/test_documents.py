"""COMMANDS.md says what is so."""

from __future__ import annotations

import re

from archid.cli.main import COMMANDS
from archid.control.schema import METHODS, OUTPUTS
from archid.errors import exit_codes
from tests.unit.cli.conftest import PROJECT

TEXT = (PROJECT / "COMMANDS.md").read_text()
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in TEXT.splitlines()
    if line.startswith("| `")
]


def test_every_command_has_a_row() -> None:
    named = {word for row in ROWS for word in re.findall(r"`([a-z][a-z-]*)", row[0])}
    assert named == set(COMMANDS)


def test_every_schema_is_named_and_exists() -> None:
    named = {word for row in ROWS for word in re.findall(r"`([a-z._]+)`", row[5])}
    # root.prepare is half of a command; errors are described in the text
    assert named == OUTPUTS.keys() - {"error", "root.prepare"}


def test_roles_and_rights_are_those_of_the_methods() -> None:
    for row in ROWS:
        for name in re.findall(r"`([a-z._]+)`", row[5]):
            if name not in METHODS:
                continue
            method = METHODS[name]
            roles = ("central", "repo", "ice") if row[2] == "all" else tuple(row[2].split(", "))
            assert roles == method.roles, name
            assert row[4].startswith("root, admin group" if method.changes else "socket group")


def test_every_exit_code_is_there_with_its_meaning() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", TEXT, re.MULTILINE))
    for code, meaning in exit_codes().items():
        words = meaning.split(";")[0].removesuffix(", the log has the details")
        assert words in rows[str(code)], code
