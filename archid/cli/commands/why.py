"""``archid why NODE RELEASE``: one sentence of cause, then the evidence."""

from __future__ import annotations

import click
from rich.text import Text

from archid.cli.options import session_command
from archid.cli.output import indented
from archid.cli.session import Session


@session_command("why")
@click.argument("node")
@click.argument("release")
def command(session: Session, node: str, release: str) -> None:
    """Say why RELEASE stands on NODE as it does."""
    result = session.call("why", {"node": node, "release": release})
    lines = [Text(f"{result['sentence']}.", style="ok" if result["solved"] else "attention")]
    if result["remedy"]:
        lines.append(Text(f"{result['remedy']}."))
    session.screen.result(
        result, *lines, *(indented(Text(line, style="quiet")) for line in result["evidence"])
    )
