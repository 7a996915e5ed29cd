"""``archid limits``: how much may go over which line, what does, and changing it for a while."""

from __future__ import annotations

from typing import Any, Final

import click
from rich.console import RenderableType
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import pairs, table
from archid.cli.session import Session
from archid.errors import UsageError
from archid.rates import format_rate

Json = dict[str, Any]

WORDS: Final = {
    "up": "all that is sent",
    "down": "all that is received",
    "outside_up": "sent over the site's line",
    "outside_down": "received over it",
    "per_site_up": "sent to any one other site",
    "per_site_down": "received from any one",
    "per_peer_up": "sent to any one node",
    "per_peer_down": "received from any one",
}


@click.group("limits")
def command() -> None:
    """Show or change how much may go over which line."""


@session_command("show")
def show(session: Session) -> None:
    """Show every limit in force, why it is so, what really goes, and what changes next.

    Actual rates are measured for a second, in bytes on the wire.
    """
    result = session.call("limits.show")
    session.screen.result(result, _table(result, measured=True), _facts(result))


@session_command("set")
@click.argument("limits", nargs=-1, metavar="KEY=RATE...")
@click.option("--until", default=None, metavar="TIME", help="As in 23:30, 2026-12-01T08:00 or 2h.")
def set_limits(session: Session, limits: tuple[str, ...], until: str | None) -> None:
    """Limit something else than the configuration says, at once and in mid-transfer.

    It counts before the configuration and its lines of the week, restarts included, until TIME or
    `archid limits clear`. For example:

    archid limits set outside_down=2Mbit/s --until 23:30

    archid limits set up=unlimited outside_up=unlimited --until 2h
    """
    if not limits:
        raise UsageError(
            "No limit was named",
            remedy="For example: archid limits set outside_down=2Mbit/s --until 23:30",
        )
    result = session.call("limits.set", {"limits": list(limits), "until": until})
    session.screen.result(result, _table(result, measured=False), _facts(result))


@session_command("clear")
@click.argument("keys", nargs=-1, metavar="[KEY...]")
def clear(session: Session, keys: tuple[str, ...]) -> None:
    """Let the configuration count again, for these limits or for all."""
    result = session.call("limits.clear", {"keys": list(keys)})
    session.screen.result(result, _table(result, measured=False), _facts(result))


def _table(result: Json, *, measured: bool) -> RenderableType:
    headings = ["limit", "of", "in force", *(["now"] if measured else []), "because"]
    made = table(*headings, right=("in force", "now"))
    for one in result["limits"]:
        rate = one["rate_bytes_per_s"]
        shown = Text(format_rate(rate), style="quiet" if rate is None else "name")
        row: list[RenderableType] = [one["key"], WORDS[one["key"]], shown]
        if measured:
            who = f" ({one['busiest']})" if one["busiest"] else ""
            row.append(_bits(one["actual_bytes_per_s"]) + who)
        made.add_row(*row, _why(one))
    return made


def _why(one: Json) -> str:
    if one["origin"] == "weekly":
        return str(one["line"])
    if one["origin"] == "file":
        return "the configuration"
    if one["origin"] == "set":
        until = "" if one["until_s"] is None else f" until {figures.moment(one['until_s'])}"
        return f"{one['by']} set it{until}"
    return ""


def _facts(result: Json) -> RenderableType:
    slots = result["upload_slots"]
    taken = f"{slots['in_use']} of {slots['limit']} in use"
    if slots["waiting"]:
        taken += f", {figures.count(slots['waiting'], 'request')} waiting"
    if slots["refused"]:
        taken += f"; {figures.count(slots['refused'], 'request')} told to come later so far"
    rows: list[tuple[str, RenderableType]] = [("upload slots", taken)]
    if result["next_change_s"] is not None:
        changes = ", ".join(
            f"{one['key']}={format_rate(one['rate_bytes_per_s'])}" for one in result["next"]
        )
        moment = figures.moment(result["next_change_s"])
        rows.append(("next change", f"{moment}: {changes}"))
    if result["weekly"]:
        rows.append(("hours are in", result["time_zone"]))
    return pairs(*rows)


def _bits(bytes_per_s: float) -> str:
    """A measured rate in the unit of the limits, to three digits."""
    bits = 8 * bytes_per_s
    for unit, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits >= factor:
            value = bits / factor
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
    return f"{bits:.0f} bit/s"


command.add_command(show)
command.add_command(set_limits)
command.add_command(clear)
