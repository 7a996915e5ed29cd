"""``archid config``: is the configuration right, and what does it come to; needs no daemon."""

from __future__ import annotations

import click
from rich.text import Text

from archid.cli.options import session_command
from archid.cli.output import table
from archid.cli.session import Session


@click.group("config")
def command() -> None:
    """Check or show the configuration."""


@session_command("check")
def check(session: Session) -> None:
    """Check the configuration file; exit code 2 and the line if something is wrong in it."""
    from archid.config import warnings

    config = session.config()
    path = session.effective_config_path
    found = warnings(config)
    result = {"path": str(path), "ok": True, "role": config.node.role, "warnings": found}
    session.screen.result(
        result,
        Text(f"{path} is a correct configuration of the role {config.node.role}."),
        *(Text(f"Note: {sentence}.", style="attention") for sentence in found),
    )


@session_command("show")
def show(session: Session) -> None:
    """Show the configuration in effect, defaults included; passwords are left out."""
    from archid.config_view import effective_keys

    keys = effective_keys(session.config())
    made = table("section", "key", "value", "from")
    for each in keys:
        value = each.value
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        made.add_row(
            f"[{each.section}]" if each.section else "",
            each.key,
            Text(shown or "(none)", style="" if shown else "quiet"),
            Text(each.origin, style="quiet" if each.origin == "default" else ""),
        )
    session.screen.result(
        {
            "path": str(session.effective_config_path),
            "keys": [each.to_json() for each in keys],
        },
        made,
    )


command.add_command(check)
command.add_command(show)
