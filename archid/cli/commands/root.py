"""``archid root rotate``: replace keys of the fleet; central only, with the root keys."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from archid.cli.options import session_command
from archid.cli.root_signing import RootOptions, make_root, roles_of, root_options
from archid.cli.session import Session

ONLINE: Final = ("grants", "head", "instructions", "publish", "seal", "sync", "tickets")


@click.group("root")
def command() -> None:
    """Replace keys of the fleet, with the root keys (on central)."""


@session_command("rotate")
@root_options
@click.option(
    "--keys",
    "names",
    default=None,
    metavar="NAMES",
    help="Which online keys, with commas between. Default: all but the CA's.",
)
@click.option("--ca", is_flag=True, help="Make a new CA; the old one still counts beside it.")
@click.option("--drop-old-ca", is_flag=True, help="Let only the newest CA count from now on.")
def rotate(
    session: Session,
    key_files: tuple[Path, ...],
    passphrase_file: Path | None,
    new_key_file: Path | None,
    new_passphrase_file: Path | None,
    yes: bool,
    names: str | None,
    ca: bool,
    drop_old_ca: bool,
) -> None:
    """Make the next version of Root, with new keys, and put it into force.

    Nodes follow by themselves: the old root keys sign the new Root, and so do the new ones. With
    --ca, --drop-old-ca or --new-root-keys alone the online keys stay. What was signed with the old
    keys in this epoch goes on to count; if one was stolen, begin a new epoch: archid epoch new.
    """
    other = ca or drop_old_ca or new_key_file is not None
    make_root(
        session,
        RootOptions(key_files, passphrase_file, new_key_file, new_passphrase_file, yes),
        {
            "roles": roles_of(names, default=() if other else ONLINE),
            "ca": ca,
            "drop_old_cas": drop_old_ca,
            "epoch": False,
            "at_once": False,
        },
        question="Replace keys of the whole fleet?",
        outcome="The new Root is in force.",
    )


command.add_command(rotate)
