"""``archid activate RELEASE``: switch to what is granted, now."""

from __future__ import annotations

import click
from rich.text import Text

from archid.cli.consent import has_consent
from archid.cli.options import session_command
from archid.cli.session import Session
from archid.errors import Conflict


@session_command("activate")
@click.argument("release")
@click.option("--yes", is_flag=True, help="Switch even before the start date, without asking.")
def command(session: Session, release: str, yes: bool) -> None:
    """Switch RELEASE (its name or id) to what is granted, at once, and end a rollback.

    Everything of it must be here. Before its start date it asks, since what plays now is
    replaced; where nobody can be asked, --yes says it.
    """
    try:
        result = session.call("activate", {"release": release, "early": yes})
    except Conflict as error:
        if error.code != "before_start":
            raise
        session.screen.say(Text(f"{error.message}.", style="attention"))
        if not has_consent(session, f"Switch {release} now?", yes=False):
            return
        result = session.call("activate", {"release": release, "early": True})
    how = "plays from now on" if result["changed"] else "plays already; nothing was changed"
    session.screen.result(
        result,
        Text.assemble(
            ("Active: ", "ok"),
            (result["name"], "name"),
            f" generation {result['generation']} {how}.",
        ),
    )
