"""Asking before something that cannot be taken back."""

from __future__ import annotations

import click

from archid.cli.session import Session
from archid.errors import UsageError


def has_consent(session: Session, question: str, *, yes: bool) -> bool:
    """Whether a person agrees; `yes` says so beforehand. Says so itself when the answer is no.

    Raises UsageError (not_confirmed) when nobody can be asked.
    """
    if yes:
        return True
    if not session.interactive:
        raise UsageError(
            "Nothing was changed, because nobody could be asked",
            remedy="Run it again with --yes",
            code="not_confirmed",
        )
    if click.confirm(question, default=False, err=True):
        return True
    session.screen.say("Nothing was changed.")
    return False
