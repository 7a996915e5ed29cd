"""``archid run``: the daemon, in the foreground."""

from __future__ import annotations

from archid.cli.options import session_command
from archid.cli.session import Session


@session_command("run")
def command(session: Session) -> None:
    """Run the daemon in the foreground until it is stopped (SIGTERM, Ctrl-C or archid stop)."""
    # Nothing of the terminal's side is imported here: this process stays, and its memory counts.
    import trio

    from archid.daemon import run

    trio.run(run, session.config())
