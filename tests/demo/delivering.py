"""A release reaches two of the three cinemas, whose servers share, and is compared there.

Who had what from whom is looked at from both ends: a server's count of what it received, and the
other's count of what it sent. The sender's may be larger, by what was taken back on its way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from archid.cli import figures
from tests.demo.breaking import spoil
from tests.demo.cast import KINDS, OTHERS, REPOS, ROOMS, SITES, TITLE, Fault, Member
from tests.demo.comparing import Contents, compare_at, hashing_program, shortened
from tests.demo.stage import DELIVERY_TIMEOUT_S, FAR_FUTURE, Counter, NotSeen, Stage
from tests.demo.story import StepNotes
from tests.demo.summary import Compared, Delivered, Shared
from tests.demo.watching import Views
from tests.fleet.local import FleetNode

PAIR: Final = ROOMS[:2]
"""The neighbours that are both there from the beginning."""


def release(stage: Stage) -> None:
    """Until every server of the two cinemas that is there has switched, and the REPOs hold all."""
    with stage.story.step("neighbours find one another") as notes:
        if not stage.has(Fault.SHARING):
            _meet(stage)
        notes.say(f"{TITLE} for the cinemas in {' and '.join(SITES)}")
        began = time.monotonic()
        far = FAR_FUTURE if stage.has(Fault.ACTIVATION) else ""
        more = [OTHERS[0].site] if stage.has(Fault.REFUSAL) else []
        stage.apply(start=far, sites=[*SITES, *more])
        arrivals = _Arrivals(stage.film_bytes)
        try:
            views = stage.wait(
                arrivals.complete, what="the release did not arrive", alive=_running(stage)
            )
        except NotSeen as why:
            notes.fail("it did not become active in the rooms")
            late = [name for name in arrivals.expected if name not in arrivals.at]
            if "within" not in str(why):
                raise
            raise NotSeen(
                f"{', '.join(late)} did not get the release within {DELIVERY_TIMEOUT_S:g} s"
            ) from None
        for name in arrivals.expected:
            from_s = stage.published_at if name in arrivals.repos else began
            view = views[name]
            stage.summary.deliveries.append(
                Delivered(name, view.held_bytes, dict(view.sources), arrivals.at[name] - from_s)
            )
        slowest = max(arrivals.at[member.name] for member in ROOMS) - began
        rate = stage.film_bytes * len(ROOMS) / slowest
        share = _look_at_sharing(stage, notes)
        if not notes.failed:
            notes.say(f"{len(ROOMS)} servers switched, {figures.rate(rate)} in all; {share}")


def compare(stage: Stage) -> None:
    """Every file of every room with what was published."""
    with stage.story.step() as notes:
        spoilt = stage.node(ROOMS[0]).release_file(TITLE, "feature")
        for fault in sorted(stage.options.faults, key=lambda one: one.value):
            spoil(fault, spoilt)
            stage.expect_errors(ROOMS[0])  # from when it notices
        compare_rooms(stage, notes, ROOMS)


def compare_rooms(stage: Stage, notes: StepNotes, rooms: Sequence[Member]) -> list[Compared]:
    """Compare what each plays with the source, and say so."""
    files_of = sum(one.files for one in stage.summary.scripts if one.version == 1)
    counted = Counter(notes, files_of * (1 + len(rooms)))
    sources = {kind: Contents.of(stage.sources / TITLE / kind, counted) for kind in KINDS}

    def one(member: Member) -> Compared:
        node = stage.node(member)
        paths: Mapping[str, Path] = {kind: node.release_file(TITLE, kind) for kind in KINDS}
        return compare_at(node.name, paths, sources, counted)

    with ThreadPoolExecutor(len(rooms)) as pool:
        compared = list(pool.map(one, rooms))
    stage.summary.comparisons += compared
    for found in compared:
        if found.differences:
            stage.summary.failures.append(f"At {found.node} {shortened(found.differences)}")
            notes.fail(f"{found.node} does not have what was published")
    if not notes.failed:
        files = sum(found.files for found in compared)
        where = f"{len(rooms)} servers" if len(rooms) > 1 else rooms[0].name
        notes.say(f"{files:,} files at {where} are equal by {hashing_program()}")
    return compared


def _running(stage: Stage) -> list[FleetNode]:
    return [node for node in stage.nodes if node.process.running]


def _meet(stage: Stage) -> None:
    salle, sas = (stage.node(member) for member in PAIR)
    salle.wait(
        lambda status: any(
            peer["name"] == sas.name and peer["state"] == "admitted" for peer in status["peers"]
        ),
        what=f"{sas.name} was not met",
    )


def _look_at_sharing(stage: Stage, notes: StepNotes) -> str:
    """Compare the counts of both ends; the share of the neighbours, in words."""

    def both_looked(views: Views) -> bool:
        return all(
            dict(views[one.name].sources).get(other.name, 0)
            <= dict(views[other.name].sent).get(one.name, 0)
            for one, other in (PAIR, PAIR[::-1])
        )

    views = stage.wait(both_looked, what="the two ends of a room did not count alike")
    for one, other in (PAIR, PAIR[::-1]):
        sources = dict(views[one.name].sources)
        sent = dict(views[other.name].sent).get(one.name, 0)
        stage.summary.sharing.append(
            Shared(one.name, other.name, sources.get(other.name, 0), sent, sum(sources.values()))
        )
    shared = sum(one.received_bytes for one in stage.summary.sharing)
    whole = sum(one.whole_bytes for one in stage.summary.sharing)
    if shared == 0:
        notes.fail("neighbours did not share")
        stage.summary.failures.append(
            f"{PAIR[0].name} and {PAIR[1].name} are neighbours, and neither had anything from the"
            " other"
        )
        return ""
    return f"neighbours gave {100 * shared / whole:.0f} %"


class _Arrivals:
    """When each node had all that it should have."""

    def __init__(self, size_bytes: int) -> None:
        self.repos: Final = tuple(member.name for member in REPOS)
        self.expected: Final = (*(member.name for member in ROOMS), *self.repos)
        self.at: dict[str, float] = {}
        self._size_bytes = size_bytes

    def complete(self, views: Views) -> bool:
        """Note who has arrived; whether all have. Raises NotSeen when one will not."""
        for name in self.expected:
            view = views.get(name)
            if view is None or name in self.at:
                continue
            if view.active or (name in self.repos and view.held_bytes >= self._size_bytes):
                self.at[name] = time.monotonic()
        if problems := [
            f"{view.name} {view.problem}"
            for member in ROOMS
            if (view := views.get(member.name)) is not None and view.problem
        ]:
            raise NotSeen("; ".join(problems))
        return all(name in self.at for name in self.expected)
