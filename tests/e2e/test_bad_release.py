"""Release files that cannot be meant: every mistake named with its place, and nothing signed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.local import FleetNode
from tests.fleet.refusals import refused
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")
GOOD = {
    "name": '"film"',
    "feature": '"film-feature"',
    "sas": '"film-sas"',
    "loop": '"film-loop"',
    "prefetch": "2026-10-10T02:00:00+02:00",
    "start": "2026-10-14T09:00:00+02:00",
    "end": "2099-11-18T03:00:00+01:00",
}
SITES = 'sites = ["lyon"]'


def text(targets: str = SITES, /, **keys: str | None) -> str:
    """A release file like the good one but for `keys`; None leaves one out."""
    rows = {**GOOD, **keys}
    lines = [f"{key} = {value}" for key, value in rows.items() if value is not None]
    return "\n".join([*lines, "[targets]", targets, ""])


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetNode]:
    """A central with three scripts, a REPO and the two servers of a room in Lyon."""
    base = tmp_path_factory.mktemp("fleet")
    with watched_fleet(base) as fleet:
        node = fleet.found()
        for kind in KINDS:
            (base / kind).mkdir()
            (base / kind / "index").write_text(kind)
            fleet.publish(base / kind, f"film-{kind}", kind)
        fleet.join("repo-1", "repo", site="paris", start=False)
        for kind in ("salle", "sas"):
            fleet.join(f"lyon-1-{kind}", "ice", site="lyon", room="1", kind=kind, start=False)
        yield node


def signed(central: FleetNode) -> dict[str, Any]:
    trust = central.status()["trust"]
    return {"releases": central.call("release.list"), "head": (trust["epoch"], trust["serial"])}


@pytest.fixture
def nothing_signed(central: FleetNode) -> Iterator[None]:
    before = signed(central)
    yield
    assert signed(central) == before


@dataclass(frozen=True)
class Release:
    """A file, and what must be said of it."""

    text: str | bytes
    says: tuple[str, ...]
    code: int = 2


RELEASES = {
    "unknown script": Release(
        text(feature='"film-featur"'),
        ("feature names the script 'film-featur', which is not known", "'film-feature'"),
    ),
    "unknown version": Release(
        text(sas='"film-sas@7"'), ("version 7 of 'film-sas'", "newest version is 1")
    ),
    "version zero": Release(text(sas='"film-sas@0"'), ("'film-sas@0'", "counted from 1")),
    "script of another kind": Release(
        text(loop='"film-sas"'), ("loop names 'film-sas'", "published as a sas script")
    ),
    "unknown site": Release(
        text('sites = ["lyn"]'), ("sites names 'lyn', where no ICE server is", "'lyon'")
    ),
    "unknown room": Release(
        text('rooms = ["lyon/2"]'), ("rooms names 'lyon/2', where no ICE server is", "'lyon/1'")
    ),
    "room without site": Release(text('rooms = ["1"]'), ("'1'", "'site/room'")),
    "unknown server": Release(
        text('nodes = ["lyon-1-sale"]'), ("nodes names 'lyon-1-sale'", "'lyon-1-salle'")
    ),
    "a REPO as target": Release(
        text('nodes = ["repo-1"]'), ("nodes names 'repo-1'", "not an ICE server")
    ),
    "a server twice": Release(
        text('nodes = ["lyon-1-salle", "lyon-1-salle"]'), ("'lyon-1-salle' is listed twice",)
    ),
    "a server by site and name": Release(
        text(SITES + '\nnodes = ["lyon-1-salle"]'),
        ("the server 'lyon-1-salle' is named twice", "the site 'lyon'", "its own name"),
    ),
    "a server by site and room": Release(
        text(SITES + '\nrooms = ["lyon/1"]'),
        ("the server 'lyon-1-salle' is named twice", "the room 'lyon/1'"),
    ),
    "no target": Release(text(""), ("targets: it names no server",)),
    "several mistakes": Release(
        text('nodes = ["nice-1-salle"]', feature='"x"', sas='"y"'),
        ("3 mistakes", "'x'", "'y'", "'nice-1-salle'"),
    ),
    "ends before it starts": Release(
        text(end="2026-10-13T09:00:00+02:00"),
        ("at or before its start", "end must be later than start"),
    ),
    "ends as it starts": Release(text(end=GOOD["start"]), ("end must be later than start",)),
    "fetched after it starts": Release(
        text(prefetch="2026-10-15T09:00:00+02:00"), ("prefetch", "later than start")
    ),
    "no time zone": Release(
        text(start="2026-10-14T09:00:00"), ("start", "offset from UTC", "+02:00")
    ),
    "no time of day": Release(text(start="2026-10-14"), ("start", "no time of day")),
    "a date in quotes": Release(text(end='"2026-12-01"'), ("end", "without quotes")),
    "before 1970": Release(text(prefetch="1931-10-14T09:00:00Z"), ("prefetch", "before 1970")),
    "unknown key": Release(text(prefech=GOOD["prefetch"]), ("prefech", "prefetch")),
    "unknown target": Release(text('site = ["lyon"]'), ("site", "sites")),
    "missing key": Release(text(loop=None), ("loop", "missing")),
    "no name": Release(text(name='""'), ("name", "empty")),
    "a name that is a path": Release(text(name='"../film"'), ("name", "'../film'", "slash")),
    "a number as script": Release(text(feature="3"), ("feature", "3", "text in quotes")),
    "sites without brackets": Release(text('sites = "lyon"'), ("sites", "list in brackets")),
    "broken TOML": Release(text() + "loop = \n", ("line",)),
    "unfinished text": Release(text(name='"film'), ("line 1",)),
    "empty": Release("", ("name", "missing")),
    "not UTF-8": Release(text().encode() + b"# caf\xe9\n", ("is not UTF-8 text",)),
    "huge": Release(text() + "# " + "x" * 600_000, ("larger than",)),
    "control characters": Release(text(name='"fi\\u001b[2Jlm"'), ("name", "\\x1b")),
}


@pytest.mark.usefixtures("nothing_signed")
@pytest.mark.parametrize("case", RELEASES.values(), ids=RELEASES)
def test_a_release_with_a_mistake_is_refused(
    central: FleetNode, tmp_path: Path, case: Release
) -> None:
    path = tmp_path / "release.toml"
    path.write_bytes(case.text.encode() if isinstance(case.text, str) else case.text)
    refused(central, "release", "apply", str(path), "--yes").check(case.code, str(path), *case.says)


@pytest.mark.usefixtures("nothing_signed")
def test_a_file_that_is_not_there_is_named(central: FleetNode, tmp_path: Path) -> None:
    missing, folder = tmp_path / "none.toml", tmp_path
    refused(central, "release", "apply", str(missing), "--yes").check(2, str(missing), "No such")
    refused(central, "release", "apply", str(folder), "--yes").check(2, str(folder), "directory")


@pytest.mark.usefixtures("nothing_signed")
def test_nothing_is_signed_when_nobody_can_be_asked(central: FleetNode, tmp_path: Path) -> None:
    path = tmp_path / "release.toml"
    path.write_text(text())
    # The plan is shown all the same, so there is something on standard output.
    done = central.run("release", "apply", str(path), check=False)
    assert done.returncode == 2
    assert "Nothing was signed, because nobody could be asked." in done.stderr
    assert "--yes" in done.stderr
    assert "lyon-1-salle" in done.stdout


def test_without_a_mistake_it_is_signed(central: FleetNode, tmp_path: Path) -> None:
    path = tmp_path / "release.toml"
    path.write_text(text())
    before = central.status()["trust"]["serial"]
    assert central.json("release", "apply", str(path), "--yes")["signed"]
    assert signed(central)["head"] == (1, before + 1)
    assert central.json("release", "apply", str(path), "--yes")["action"] == "none"
