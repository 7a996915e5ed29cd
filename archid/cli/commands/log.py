"""``archid log``: what was done at this node and what came of it, from its signed journal."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import click
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import write_json
from archid.cli.session import Session
from archid.errors import StorageError, UsageError

Json = dict[str, Any]


@session_command("log")
@click.option(
    "--since",
    metavar="WHEN",
    help="Only entries from then on: 90s, 12h, 7d, or a moment such as 2026-10-14T09:00.",
)
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", help="Only kinds that start so; repeatable."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="At most so many, the newest.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
def command(
    session: Session, since: str | None, kinds: tuple[str, ...], limit: int, follow: bool
) -> int:
    """Show what was done at this node, and what came of it.

    The journal is a chain of signed entries; all of it is checked each time, and if a part was
    changed or lost that is said and the exit code is 7. With --json each entry is a line.
    """
    params = {
        "since_s": None if since is None else _since_s(since),
        "kinds": list(kinds),
        "limit": limit,
        "follow": follow,
    }
    if follow:
        for event in session.client().stream("log", params):
            if event["event"] == "log.entry":
                _show(session, {key: value for key, value in event.items() if key != "event"})
            elif event["event"] == "log.damage":
                _complain(session, event)
        return 0
    result = session.call("log", params)
    for entry in result["entries"]:
        _show(session, entry)
    if result["damage"] is not None:
        _complain(session, result["damage"])
        return StorageError.exit_code
    if not result["entries"]:
        session.screen.say(Text("There is no such entry in the journal.", style="quiet"))
    return 0


def _show(session: Session, entry: Json) -> None:
    if session.json:
        write_json(entry, one_line=True)
        return
    line = Text.assemble((figures.moment_s(entry["at_s"]), "quiet"), "  ", entry["sentence"])
    if session.verbose:
        line.append(f"  #{entry['seq']} {entry['kind']} {entry['hash'][:12]}", style="quiet")
    session.screen.out.print(line, soft_wrap=True)


def _complain(session: Session, damage: Json) -> None:
    if session.json:
        told = {key: damage[key] for key in ("seq", "sentence", "remedy")}
        write_json({"damage": told}, one_line=True)
        return
    session.screen.err.print(Text(f"{damage['sentence']}.", style="alarm"))
    session.screen.err.print(Text(f"{damage['remedy']}."))


def _since_s(text: str) -> int:
    from archid.quantities import parse_duration

    try:
        return max(0, int(time.time() - parse_duration(text).total_seconds()))
    except ValueError:
        pass
    try:
        return max(0, int(datetime.fromisoformat(text).astimezone().timestamp()))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since {text!r} is neither a duration nor a moment",
            remedy="Write 12h, 7d or 2026-10-14T09:00",
        ) from error
