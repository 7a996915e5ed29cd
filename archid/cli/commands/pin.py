"""``archid pin NAME``: keep a version on this node."""

from __future__ import annotations

from typing import Any

import click
from rich.console import RenderableType
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import table
from archid.cli.session import Session
from archid.errors import UsageError


@session_command("pin")
@click.argument("name", required=False, metavar="[RELEASE|SCRIPT|ID]")
@click.option("--list", "listed", is_flag=True, help="Show what is pinned.")
def command(session: Session, name: str | None, listed: bool) -> None:
    """Keep what RELEASE plays now, SCRIPT's latest version here, or the version ID.

    What is pinned stays on this node until `archid unpin`, even if it is withdrawn.
    """
    if listed == (name is not None):
        raise UsageError("Give either a name or --list", remedy="See archid pin --help")
    if name is None:
        result = session.call("pins")
        session.screen.result(result, pinned(result["pins"]))
        return
    result = session.call("pin", {"name": name})
    session.screen.result(result, Text("Pinned:", style="ok"), pinned(result["pins"]))


def pinned(pins: list[dict[str, Any]]) -> RenderableType:
    """A table of pins."""
    if not pins:
        return Text("Nothing is pinned.", style="quiet")
    made = table("script", "version", "size", "pinned as", "by", "since", right=("size",))
    for pin in pins:
        made.add_row(
            pin["script"] or pin["manifest"][:12],
            "" if pin["version"] is None else f"v{pin['version']}",
            figures.size(pin["size_bytes"] or 0) if pin["held"] else "not here",
            pin["name"],
            pin["by"],
            figures.moment(pin["at_s"]),
        )
    return made
