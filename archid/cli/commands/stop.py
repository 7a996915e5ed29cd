"""``archid stop``: ask the daemon to end."""

from __future__ import annotations

from archid.cli.options import session_command
from archid.cli.session import Session


@session_command("stop")
def command(session: Session) -> None:
    """Stop the daemon; transfers go on where they were when it runs again."""
    result = session.call("stop")
    session.screen.result(result)
    session.screen.say("The daemon is stopping.")
