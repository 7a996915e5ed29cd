"""``archid peers``: every connection, what goes through it, and why the others are not there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import heading, indented, table
from archid.cli.session import Session

Json = dict[str, Any]

ROLE_SHORT: Final[dict[str, str]] = {"central": "central", "repo": "REPO", "ice": "ICE"}
FIGURES: Final = ("for", "in", "out", "in now", "out now")
RIGHT: Final = (*FIGURES, "gossip")
NAME_COLUMNS: Final = 24
WIDE: Final = 110
"""From so many columns on, addresses and gossip have columns of their own."""
NOTHING: Final = "·"


@session_command("peers")
def command(session: Session) -> None:
    """Show every connection, what went through it, and why others are not there.

    In and out is content since the daemon started, over earlier connections too; now is the last
    five seconds. An arrow to the right is a connection that this node made.
    """
    result = session.call("peers")
    columns = session.screen.out.width
    view = View(now_s=time.time(), wide=columns >= WIDE, verbose=session.verbose)
    session.screen.result(result, *screens(result, view))


@dataclass(frozen=True)
class View:
    """For when, for how wide a screen, and whether with ids."""

    now_s: float
    wide: bool
    verbose: bool = False


def screens(result: Json, view: View) -> list[RenderableType]:
    """Those who are here, those who were, and what is dialled in vain."""
    sums = {one["node"]: one for one in result["nodes"]}
    here = [one for one in result["peers"] if one["state"] == "admitted"]
    dialled = [one for one in result["peers"] if one["state"] != "admitted"]
    names = {one["node"] for one in dialled}
    gone = [one for one in result["nodes"] if not one["connected"] and one["node"] not in names]
    found: list[RenderableType] = []
    if here:
        found.append(_connected(here, sums, view=view))
    else:
        found.append(Text("No other node is connected.", style="attention"))
    if dialled:
        found += ["", heading("Not connected")]
        found += [indented(_dialled(one, view.now_s)) for one in dialled]
    if gone:
        found += ["", heading("Were connected")]
        found += [indented(_gone(one, view.now_s)) for one in gone]
    return found


def _connected(here: list[Json], sums: dict[str, Json], *, view: View) -> Table:
    figures_shown = [*FIGURES[:3], *(["gossip"] if view.wide else []), *FIGURES[3:]]
    made = table("node", *(["address"] if view.wide else []), *figures_shown, right=RIGHT)
    made.columns[0].min_width = NAME_COLUMNS
    for one in sorted(here, key=lambda one: (one["role"] == "ice", one["name"])):
        known = sums.get(one["node"], one)
        arrow = "→" if one["direction"] == "outbound" else "←"
        address = Text(f"{arrow} {one['address']}", style="" if view.wide else "quiet")
        cells = {
            "for": figures.duration(view.now_s - one["since_s"]),
            "in": _amount(known["content_received_bytes"]),
            "out": _amount(known["content_sent_bytes"]),
            "gossip": _amount(known["gossip_received_bytes"] + known["gossip_sent_bytes"]),
            "in now": _rate(one["content_in_bytes_per_s"]),
            "out now": _rate(one["content_out_bytes_per_s"]),
        }
        who = _who(one) if view.wide else Text("\n").join([_who(one), address])
        if view.verbose:
            times = figures.count(known.get("connections", 1), "connection")
            lane = ", content by a lane" if one["lane"] else ""
            who.append(f"\n{one['node'][:12]} {one['software']}, {times}{lane}", style="quiet")
        made.add_row(
            who, *([address] if view.wide else []), *(cells[name] for name in figures_shown)
        )
    return made


def _who(one: Json) -> Text:
    role = ROLE_SHORT.get(one["role"], str(one["role"]))
    where = " ".join(part for part in (one["site"], one["room"]) if part)
    words: list[str] = [] if one["name"] == role else [role]
    words += [where] if where and not one["name"].startswith(one["site"]) else []
    return Text.assemble((one["name"], "name"), (" " + ", ".join(words) if words else "", "quiet"))


def _amount(size_bytes: int) -> str:
    return figures.size(size_bytes) if size_bytes else NOTHING


def _rate(bytes_per_s: float) -> str:
    return figures.rate(bytes_per_s) if bytes_per_s >= 1 else NOTHING


def _dialled(one: Json, now_s: float) -> Text:
    who = f"{one['name']} at {one['address']}" if one["name"] else one["address"]
    why = one["reason"] or "it is being dialled for the first time"
    when = f"tried {figures.distance(one['since_s'], now_s)}"
    if one["state"] != "waiting":
        when = "trying again now" if one["reason"] else "now"
    return Text.assemble((who, "name"), (f": {why}", "attention"), (f" ({when})", "quiet"))


def _gone(one: Json, now_s: float) -> Text:
    ago = "" if one["lost_s"] is None else f", lost {figures.distance(one['lost_s'], now_s)}"
    amounts = [
        f"{figures.size(one[key])} of content {word}"
        for key, word in (("content_received_bytes", "received"), ("content_sent_bytes", "sent"))
        if one[key]
    ]
    why = f": {one['last_error']}" if one["last_error"] else ""
    told = f" ({', '.join(amounts)})" if amounts else ""
    return Text.assemble((one["name"], "name"), f"{ago}{told}", (why, "quiet"))
