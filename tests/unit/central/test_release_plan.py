"""What a definition would change, on estates that hypothesis makes up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archid.central.release_definition import ReleaseDefinition, parse_release
from archid.central.release_plan import (
    CurrentRelease,
    Estate,
    KnownScript,
    ReleasePlan,
    Server,
    Version,
)
from archid.central.release_planning import plan_release
from archid.errors import UsageError
from protocol.ids import ManifestId, NodeId, ReleaseId
from tests.unit.central.fleet import NOW, definition


def server(site: str, room: str, kind: str) -> Server:
    name = f"{site}-{room}-{kind}"
    return Server(name, NodeId.of(name.encode()), "ice", site, room, kind)


def script(name: str, kind: str, count: int = 2) -> KnownScript:
    versions = tuple(
        Version(number, ManifestId.of(f"{name}{number}".encode()), 1000 * number)
        for number in range(1, count + 1)
    )
    return KnownScript(name, kind, versions)


SERVERS = tuple(
    server(site, room, kind)
    for site in ("paris", "lyon")
    for room in ("1", "2")
    for kind in ("salle", "sas")
)
CENTRAL = Server("central", NodeId.of(b"central"), "central")
SCRIPTS = {f"dune-{kind}": script(f"dune-{kind}", kind) for kind in ("feature", "sas", "loop")}
ESTATE = Estate((*SERVERS, CENTRAL), SCRIPTS)


def planned(
    text: str, current: CurrentRelease | None = None, *, estate: Estate = ESTATE, total: int = 0
) -> ReleasePlan:
    parsed = parse_release(text, source="dune.toml")
    return plan_release(
        parsed, estate, current, source="dune.toml", now_s=int(NOW), total_grants=total
    )


def applied(plan: ReleasePlan) -> CurrentRelease:
    """The release as it is once a plan was carried out."""
    return CurrentRelease(
        release=plan.release or ReleaseId(bytes(16)),
        name=plan.name,
        generation=plan.generation,
        state="active",
        prefetch_s=plan.prefetch_s,
        start_s=plan.start_s,
        end_s=plan.end_s,
        scripts={each.kind: each for each in plan.scripts},
        servers={each.node: each for each in plan.servers},
    )


def refused(text: str, *, estate: Estate = ESTATE) -> str:
    with pytest.raises(UsageError) as caught:
        planned(text, estate=estate)
    return caught.value.message


def names_of(chosen: tuple[Server, ...]) -> str:
    listed = ", ".join(f'"{each.name}"' for each in chosen)
    return f"nodes = [{listed}]"


some_servers = st.sets(st.sampled_from(SERVERS), min_size=1).map(lambda found: tuple(sorted(found)))
some_dates = st.sampled_from(["2026-10-14T09:00:00Z", "2026-10-15T09:00:00Z"])
some_features = st.sampled_from(["dune-feature", "dune-feature@1", "dune-feature@2"])


@st.composite
def definitions(draw: st.DrawFn) -> str:
    return definition(
        targets=names_of(draw(some_servers)), start=draw(some_dates), feature=draw(some_features)
    )


@given(definitions())
def test_applying_a_plan_leaves_nothing_to_change(text: str) -> None:
    first = planned(text)
    assert (first.action, first.generation) == ("create", 1)
    again = planned(text, applied(first))
    assert (again.action, again.generation, again.changes) == ("none", 1, ())
    assert not again.gained
    assert not again.lost


@given(definitions(), definitions())
def test_a_plan_says_every_difference_and_bumps_the_generation_by_one(
    before: str, after: str
) -> None:
    current = applied(planned(before))
    plan = planned(after, current)
    wanted = parse_release(after, source="d")
    old, new = set(current.servers), {each.node for each in plan.servers}
    assert {each.node for each in plan.gained} == new - old
    assert {each.node for each in plan.lost} == old - new
    assert applied(plan).servers.keys() == new
    differs = (
        old != new
        or (current.start_s, current.end_s) != (wanted.start_s, wanted.end_s)
        or any(current.scripts[each.kind].manifest != each.manifest for each in plan.scripts)
    )
    assert plan.generation == current.generation + differs
    assert (plan.action == "change") == differs
    back = planned(before, applied(plan))
    assert (back.action == "change") == differs


@given(definitions(), definitions())
def test_a_digest_names_one_plan(one: str, other: str) -> None:
    current = applied(planned(one))
    first, second = planned(one, current), planned(other, current)
    same = (first.scripts, first.start_s, first.servers, first.generation) == (
        second.scripts,
        second.start_s,
        second.servers,
        second.generation,
    )
    assert (first.digest == second.digest) == same
    later = planned(one, replace(current, generation=current.generation + 1))
    assert later.digest != first.digest


@given(definitions())
def test_the_json_of_a_plan_lists_every_server_once(text: str) -> None:
    plan = planned(text, applied(planned(definition(targets='sites = ["lyon"]'))))
    targets = plan.to_json()["targets"]
    assert isinstance(targets, list)
    names = [each["name"] for each in targets]
    assert len(names) == len(set(names))
    assert {each["name"] for each in targets if each["change"] != "removed"} == {
        each.name for each in plan.servers
    }


def test_sites_rooms_and_names_reach_their_servers() -> None:
    plan = planned(
        definition(targets='sites = ["lyon"]\nrooms = ["paris/1"]\nnodes = ["paris-2-sas"]')
    )
    assert len(plan.servers) == 4 + 2 + 1


def test_a_server_that_is_named_twice_is_refused() -> None:
    said = refused(definition(targets='rooms = ["paris/1"]\nnodes = ["paris-1-sas"]'))
    assert "'paris-1-sas' is named twice, by the room 'paris/1' and by its own name" in said
    said = refused(definition(targets='sites = ["paris"]\nrooms = ["paris/1"]'))
    assert "by the site 'paris' and by the room 'paris/1'" in said


def test_unknown_names_come_with_the_nearest_known_ones() -> None:
    assert "The nearest known is 'paris'" in refused(definition(targets='sites = ["Pariss"]'))
    assert "'lyon-1-sas'" in refused(definition(targets='nodes = ["lyon-1-sasa"]'))
    assert "'lyon/2'" in refused(definition(targets='rooms = ["lyonn/2"]'))
    assert "'dune-feature'" in refused(definition(feature="dune-featur"))
    assert "newest version is 2" in refused(definition(feature="dune-feature@7"))
    empty = Estate((CENTRAL,), {})
    assert "No script has been published yet" in refused(definition(), estate=empty)


def test_a_script_of_another_kind_is_refused() -> None:
    assert "published as a loop script" in refused(definition(feature="dune-loop"))


def test_a_repo_or_central_is_no_target() -> None:
    assert "not an ICE server" in refused(definition(targets='nodes = ["central"]'))


def test_all_mistakes_are_told_at_once() -> None:
    said = refused(definition(stem="alien", targets='sites = ["rome"]'))
    assert "has 4 mistakes" in said


def test_a_room_that_gets_half_and_a_past_start_are_warned_about() -> None:
    plan = planned(
        definition(
            targets='nodes = ["paris-1-sas"]',
            start="2020-01-01T00:00:00Z",
            prefetch="2020-01-01T00:00:00Z",
        )
    )
    assert any("paris-1-salle" in warning for warning in plan.warnings)
    assert any("in the past" in warning for warning in plan.warnings)


def test_losing_more_than_a_fifth_of_all_grants_is_warned_about() -> None:
    current = applied(planned(definition(targets='rooms = ["paris/1"]')))
    one_less = definition(targets='nodes = ["paris-1-sas"]')
    assert any(
        "more than a fifth" in each for each in planned(one_less, current, total=14).warnings
    )
    assert not any("fifth" in each for each in planned(one_less, current, total=15).warnings)


def test_the_definition_type_is_what_the_parser_gives() -> None:
    assert isinstance(parse_release(definition(), source="d"), ReleaseDefinition)
