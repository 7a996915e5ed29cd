"""``archid join``: become a member of a fleet, with a token from central; needs no daemon."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Final

import click
from rich.text import Text

from archid.cli.options import session_command, user_option
from archid.cli.output import indented, pairs
from archid.cli.session import Session, group_id
from archid.cli.state_owner import make_places, owner_of
from archid.errors import UsageError

MAX_TOKEN_CHARACTERS: Final = 16_384


@session_command("join")
@click.argument("token", required=False)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, allow_dash=True),
    default=None,
    help="Read the token from this file, or from standard input (-).",
)
@user_option
def command(session: Session, token: str | None, token_file: Path | None, user: str) -> None:
    """Join the fleet that TOKEN came from.

    What a command line holds can be seen by every user of the machine while it runs, so with
    other users about use --token-file, or - for standard input.
    """
    if (token is None) == (token_file is None):
        raise UsageError(
            "Either a token or --token-file has to be given",
            remedy="On central, archid token create makes one",
        )
    text = _read(token_file or Path("-")) if token in {None, "-"} else str(token)
    config = session.config()
    if config.node.role == "central":
        raise UsageError(
            f"{session.effective_config_path} configures a central, which joins nobody",
            remedy="archid init makes its fleet",
        )
    import trio

    from archid.net.joining import join_fleet
    from archid.store.layout import StatePaths

    paths = StatePaths(state=config.storage.state, scripts=config.storage.scripts)
    screen = session.screen
    session.quiet_log()
    player_gid = group_id(config.player.group)
    owner = owner_of(paths.state, user)
    make_places(owner, (paths.state, paths.scripts))
    if owner is not None:
        owner.become()
    joined = trio.run(
        partial(
            join_fleet,
            text,
            paths=paths,
            role=config.node.role,
            player_gid=player_gid,
            name=config.node.name,
        )
    )
    facts = joined.facts
    result = {
        "node": joined.node.hex(),
        "name": facts.name,
        "role": facts.role,
        "site": facts.site,
        "room": facts.room,
        "server_kind": facts.server_kind,
        "fleet": joined.fleet.hex(),
        "fleet_name": joined.fleet_name,
        "state": str(paths.state),
    }
    place = ", ".join(
        filter(None, (facts.site, f"room {facts.room}" if facts.room else "", facts.server_kind))
    )
    screen.result(
        result,
        Text.assemble(("Joined the fleet ", "ok"), (joined.fleet_name, "name"), "."),
        indented(
            pairs(
                ("as", f"{facts.name} ({facts.role}{', ' + place if place else ''})"),
                ("state in", str(paths.state)),
            )
        ),
    )
    screen.say("Next: archid run.")


def _read(file: Path) -> str:
    """The token in `file`. Raises UsageError naming the file."""
    try:
        if str(file) == "-":
            text = sys.stdin.read(MAX_TOKEN_CHARACTERS)
        else:
            with file.open(encoding="utf-8") as stream:
                text = stream.read(MAX_TOKEN_CHARACTERS)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} does not hold a token") from error
    except OSError as error:
        raise UsageError(f"The token file {file} cannot be read ({error.strerror})") from error
    if not text.strip():
        where = "Standard input" if str(file) == "-" else str(file)
        raise UsageError(f"{where} holds no token")
    return text.strip()
