"""Passphrases: typed twice on the terminal, or the first line of a file that others cannot read."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

import click

from archid.errors import Denied, UsageError

MAX_PASSPHRASE_BYTES: Final = 4096


def new_passphrase(file: Path | None, what: str = "the root keys") -> str:
    """A passphrase to encrypt `what` with. Raises UsageError, or Denied for an open file."""
    return _passphrase(file, what, again="Once more")


def known_passphrase(file: Path | None, what: str = "the root keys") -> str:
    """The passphrase that opens `what`, asked for once. Raises as `new_passphrase`."""
    return _passphrase(file, what, again=False)


def _passphrase(file: Path | None, what: str, *, again: str | bool) -> str:
    if file is not None:
        return _first_line(file)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"A passphrase for {what} is needed, and there is no terminal to ask on",
            remedy="Give --passphrase-file FILE",
            code="passphrase",
        )
    passphrase: str = click.prompt(
        f"Passphrase for {what}", hide_input=True, confirmation_prompt=again, err=True
    )
    return passphrase


def _first_line(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            info = os.fstat(stream.fileno())
            data = stream.read(MAX_PASSPHRASE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"The passphrase file {file} cannot be read ({error.strerror})", code="passphrase"
        ) from error
    if stat.S_ISREG(info.st_mode) and info.st_mode & 0o077:
        raise Denied(
            f"Other users may read the passphrase file {file}", remedy=f"Run chmod 600 {file}"
        )
    try:
        line = data.decode("utf-8").split("\n", 1)[0].rstrip("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"The passphrase file {file} is not UTF-8 text") from error
    if len(data) > MAX_PASSPHRASE_BYTES:
        raise UsageError(f"The passphrase file {file} is longer than {MAX_PASSPHRASE_BYTES} bytes")
    return line
