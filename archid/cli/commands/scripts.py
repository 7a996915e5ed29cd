"""``archid scripts``: the script versions that this node holds or should hold."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
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
    is granted and those that it keeps, such as the version before.
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
            screen = Group(screen, "", _ids(result["scripts"]))
    session.screen.result(result, screen)


def _ids(scripts: list[dict[str, Any]]) -> RenderableType:
    """The manifest of each version, whole: it is what `archid verify --manifest` takes."""
    made = Table.grid(padding=(0, 2))
    for script in scripts:
        name = f"{script['name']} v{script['version']}"
        made.add_row(Text(name), Text(script["manifest"], style="quiet", no_wrap=True))
    return made
