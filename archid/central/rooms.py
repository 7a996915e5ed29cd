"""How a release stands in each room: its salle and its SAS server are one thing to the audience.

A room is ready only when both are, at the generation in force; otherwise it is said which one is
not, and why. Nothing here asks anybody: it puts together what the nodes said of themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from archid.central.release_plan import CurrentRelease, Server
from protocol.ids import NodeId

READY: Final = frozenset({"ready", "active", "ended"})
KINDS: Final = {"salle": "salle", "sas": "SAS"}


@dataclass(frozen=True)
class Told:
    """What a server said of a release last; `current` if that was of the generation in force."""

    state: str
    reason: str | None
    current: bool
    silent: bool

    @property
    def is_ready(self) -> bool:
        """A server that fell silent may be dark: what it said then is no proof."""
        return self.state in READY and self.current and not self.silent


Tell = Callable[[NodeId], Told]


def rooms_json(release: CurrentRelease, tell: Tell, *, enrolled: Iterable[Server]) -> list[Any]:
    """Every room that the release is for, as the control socket shows it.

    `enrolled` are all servers of the fleet, so that a SAS that is merely not among the targets is
    told from one that was never installed.
    """
    rooms: dict[tuple[str, str], list[Server]] = {}
    for server in sorted(release.servers.values()):
        rooms.setdefault((server.site, server.room), []).append(server)
    known = {(one.site, one.room, one.server_kind): one.name for one in enrolled}
    found = []
    for (site, room), servers in sorted(rooms.items()):
        lacking = [_lack(server, tell(server.node)) for server in servers]
        here = {server.server_kind for server in servers}
        for kind, word in KINDS.items():
            if kind in here:
                continue
            other = known.get((site, room, kind))
            lacking.append(
                f"it has no {word} server" if other is None
                else f"its {word} server {other} is not among the targets"
            )  # fmt: skip
        missing = [one for one in lacking if one]
        where = f"room {room} of {site}" if room else site or "no room"
        found.append(
            {
                "site": site,
                "room": room,
                "ready": not missing,
                "servers": [server.name for server in servers],
                "sentence": f"{where} is ready" if not missing
                else f"{where} is not ready: {'; '.join(missing)}",
            }
        )  # fmt: skip
    return found


def _lack(server: Server, told: Told) -> str:
    """What its room lacks on account of a server; empty when nothing."""
    who = f"its {KINDS.get(server.server_kind, 'server')} server {server.name}"
    if told.is_ready:
        return ""
    if told.state == "unknown":
        return f"{who} has not said anything of this release"
    if told.silent:
        return f"{who} has said nothing for a while"
    if not told.current:
        return f"{who} has not heard of the newest generation"
    state = told.state.replace("_", " ")
    return f"{who} is {state}" + (f" ({told.reason})" if told.reason else "")
