"""Signing the next Root with keys that the daemon never sees; for ``root rotate``, ``epoch new``.

The daemon says how the next Root reads, a person looks at it, and this command signs it with the
root keys from their file. The keys and the passphrase stay in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from archid.cli.consent import has_consent
from archid.cli.output import indented, pairs
from archid.cli.passphrase import known_passphrase, new_passphrase
from archid.cli.session import Session
from archid.errors import Conflict, TrustFailure, UsageError
from protocol.envelope import PublicKey
from protocol.errors import ProtocolError
from protocol.root import Root


@dataclass(frozen=True)
class RootOptions:
    """What both commands take."""

    key_files: tuple[Path, ...]
    passphrase_file: Path | None
    new_key_file: Path | None
    new_passphrase_file: Path | None
    yes: bool


def root_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where the root keys are, and where new ones go."""
    file = click.Path(path_type=Path, dir_okay=False)
    for decorate in reversed(
        (
            click.option(
                "--root-keys",
                "key_files",
                type=file,
                required=True,
                multiple=True,
                metavar="FILE",
                help="The root keys' file that archid init wrote; repeat it for several.",
            ),
            click.option(
                "--passphrase-file",
                type=file,
                default=None,
                help="Read their passphrase from the first line of this file.",
            ),
            click.option(
                "--new-root-keys",
                "new_key_file",
                type=file,
                default=None,
                metavar="FILE",
                help="Replace the root keys, too, and write the new ones to FILE.",
            ),
            click.option(
                "--new-passphrase-file",
                type=file,
                default=None,
                help="Read the new root keys' passphrase from the first line of this file.",
            ),
            click.option("--yes", is_flag=True, help="Do not ask."),
        )
    ):
        command = decorate(command)
    return command


def make_root(
    session: Session,
    options: RootOptions,
    change: dict[str, Any],
    *,
    question: str,
    outcome: str,
) -> None:
    """Have the next Root made, sign it, put it into force, and say so."""
    # Only now, as it takes a moment: the command's help needs none of it.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from archid.central.root_keys import (
        check_passphrase,
        load_root_keys,
        public_key,
        sign_root,
        write_root_keys,
    )

    keys: list[Ed25519PrivateKey] = []
    for file in options.key_files:
        passphrase = known_passphrase(options.passphrase_file, f"the root keys in {file}")
        keys += load_root_keys(file, passphrase)
    new_keys: Sequence[Ed25519PrivateKey] = ()
    if options.new_key_file is not None:
        if options.new_key_file.exists():
            raise Conflict(f"{options.new_key_file} exists already and is not overwritten")
        new_keys = [Ed25519PrivateKey.generate() for _ in keys]
        new_secret = new_passphrase(options.new_passphrase_file, "the new root keys")
        check_passphrase(new_secret)
    if not has_consent(session, question, yes=options.yes):
        return
    prepared = session.call(
        "root.prepare", {**change, "root_keys": [public_key(key).hex() for key in new_keys]}
    )
    root = _checked(prepared, {public_key(key) for key in new_keys or keys})
    if new_keys and options.new_key_file is not None:
        # Before anything depends on them; in vain if the rest fails, which does no harm.
        write_root_keys(options.new_key_file, new_keys, new_secret, fleet_name=root.fleet_name)
    envelope = sign_root(root, [*keys, *new_keys])
    result = session.call("root.install", {"envelope": envelope.hex()})
    head = result["head"]
    rows = [
        ("Root", f"version {result['version']}, epoch {result['epoch']}"),
        ("new keys", ", ".join(result["replaced"]) or "none"),
        ("head", f"{head['epoch']}/{head['serial']}"),
    ]
    if options.new_key_file is not None:
        rows.append(("root keys", str(options.new_key_file.absolute())))
    session.screen.result(result, Text(outcome, style="ok"), indented(pairs(*rows)))
    advice: list[Text | str] = [
        Text(
            "Back central up now: archid backup. An older backup has the old keys.",
            style="attention",
        )
    ]
    if new_keys:
        advice.append("Put the new root keys and their passphrase away, and destroy the old file.")
    if change["ca"]:
        advice.append(
            "Nodes take a certificate by the new CA from central as they reach it; then drop the"
            " old one: archid root rotate --drop-old-ca."
        )
    session.screen.say(*advice)


def _checked(prepared: dict[str, Any], root_keys: set[PublicKey]) -> Root:
    """The Root to sign, once it is what was asked for: nothing else gets a signature."""
    try:
        root = Root.decode(bytes.fromhex(prepared["root"]))
        _, root_role = root.keys_of("root")
    except (ProtocolError, ValueError) as error:
        raise TrustFailure(f"The daemon's next Root cannot be read: {error}") from error
    if not root_keys <= set(root_role.values()):
        raise TrustFailure(
            "The next Root does not name these root keys",
            remedy="Use the file of this fleet's root keys, the one that was written last",
        )
    if (root.version, root.epoch) != (prepared["version"], prepared["epoch"]):
        raise TrustFailure("The daemon's next Root is not the one that it describes")
    return root


def roles_of(text: str | None, *, default: Sequence[str]) -> list[str]:
    """The keys that were named, with commas between them; raises UsageError for none."""
    if text is None:
        return list(default)
    roles = [part.strip() for part in text.split(",") if part.strip()]
    if not roles:
        raise UsageError("--keys names no key")
    return roles
