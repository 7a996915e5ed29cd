"""The whole fleet as central sees it: the definitions beside what every node says of itself.

This is where *every room is ready* is read off, and where *why is this room not* gets its answer:
one sentence of cause, then the evidence. Nothing here decides or sends anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from archid.central.causes import Situation, cause_of
from archid.central.estate import Node
from archid.central.release_plan import CurrentRelease, Server
from archid.central.rooms import Told, rooms_json
from archid.central.service import CentralService
from archid.errors import NotFound
from archid.sync.states import NodeStates
from protocol.ids import NodeId, ReleaseId
from protocol.state import WHOLE, NodeState, ReleaseStanding


@dataclass(frozen=True)
class Cause:
    """Why a room stands as it stands; `solved` when it is as it should be."""

    sentence: str
    remedy: str | None
    solved: bool
    evidence: tuple[str, ...]


class FleetView:
    """Definitions and states, put side by side."""

    def __init__(
        self,
        service: CentralService,
        states: NodeStates,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._states = states
        self._clock = clock

    async def fleet(self) -> dict[str, Any]:
        """Every node with its newest state, as the control method ``fleet`` answers."""
        releases = await self._service.releases()
        names = {one.release: one.name for one in releases}
        nodes = [self._node_json(node, names) for node in await self._service.membership.nodes()]
        epoch, serial = self._service.state.order
        rooms = [
            {"release": one.name, **room}
            for one in releases
            if one.state == "active" and self._clock() < one.end_s
            for room in await self.rooms(one)
        ]
        return {"nodes": nodes, "rooms": rooms, "head": {"epoch": epoch, "serial": serial}}

    async def rooms(self, release: CurrentRelease) -> list[dict[str, Any]]:
        """How a release stands in each of its rooms, both machines taken together."""
        servers = [
            Server(one.name, one.node, "ice", one.place.site, one.place.room, one.place.server_kind)
            for one in await self._service.membership.nodes()
            if one.place.role == "ice"
        ]
        return rooms_json(release, lambda node: self._told(node, release), enrolled=servers)

    def _told(self, node: NodeId, release: CurrentRelease) -> Told:
        state = self._states.known.get(node)
        one = _standing(state, release.release)
        if state is None or one is None:
            return Told("unknown", None, current=False, silent=state is None)
        return Told(
            one.state,
            one.reason or None,
            current=one.generation >= release.generation,
            silent=self._states.is_silent(state),
        )

    def standing(self, node: NodeId, release: ReleaseId) -> tuple[str, str | None]:
        """(state, reason) of one release on one node; "unknown" when it has not said."""
        state = self._states.known.get(node)
        one = _standing(state, release)
        if state is None or one is None:
            return "unknown", None
        if self._states.is_silent(state):
            return one.state, "it has said nothing for a while"
        return one.state, one.reason or None

    async def why(self, node_name: str, release_name: str) -> dict[str, Any]:
        """As the control method ``why`` answers; raises NotFound."""
        release = await self._service.release(release_name)
        node = next(
            (
                one
                for one in await self._service.membership.nodes()
                if node_name in (one.name, one.node.hex())
            ),
            None,
        )
        if node is None:
            raise NotFound(f"There is no node '{node_name}'", remedy="archid fleet lists the nodes")
        cause = self._cause(node, release)
        state = self._states.known.get(node.node)
        return {
            "node": node.name,
            "release": release.name,
            "generation": release.generation,
            "state": self.standing(node.node, release.release)[0],
            "sentence": cause.sentence,
            "remedy": cause.remedy,
            "solved": cause.solved,
            "evidence": list(cause.evidence),
            "seen_s": None if state is None else state.issued_s,
        }

    # Causes, the most telling first

    def _cause(self, node: Node, release: CurrentRelease) -> Cause:
        state = self._states.known.get(node.node)
        one = _standing(state, release.release)
        facts = tuple(self._evidence(node, release, state, one))
        if release.state == "withdrawn":
            gone = one is None or one.state == "withdrawn"
            if one is not None and one.state == "failed":
                return _not_taken_away(node, release, one, facts)
            told = "" if gone else f", and {node.name} has not taken it away yet"
            remedy = None if gone else "It does with its next contact; until then it plays on"
            return Cause(f"{release.name} was withdrawn{told}", remedy, gone, facts)
        if node.node not in release.servers:
            if one is not None and one.state == "failed":
                return _not_taken_away(node, release, one, facts)
            return Cause(
                f"{node.name} is not among the servers of {release.name}",
                "Add it to the targets of the release and apply it again",
                one is None or one.state == "withdrawn",
                facts,
            )
        if state is None:
            return Cause(
                f"{node.name} has said nothing yet: it was never started, or reaches no REPO",
                "Start archid on it, and see what `archid status` says there about its peers",
                False,
                facts,
            )
        if self._states.is_silent(state):
            minutes = (self._clock() - state.issued_s) / 60
            return Cause(
                f"{node.name} has said nothing for {minutes:.0f} minutes: it is down or cut off",
                "Look at its power, its network and `archid doctor` there",
                False,
                facts,
            )
        if one is None or one.generation < release.generation:
            behind = state.head_order < self._service.state.order
            return Cause(
                f"{node.name} has not heard of generation {release.generation} yet"
                + (", since it is behind with the state of the fleet" if behind else ""),
                "It comes with its next contact with central, a REPO or a neighbour",
                False,
                facts,
            )
        return self._cause_of_standing(node, release, state, one, facts)

    def _cause_of_standing(
        self,
        node: Node,
        release: CurrentRelease,
        state: NodeState,
        one: ReleaseStanding,
        facts: tuple[str, ...],
    ) -> Cause:
        cause = cause_of(
            Situation(
                node=node.name,
                release=release.name,
                generation=one.generation,
                prefetch_s=release.prefetch_s,
                start_s=release.start_s,
                end_s=release.end_s,
                state=one.state,
                reason=one.reason,
                health_reasons=state.reasons,
                held_percent=self._held(release, state) * 100 / WHOLE,
                holders=self._holders(release),
                now_s=self._clock(),
            )
        )
        return Cause(*cause, facts)

    def _holders(self, release: CurrentRelease) -> list[str]:
        """Who says that it holds all of a release, of those that were heard lately."""
        wanted = {script.manifest for script in release.scripts.values()}
        found = []
        for node, state in self._states.known.items():
            held = {one.manifest for one in state.holdings if one.held_permille == WHOLE}
            facts = self._states.facts(node)
            if facts is not None and wanted <= held and not self._states.is_silent(state):
                found.append(facts.name)
        return sorted(found)

    def _evidence(
        self,
        node: Node,
        release: CurrentRelease,
        state: NodeState | None,
        one: ReleaseStanding | None,
    ) -> Sequence[str]:
        dates = f"fetched from {_moment(release.prefetch_s)}, starts {_moment(release.start_s)}"
        lines = [f"central: generation {release.generation} is {release.state}, {dates}"]
        if state is None:
            return [*lines, f"{node.name}: no state is known"]
        lines.append(
            f"{node.name} at {_moment(state.issued_s)}: health {state.health}, head"
            f" {state.head_order[0]}/{state.head_order[1]} of"
            f" {self._service.state.order[0]}/{self._service.state.order[1]},"
            f" {state.free_bytes / 1e9:.0f} GB free, archid {state.software}"
        )
        lines += [f"{node.name}: {reason}" for reason in state.reasons]
        if one is not None:
            lines.append(f"{node.name}: generation {one.generation} is {one.state}")
        permille = {holding.manifest: holding.held_permille for holding in state.holdings}
        for kind, script in sorted(release.scripts.items()):
            held = permille.get(script.manifest, 0)
            lines.append(f"{kind} {script}: {held / 10:.0f} % there")
        return lines

    def _held(self, release: CurrentRelease, state: NodeState) -> float:
        """Thousandths of the release's bytes that the node holds."""
        permille = {holding.manifest: holding.held_permille for holding in state.holdings}
        total = sum(script.size_bytes for script in release.scripts.values())
        held = sum(
            permille.get(script.manifest, 0) * script.size_bytes
            for script in release.scripts.values()
        )
        return held / total if total else float(WHOLE)

    def _node_json(self, node: Node, names: dict[ReleaseId, str]) -> dict[str, Any]:
        state = self._states.known.get(node.node)
        place = node.place
        return {
            "node": node.node.hex(),
            "name": node.name,
            "role": place.role,
            "site": place.site,
            "room": place.room,
            "server_kind": place.server_kind,
            "seen_s": None if state is None else state.issued_s,
            "silent": state is None or self._states.is_silent(state),
            "software": "" if state is None else state.software,
            "health": None if state is None else state.health,
            "reasons": [] if state is None else list(state.reasons),
            "free_bytes": None if state is None else state.free_bytes,
            "head": None
            if state is None
            else {"epoch": state.head_order[0], "serial": state.head_order[1]},
            "releases": []
            if state is None
            else [
                {
                    "release": one.release.hex(),
                    "name": names.get(one.release, one.release.hex()[:12]),
                    "generation": one.generation,
                    "state": one.state,
                    "reason": one.reason or None,
                }
                for one in state.releases
            ],
        }


def _standing(state: NodeState | None, release: ReleaseId) -> ReleaseStanding | None:
    if state is None:
        return None
    return next((one for one in state.releases if one.release == release), None)


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _not_taken_away(
    node: Node, release: CurrentRelease, one: ReleaseStanding, facts: tuple[str, ...]
) -> Cause:
    """It has no place there any more, and what the server said last is that something failed."""
    return Cause(
        f"{node.name} has not taken {release.name} away yet: {one.reason}",
        "Look at its disk and `archid log` there; it tries again every few seconds",
        False,
        facts,
    )
