"""The journal as people read it: who did what, what came of it, and whether it can be believed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from archid.control.client import ControlClient
from archid.control.schema import OUTPUTS
from archid.control.validation import check
from tests.fleet.film import publish_film, release_film
from tests.fleet.local import FleetNode, LocalFleet, local_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with local_fleet(tmp_path_factory.mktemp("log")) as made:
        made.found()
        made.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        publish_film(made)
        release_film(made)
        made.nodes["lyon-1-salle"].wait_active("film")
        yield made


def lines(node: FleetNode, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in node.run("log", "--json", *options).stdout.splitlines()]


def test_a_servers_journal_tells_what_came_and_when_it_switched(fleet: LocalFleet) -> None:
    shown = lines(fleet.nodes["lyon-1-salle"])
    for line in shown:
        check(line, OUTPUTS["log.line"])
    told = [line["sentence"] for line in shown]
    assert sorted(told[:3]) == [
        f"film-{kind} version 1 is here, whole and verified" for kind in ("feature", "loop", "sas")
    ]
    assert told[3] == "film generation 1 was switched to"
    assert [line["seq"] for line in shown] == list(range(1, len(shown) + 1))


def test_every_change_at_central_names_its_user_and_its_outcome(fleet: LocalFleet) -> None:
    central = fleet.central
    central.run("release", "withdraw", "no-such-film", "--yes", check=False)
    told = [line["sentence"] for line in lines(central, "--kind", "operation")]
    assert any("publish film-feature feature" in one for one in told)
    assert any("token create ice lyon-1-salle lyon 1" in one for one in told)
    assert any(one.endswith(": release apply film generation 1") for one in told)
    assert told[-1].endswith("release withdraw no-such-film failed (not_found)")
    central.run("pin", "film-loop")
    central.run("unpin", "film-loop")
    pins = [line["sentence"] for line in lines(central) if "pinned" in line["kind"]]
    assert "pinned version" in pins[0]
    assert pins[0].endswith(" as film-loop")
    assert pins[1].endswith(", pinned as film-loop, was unpinned")
    secret = fleet.token("later", "ice", site="nice", room="1", kind="salle")
    assert secret not in central.run("log", "-v").stdout


def test_entries_are_chosen_by_kind_number_and_time(fleet: LocalFleet) -> None:
    salle = fleet.nodes["lyon-1-salle"]
    assert {line["kind"] for line in lines(salle, "--kind", "tree")} == {"tree_placed"}
    assert len(lines(salle, "--limit", "2")) == 2
    assert lines(salle, "--since", "2097-01-01") == []
    assert len(lines(salle, "--since", "1h")) >= 4
    assert salle.run("log", "--since", "yesterday", check=False).returncode == 2


def test_who_follows_sees_what_is_added(fleet: LocalFleet) -> None:
    central = fleet.central
    params = {"since_s": None, "kinds": ["operation"], "limit": 1, "follow": True}
    with ControlClient(central.socket).start("log", params) as following:
        first = following.next_event()
        fleet.token("followed", "repo")
        second = following.next_event()
    assert first is not None
    assert second is not None
    assert second["seq"] > first["seq"]
    assert "token create" in second["sentence"]
    assert "followed" in second["sentence"]


def test_a_changed_entry_is_named_and_the_rest_is_still_shown(fleet: LocalFleet) -> None:
    salle = fleet.nodes["lyon-1-salle"]
    salle.process.stop()
    with sqlite3.connect(salle.state / "journal.db") as database:
        [payload] = database.execute("SELECT payload FROM entry WHERE seq = 2").fetchone()
        changed = payload.replace(b"film-", b"fake-")
        assert changed != payload
        database.execute("UPDATE entry SET payload = ? WHERE seq = 2", (changed,))
    database.close()
    salle.process.start()
    done = salle.run("log", check=False)
    assert done.returncode == 7
    assert "The journal is damaged at entry 2" in done.stderr
    assert "film generation 1 was switched to" in done.stdout
    assert lines_of(salle.run("log", "--json", check=False).stdout)[-1]["damage"]["seq"] == 2


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
