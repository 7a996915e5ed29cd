"""``archid backup FILE``: all that a lost central needs, in one file; works beside the daemon."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import click
from rich.text import Text

from archid import __version__
from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import indented, pairs
from archid.cli.passphrase import new_passphrase
from archid.cli.session import Session
from archid.cli.state_owner import acting, owner_of
from archid.errors import UsageError


@session_command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--encrypt", is_flag=True, help="Encrypt it under a passphrase, which is asked for.")
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Encrypt it under the first line of this file.",
)
@click.option("--replace", is_flag=True, help="Write over FILE if it is there.")
def command(
    session: Session, file: Path, encrypt: bool, passphrase_file: Path | None, replace: bool
) -> None:
    """Write central's database, identity and online keys to FILE, whole or not at all.

    The daemon may run meanwhile. The scripts are not in it: central gets them back from the REPOs.
    Whoever can read an unencrypted backup can sign as this central. The root keys are never in it.
    """
    config = session.config()
    require_central(config.node.role, "backed up")
    # Only now, as it takes half a second: central brings its database library along.
    from archid.central.backup import take_backup
    from archid.store.layout import StatePaths

    session.quiet_log()
    target = file.absolute()
    passphrase = ""
    if encrypt or passphrase_file is not None:
        passphrase = new_passphrase(passphrase_file, "the backup")
        if not passphrase:
            raise UsageError("The passphrase for the backup is empty", code="passphrase")
    paths = StatePaths(state=config.storage.state, scripts=config.storage.scripts)
    owner = owner_of(paths.state)
    with acting(owner):
        taken = take_backup(
            paths,
            target,
            database=config.central.database,
            now=time.time(),
            software=__version__,
            passphrase=passphrase,
            replace=replace,
            as_caller=nullcontext if owner is None else owner.resting,
        )
    label = taken.label
    result = {
        "file": str(taken.file),
        "size_bytes": taken.size_bytes,
        "sealed": taken.sealed,
        "fleet_name": label.fleet_name,
        "node": label.node.hex(),
        "name": label.node_name,
        "made_s": label.made_s,
        "head": {"epoch": label.epoch, "serial": label.serial},
        "root_version": label.root_version,
    }
    screen = session.screen
    screen.result(
        result,
        Text.assemble(("Backed up the central of ", "ok"), (label.fleet_name, "name"), "."),
        indented(
            pairs(
                ("file", f"{taken.file}, {figures.size(taken.size_bytes)}"),
                ("up to", f"head {label.epoch}/{label.serial}, Root {label.root_version}"),
            )
        ),
    )
    if taken.sealed:
        screen.say("It is encrypted: keep the passphrase elsewhere.")
    else:
        screen.say(
            Text(
                "It is not encrypted and holds the keys with which central signs: keep it as safe"
                " as central itself.",
                style="attention",
            )
        )


def require_central(role: str, what: str) -> None:
    """Raise UsageError on a node that is not a central."""
    if role != "central":
        raise UsageError(
            f"This node's role is {role}, and only a central is {what}",
            remedy="A REPO or a server that lost its state joins again with a new token",
        )
