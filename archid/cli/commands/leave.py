"""``archid leave``: make this node forget its fleet, through the daemon or without one."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from archid.cli.options import session_command
from archid.cli.output import indented, pairs
from archid.cli.session import Session
from archid.errors import UsageError


@session_command("leave")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--purge", is_flag=True, help="Remove the scripts, too.")
def command(session: Session, yes: bool, purge: bool) -> None:
    """Make this node forget its fleet: its key, its certificate and what it believes.

    The scripts stay for the player unless --purge is given. To come back, the node needs a new
    token. Central still lists it until somebody there revokes it.
    """
    if not yes:
        if not session.interactive:
            raise UsageError(
                "Nothing was removed, because nobody could be asked",
                remedy="Run it again with --yes",
                code="not_confirmed",
            )
        what = "This node's key and all its scripts" if purge else "This node's key"
        if not click.confirm(f"{what} will be removed. Leave the fleet?", err=True):
            session.screen.say("Nothing was removed.")
            return
    result = _leave(session, purge=purge)
    session.screen.result(
        result,
        Text.assemble(("Left the fleet ", "ok"), (result["fleet_name"], "name"), "."),
        indented(pairs(*[("removed", path) for path in result["removed"]])),
    )
    session.screen.say("On central, revoke the node, so that its key counts for nothing.")


def _leave(session: Session, *, purge: bool) -> dict[str, Any]:
    from archid.errors import Unavailable

    try:
        return session.call("leave", {"purge": purge})
    except Unavailable as error:
        if error.code != "daemon_absent":
            raise
    return _leave_offline(session, purge=purge)


def _leave_offline(session: Session, *, purge: bool) -> dict[str, Any]:
    """No daemon runs: do what it would have done, while holding the state so that none starts."""
    from archid.cli.state_owner import owner_of
    from archid.identity import Identity
    from archid.membership import Membership
    from archid.store.layout import StateLock, StatePaths
    from archid.store.leaving import forget_membership

    session.quiet_log()
    config = session.config()
    if config.node.role == "central":
        raise UsageError(
            "A central cannot leave its own fleet",
            remedy="To give the fleet up, stop the daemon and remove the state folder by hand",
        )
    paths = StatePaths(state=config.storage.state, scripts=config.storage.scripts)
    if (owner := owner_of(paths.state)) is not None:
        owner.become()
    membership = Membership.load(paths.identity)
    node_id = Identity.load(paths.state).node_id
    with StateLock(paths.lock):
        removed = forget_membership(paths, purge=purge)
    return {
        "node": node_id.hex(),
        "fleet": membership.fleet.hex(),
        "fleet_name": membership.fleet_name,
        "removed": [str(path) for path in removed],
    }
