"""``archid gc``: remove what nothing needs any more."""

from __future__ import annotations

from typing import Any

import click
from rich.console import RenderableType
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import heading, indented, table
from archid.cli.session import Session


@session_command("gc")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed, and why.")
def command(session: Session, dry_run: bool) -> int:
    """Remove what no grant, bundle, pin or rollback needs any more.

    The daemon does this by itself every hour. Nothing is removed while the newest state of the
    fleet has expired, nor what was granted a few days ago ([storage] keep_ungranted), nor a
    bundle that a player locks, plays, or was switched away from within seven days.
    """
    result = session.call("gc", {"dry_run": dry_run})
    verb = "Would be removed" if dry_run else "Removed"
    screens: list[RenderableType] = []
    if result["gone"]:
        freed = figures.size(result["size_bytes"])
        screens += [Text(f"{verb}, {freed}:", style="ok"), indented(_rows(result["gone"]))]
    else:
        screens.append(Text("There is nothing to remove.", style="ok"))
    if result["waiting"]:
        screens += [heading("Stays for now"), indented(_rows(result["waiting"]))]
    screens += [Text(sentence, style="alarm") for sentence in result["failed"]]
    session.screen.result(result, *screens)
    return 7 if result["failed"] else 0


def _rows(items: list[dict[str, Any]]) -> RenderableType:
    made = table("what", "name", "size", "why", right=("size",))
    for one in items:
        size = figures.size(one["size_bytes"]) if one["size_bytes"] else ""
        made.add_row(one["kind"], one["name"] or one["id"][:12], size, one["why"])
    return made
