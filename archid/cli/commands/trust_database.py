"""``archid trust-database``: a person decides that central's own database counts."""

from __future__ import annotations

import click
from rich.text import Text

from archid.cli.consent import has_consent
from archid.cli.options import session_command
from archid.cli.session import Session


@session_command("trust-database")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(session: Session, yes: bool) -> None:
    """Let central sign again although it could not ask its REPOs, or they know more than it does.

    For when the REPOs are lost, or central's database is known to be the right one. What the fleet
    was told after this database was saved is told differently from then on.
    """
    if not has_consent(session, "Let this database count for the whole fleet?", yes=yes):
        return
    result = session.call("trust_database", {})
    head = result["head"]
    session.screen.result(
        result,
        Text(f"Central signs again, from head {head['epoch']}/{head['serial']} on.", style="ok"),
    )
