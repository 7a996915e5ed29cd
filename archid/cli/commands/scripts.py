"""``archid scripts``: the script versions that this node holds or should hold."""

from __future__ import annotations

from typing import Final

from rich.console import RenderableType
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import table
from archid.cli.session import Session

STATE_STYLES: Final = {"held": "ok", "fetching": "attention", "missing": "quiet"}


@session_command("scripts")
def command(session: Session) -> None:
    """List the script versions that this node holds or should hold.

    On central and on a REPO these are all that were published, on an ICE server those that it
    is granted.
    """
    result = session.call("scripts")
    screen: RenderableType
    if not result["scripts"]:
        screen = Text("There are no scripts here yet.", style="quiet")
    else:
        screen = table("script", "kind", "version", "files", "size", "state", "releases",
                       right=("version", "files", "size"))  # fmt: skip
        for script in result["scripts"]:
            state = script["state"]
            words = state
            if state == "fetching":
                words = figures.share(script["held_bytes"], script["size_bytes"])
            screen.add_row(
                script["name"],
                script["kind"],
                str(script["version"]),
                f"{script['files']:,}",
                figures.size(script["size_bytes"]),
                Text(words, style=STATE_STYLES.get(state, "alarm")),
                ", ".join(script["releases"]),
            )
            if session.verbose:
                screen.add_row(Text(script["manifest"], style="quiet"))
    session.screen.result(result, screen)
