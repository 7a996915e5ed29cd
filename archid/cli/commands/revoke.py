"""``archid revoke NODE``: put a node out of the fleet."""

from __future__ import annotations

import click
from rich.text import Text

from archid.cli.consent import has_consent
from archid.cli.options import session_command
from archid.cli.session import Session


@session_command("revoke")
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(session: Session, node: str, yes: bool) -> None:
    """Put NODE (its name or id) out of the fleet.

    Its key counts for nothing from the next head on: every node that hears of it ends its
    connections and serves it nothing more. To come back it needs a new token.
    """
    if not has_consent(session, f"Put {node} out of the fleet?", yes=yes):
        return
    result = session.call("revoke", {"node": node, "confirm": True})
    head = result["head"]
    session.screen.result(
        result,
        Text.assemble(
            ("Revoked: ", "ok"),
            (result["name"], "name"),
            f" counts for nothing from head {head['epoch']}/{head['serial']} on.",
        ),
    )
