"""`archid why` beside real daemons, through the life of a release."""

from __future__ import annotations

from typing import Any

import pytest

from archid.control.schema import OUTPUTS
from archid.control.validation import check
from tests.fleet.film import FAR_AWAY, publish_film, release_film
from tests.fleet.local import LocalFleet, local_fleet


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with local_fleet(tmp_path_factory.mktemp("why")) as made:
        made.found()
        made.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        made.join("nice-1-salle", "ice", site="nice", room="1", kind="salle", start=False)
        publish_film(made)
        yield made


def why(fleet: LocalFleet, node: str, words: str) -> dict[str, Any]:
    """The answer about the film once its sentence has these words."""
    found: dict[str, Any] = {}

    def holds(_status: dict[str, Any]) -> bool:
        found.update(fleet.central.call("why", node=node, release="film"))
        return words in found["sentence"]

    fleet.central.wait(holds, what=f"the cause '{words}'")
    check(found, OUTPUTS["why"])
    return found


@pytest.mark.long
def test_each_step_of_a_release_has_its_cause(fleet: LocalFleet) -> None:
    release_film(fleet, prefetch=FAR_AWAY, start=FAR_AWAY, sites='["lyon", "nice"]')
    early = why(fleet, "lyon-1-salle", "fetches film from 2097-01-01 00:00 UTC on")
    assert early["solved"]
    assert "feature film-feature@1: 0 % there" in "\n".join(early["evidence"])
    unheard = why(fleet, "nice-1-salle", "has said nothing yet")
    assert not unheard["solved"]
    assert "Start archid on it" in unheard["remedy"]
    release_film(fleet)
    assert why(fleet, "lyon-1-salle", "plays generation 2")["solved"]
    left_out = why(fleet, "nice-1-salle", "is not among the servers of film")
    assert "apply it again" in left_out["remedy"]
    fleet.central.run("release", "withdraw", "film", "--yes")
    assert why(fleet, "lyon-1-salle", "film was withdrawn")["release"] == "film"
    fleet.central.wait(
        lambda _: fleet.central.call("why", node="lyon-1-salle", release="film")["solved"],
        what="the server having taken it away",
    )
