"""``archid token``: tokens with which nodes join; central only."""

from __future__ import annotations

from typing import Final

import click
from rich.console import RenderableType
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import pairs, table
from archid.cli.session import Session
from archid.errors import UsageError

STATE_STYLES: Final = {"open": "ok", "used": "quiet", "expired": "attention"}


@click.group("token")
def command() -> None:
    """Make and list tokens with which nodes join the fleet (on central)."""


@session_command("create")
@click.option("--role", type=click.Choice(["repo", "ice"]), required=True, help="What joins.")
@click.option("--name", required=True, help="What the node will be called.")
@click.option("--site", default="", help="The cinema, or where a REPO is.")
@click.option("--room", default="", help="The auditorium of an ICE server.")
@click.option(
    "--kind",
    "server_kind",
    type=click.Choice(["salle", "sas"], case_sensitive=False),
    default=None,
    help="Which of the room's two servers.",
)
@click.option("--lifetime", default=None, metavar="TIME", help="As in 2h or 7d. Default: 7d.")
def create(
    session: Session,
    role: str,
    name: str,
    site: str,
    room: str,
    server_kind: str | None,
    lifetime: str | None,
) -> None:
    """Make a token for one node, to be used once.

    The token alone goes to standard output. Whoever has it can join in that place, so hand it
    over like a password.
    """
    if role == "ice" and not (site and room and server_kind):
        raise UsageError(
            "A token for an ICE server needs --site, --room and --kind",
            remedy="For example: archid token create --role ice --name lyon-3-salle"
            " --site lyon --room 3 --kind salle",
        )
    params = {
        "role": role,
        "name": name,
        "site": site,
        "room": room,
        "server_kind": (server_kind or "").lower(),
        "lifetime_s": _lifetime_s(session, lifetime),
    }
    result = session.call("token.create", params)
    # markup and wrapping would break what is copied and pasted
    screen = session.screen
    if screen.json:
        screen.result(result)
        return
    click.echo(result["token"])
    screen.say(
        pairs(
            ("for", ", ".join(filter(None, (name, role, site, room, server_kind)))),
            ("expires", figures.moment(result["expires_s"])),
            ("central at", ", ".join(result["addresses"])),
            ("use it with", "archid join TOKEN, or archid join --token-file FILE"),
        )
    )


@session_command("list")
def list_tokens(session: Session) -> None:
    """List the tokens that were made, without their secrets."""
    result = session.call("token.list")
    screen: RenderableType = Text("No token was made yet.", style="quiet")
    if result["tokens"]:
        made = table("id", "state", "for", "place", "expires or used")
        for token in result["tokens"]:
            place = "/".join(filter(None, (token["site"], token["room"], token["server_kind"])))
            used = token["state"] == "used"
            made.add_row(
                token["id"] if session.verbose else token["id"][:8],
                Text(token["state"], style=STATE_STYLES[token["state"]]),
                f"{token['name']} ({token['role']})",
                place,
                figures.moment(token["used_s"] if used else token["expires_s"]),
            )
        screen = made
    session.screen.result(result, screen)


def _lifetime_s(session: Session, lifetime: str | None) -> int:
    from archid.config import CentralSettings
    from archid.quantities import parse_duration

    if lifetime is None:
        try:
            settings = session.config().central
        except UsageError:
            settings = CentralSettings()
        return int(settings.token_lifetime.total_seconds())
    try:
        seconds = int(parse_duration(lifetime).total_seconds())
    except ValueError as error:
        raise UsageError(f"--lifetime is wrong: {error}") from error
    if not 0 < seconds <= 366 * 86_400:
        raise UsageError("--lifetime must be more than nothing and at most 366d")
    return seconds


command.add_command(create)
command.add_command(list_tokens)
