"""``archid run``: the daemon, in the foreground."""

from __future__ import annotations

import sys
from types import ModuleType

from archid.cli.options import session_command
from archid.cli.session import Session


@session_command("run")
def command(session: Session) -> None:
    """Run the daemon in the foreground until it is stopped (SIGTERM, Ctrl-C or archid stop).

    Root runs it as the owner of the state folder. SIGHUP reads the configuration again.
    """
    # This process stays, and its memory counts: nothing of the terminal's side is imported here,
    # and structlog, which takes rich along wherever it finds it, is told that there is none.
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    modules.setdefault("rich", None)
    import trio

    from archid.cli.state_owner import make_places, owner_of
    from archid.daemon import run

    config = session.config()
    if (owner := owner_of(config.storage.state)) is not None:
        make_places(owner, (config.storage.scripts,))
        make_places(owner, (config.control.socket.parent,), mode=0o755)
        owner.become()
    trio.run(run, config, session.effective_config_path)
