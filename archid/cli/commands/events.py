"""``archid events``: what happens in the daemon, one JSON object a line."""

from __future__ import annotations

import click

from archid.cli.options import session_command
from archid.cli.output import write_json
from archid.cli.session import Session


@session_command("events", hidden=True)
@click.argument("prefixes", nargs=-1)
def command(session: Session, prefixes: tuple[str, ...]) -> None:
    """Print events whose names start with one of PREFIXES (default: all), until interrupted."""
    for event in session.client().stream("events.subscribe", {"prefixes": list(prefixes)}):
        write_json(event, one_line=True)
