"""``archid unpin NAME``: take a pin away."""

from __future__ import annotations

import click
from rich.text import Text

from archid.cli.commands.pin import pinned
from archid.cli.options import session_command
from archid.cli.session import Session


@session_command("unpin")
@click.argument("name", metavar="NAME|ID")
def command(session: Session, name: str) -> None:
    """Take away the pins of NAME: what it was pinned as, a script's name, or a version's id."""
    result = session.call("unpin", {"name": name})
    session.screen.result(result, Text("Not pinned any more:", style="ok"), pinned(result["pins"]))
