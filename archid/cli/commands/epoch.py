"""``archid epoch new``: everything that was signed so far counts for nothing; central only."""

from __future__ import annotations

from pathlib import Path

import click

from archid.cli.commands.root import ONLINE
from archid.cli.options import session_command
from archid.cli.root_signing import RootOptions, make_root, roles_of, root_options
from archid.cli.session import Session


@click.group("epoch")
def command() -> None:
    """Begin a new epoch, with the root keys (on central)."""


@session_command("new")
@root_options
@click.option(
    "--keys",
    "names",
    default=None,
    metavar="NAMES",
    help="Which online keys get new ones, with commas between. Default: all but the CA's.",
)
@click.option("--ca", is_flag=True, help="Make a new CA, too.")
@click.option("--at-once", is_flag=True, help="Although central still asks for what is newer.")
def new(
    session: Session,
    key_files: tuple[Path, ...],
    passphrase_file: Path | None,
    new_key_file: Path | None,
    new_passphrase_file: Path | None,
    yes: bool,
    names: str | None,
    ca: bool,
    at_once: bool,
) -> None:
    """Begin a new epoch, with new keys: this central's database is what counts from now on.

    For when a key was stolen, when two centrals signed, or when the serials have run out. Every
    head of an older epoch, whatever its number, then counts for nothing, and everything is signed
    anew. Scripts and releases stay where they are.
    """
    make_root(
        session,
        RootOptions(key_files, passphrase_file, new_key_file, new_passphrase_file, yes),
        {
            "roles": roles_of(names, default=ONLINE),
            "ca": ca,
            "drop_old_cas": False,
            "epoch": True,
            "at_once": at_once,
        },
        question="Begin a new epoch for the whole fleet?",
        outcome="A new epoch has begun.",
    )


command.add_command(new)
