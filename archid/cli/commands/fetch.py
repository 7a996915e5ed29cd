"""``archid fetch NAME``: fetch before the date."""

from __future__ import annotations

import click
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.session import Session


@session_command("fetch")
@click.argument("name", metavar="RELEASE|SCRIPT")
def command(session: Session, name: str) -> None:
    """Fetch RELEASE or SCRIPT (names or ids) now: before its date and before all others.

    Only what this node is entitled to. The command returns at once; `archid status` shows how
    far it is.
    """
    result = session.call("fetch", {"name": name})
    versions = result["versions"]
    missing = [one for one in versions if not one["held"]]
    if not missing:
        words = Text(f"All of {name} is here already.", style="ok")
    else:
        known = [one["size_bytes"] - one["held_bytes"] for one in missing if one["size_bytes"]]
        size = f", {figures.size(sum(known))}" if len(known) == len(missing) else ""
        words = Text.assemble(
            ("Fetching ", "ok"), (name, "name"), f": {figures.count(len(missing), 'version')}{size}"
        )
    session.screen.result(result, words)
