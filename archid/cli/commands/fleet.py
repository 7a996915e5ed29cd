"""``archid fleet``: every node, as it says itself, seen from central."""

from __future__ import annotations

import time
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import table
from archid.cli.session import Session

Json = dict[str, Any]

ROLES: Final = {"central": "central", "repo": "REPO"}
HEALTH_STYLES: Final = {"ok": "ok", "attention": "attention", "alarm": "alarm"}
STATE_STYLES: Final = {"active": "ok", "ready": "ok", "fetching": "attention", "failed": "alarm"}


@session_command("fleet")
def command(session: Session) -> None:
    """Show every node of the fleet and how its releases stand.

    Each node says this of itself; what it says travels from node to node, so a room shows up
    here even when it cannot reach central.
    """
    result = session.call("fleet")
    session.screen.result(result, screen(result, verbose=session.verbose))


def screen(result: Json, *, verbose: bool) -> RenderableType:
    """The table, and under it what needs attention."""
    made = table("node", "where", "heard", "health", "releases")
    notes: list[Text] = []
    head = (result["head"]["epoch"], result["head"]["serial"])
    for node in result["nodes"]:
        made.add_row(
            node["name"],
            _where(node),
            _heard(node, time.time()),
            _health(node),
            _releases(node),
        )
        notes += [Text(f"{node['name']}: {reason}", "attention") for reason in node["reasons"]]
        behind = node["head"] and (node["head"]["epoch"], node["head"]["serial"]) < head
        if behind and verbose:
            notes.append(Text(f"{node['name']}: behind with the state of the fleet", "quiet"))
    waiting = [
        Text(f"{room['release']}: {room['sentence']}", "attention")
        for room in result["rooms"]
        if not room["ready"]
    ]
    return Group(made, *waiting, *notes)


def _where(node: Json) -> str:
    if node["role"] != "ice":
        return " ".join(part for part in (ROLES.get(node["role"], ""), node["site"]) if part)
    return " ".join(part for part in (node["site"], node["room"], node["server_kind"]) if part)


def _heard(node: Json, now_s: float) -> Text:
    if node["seen_s"] is None:
        return Text("never", style="alarm")
    ago_s = max(0.0, now_s - node["seen_s"])
    return Text(f"{figures.duration(ago_s)} ago", style="alarm" if node["silent"] else "")


def _health(node: Json) -> Text:
    if node["health"] is None:
        return Text("unknown", style="quiet")
    if node["silent"]:
        return Text("silent", style="alarm")
    return Text(node["health"], style=HEALTH_STYLES.get(node["health"], "alarm"))


def _releases(node: Json) -> Text:
    parts = Text()
    for release in node["releases"]:
        if release["state"] == "withdrawn":
            continue
        if parts:
            parts.append(", ")
        parts.append(f"{release['name']} ")
        parts.append(release["state"], style=STATE_STYLES.get(release["state"], "quiet"))
    return parts
