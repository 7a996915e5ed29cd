"""``archid restore FILE``: make a central again from a backup; needs an empty state folder."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.text import Text

from archid.cli import figures
from archid.cli.commands.backup import require_central
from archid.cli.options import session_command, user_option
from archid.cli.output import indented, pairs
from archid.cli.passphrase import known_passphrase
from archid.cli.session import Session, group_id
from archid.cli.state_owner import acting, make_places, owner_of
from archid.errors import UsageError


@session_command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Read the passphrase of an encrypted backup from the first line of this file.",
)
@user_option
def command(session: Session, file: Path, passphrase_file: Path | None, user: str) -> None:
    """Make this machine the central that FILE is a backup of.

    The state folder must be empty. Central then signs nothing before the REPOs have shown what
    is newer than the backup; that, and the scripts, it takes from them. If the old central still
    exists, make sure that it never runs again: there must not be two.
    """
    config = session.config()
    require_central(config.node.role, "restored")
    # Only now, as it takes half a second: central brings its database library along.
    from archid.central.backup import sqlite_path
    from archid.central.backup_file import BackupReader
    from archid.central.restoring import check_empty, restore
    from archid.store.layout import StatePaths

    session.quiet_log()
    paths = StatePaths(state=config.storage.state, scripts=config.storage.scripts)
    player_gid = group_id(config.player.group)
    owner = owner_of(paths.state, user)
    try:
        opened = file.open("rb")
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})") from error
    with opened:
        backup = BackupReader(opened, str(file))
        check_empty(paths, sqlite_path(config.central.database, paths.state))
        passphrase = known_passphrase(passphrase_file, "the backup") if backup.is_sealed else ""
        make_places(owner, (paths.state, paths.scripts))
        with acting(owner):
            label = restore(
                backup,
                paths,
                database=config.central.database,
                now=time.time(),
                passphrase=passphrase,
                player_gid=player_gid,
            )
    result = {
        "fleet_name": label.fleet_name,
        "node": label.node.hex(),
        "name": label.node_name,
        "made_s": label.made_s,
        "head": {"epoch": label.epoch, "serial": label.serial},
        "root_version": label.root_version,
        "state": str(paths.state),
    }
    screen = session.screen
    screen.result(
        result,
        Text.assemble(("Restored the central of ", "ok"), (label.fleet_name, "name"), "."),
        indented(
            pairs(
                ("central", f"{label.node_name}, state in {paths.state}"),
                ("backup of", figures.moment(label.made_s)),
                ("up to", f"head {label.epoch}/{label.serial}, Root {label.root_version}"),
            )
        ),
    )
    screen.say(
        Text("Make sure that the old central never runs again.", style="attention"),
        "Next: archid run; central takes from the REPOs what is newer, and the scripts.",
    )
