"""``archid rollback RELEASE``: back to what was there before."""

from __future__ import annotations

import click
from rich.text import Text

from archid.cli.options import session_command
from archid.cli.output import indented
from archid.cli.session import Session


@session_command("rollback")
@click.argument("release")
@click.option("--reason", default="", help="Why, for those who look at it later.")
def command(session: Session, release: str, reason: str) -> None:
    """Switch RELEASE (its name or id) back to what it was switched away from last.

    That holds, restarts included, until central grants a newer generation of the release or
    `archid activate` ends it. Only this server is concerned.
    """
    result = session.call("rollback", {"release": release, "reason": reason})
    scripts = [
        f"{one['kind']} {one['script'] or one['manifest'][:12]}"
        + (f" v{one['version']}" if one["version"] is not None else "")
        for one in result["scripts"]
    ]
    session.screen.result(
        result,
        Text.assemble(
            ("Rolled back: ", "ok"),
            (result["name"], "name"),
            f" generation {result['held_generation']} no longer plays here; now it is",
        ),
        indented(Text(", ".join(scripts))),
    )
