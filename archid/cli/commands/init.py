"""``archid init``: found a fleet; needs no daemon."""

from __future__ import annotations

import socket
import time
from contextlib import nullcontext
from pathlib import Path

import click
from rich.text import Text

from archid.cli.options import session_command, user_option
from archid.cli.output import indented, pairs
from archid.cli.passphrase import new_passphrase
from archid.cli.session import Session, group_id
from archid.cli.state_owner import acting, make_places, owner_of
from archid.errors import UsageError


@session_command("init")
@click.argument("fleet_name")
@click.option(
    "--root-keys",
    "root_key_file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Where to write the root keys, best on a medium that you take away.",
)
@click.option("--name", default=None, help="What central is called. Default: as configured.")
@click.option("--site", default="", help="Where central is.")
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Read the root keys' passphrase from the first line of this file.",
)
@user_option
@click.option("--allow-short-passphrase", is_flag=True, hidden=True)
def command(
    session: Session,
    fleet_name: str,
    root_key_file: Path,
    name: str | None,
    site: str,
    passphrase_file: Path | None,
    user: str,
    allow_short_passphrase: bool,
) -> None:
    """Make the fleet FLEET_NAME; this machine becomes its central.

    The root keys are written, encrypted under a passphrase, to a file of their own. They are
    needed to recover a lost central and to change the fleet's keys, and for nothing else: put
    the file and the passphrase away, in different places.
    """
    config = session.config()
    if config.node.role != "central":
        raise UsageError(
            f"{session.effective_config_path} configures the role {config.node.role!r}; a fleet"
            " is made on its central",
            remedy='Use a configuration with role = "central", or join a fleet: archid join',
        )
    # Only now, as it takes half a second: central brings its database library along.
    from archid.central.ceremony import Founding, initialise
    from archid.store.layout import StatePaths

    session.quiet_log()
    founding = Founding(
        fleet_name=fleet_name,
        node_name=name or config.node.name or socket.gethostname().split(".")[0],
        root_key_file=root_key_file,
        advertise=config.network.advertise,
        site=site,
        database=config.central.database,
        head_lifetime_s=int(config.central.head_lifetime.total_seconds()),
    )
    paths = StatePaths(state=config.storage.state, scripts=config.storage.scripts)
    founding.check(paths)
    passphrase = new_passphrase(passphrase_file)
    player_gid = group_id(config.player.group)
    owner = owner_of(paths.state, user)
    make_places(owner, (paths.state, paths.scripts))
    with acting(owner):
        founded = initialise(
            founding,
            paths=paths,
            passphrase=passphrase,
            now=time.time(),
            allow_short_passphrase=allow_short_passphrase,
            player_gid=player_gid,
            as_caller=nullcontext if owner is None else owner.resting,
        )
    result = {
        "fleet": founded.fleet.hex(),
        "fleet_name": fleet_name,
        "node": founded.identity.node_id.hex(),
        "name": founding.node_name,
        "root_fingerprint": founded.root.fingerprint.hex(),
        "root_key_file": str(root_key_file.absolute()),
        "state": str(paths.state),
    }
    screen = session.screen
    screen.result(
        result,
        Text.assemble(("Made the fleet ", "ok"), (fleet_name, "name"), "."),
        indented(
            pairs(
                ("central", f"{founding.node_name}, state in {paths.state}"),
                ("root keys", str(root_key_file.absolute())),
                ("fingerprint", result["root_fingerprint"]),
            )
        ),
    )
    screen.say(
        Text("Put the root keys and their passphrase away now, in different places.",
             style="attention"),
        "Next: archid run, then archid token create for each node.",
    )  # fmt: skip
