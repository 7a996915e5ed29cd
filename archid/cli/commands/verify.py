"""``archid verify``: the daemon compares what it holds with what was published."""

from __future__ import annotations

from typing import Any

import click
from rich.console import RenderableType
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import indented, level
from archid.cli.session import Session
from archid.errors import StorageError, UsageError


@session_command("verify")
@click.argument("script", required=False)
@click.option("--manifest", metavar="ID", help="Only the version with this manifest id.")
def command(session: Session, script: str | None, manifest: str | None) -> int:
    """Read held files again and compare them with what was published.

    Everything, or one SCRIPT (every version of it here). Exit code 7 if anything is damaged.
    """
    if script and manifest:
        raise UsageError("A script and a manifest id cannot both be given", remedy="Give one")
    screen = session.screen
    with screen.progress() as progress:
        task = progress.add_task("Verifying", total=None)

        def show(event: dict[str, Any]) -> None:
            if event.get("event") == "verify.progress":
                progress.update(
                    task,
                    description=f"Verifying {event['name']}",
                    completed=event["checked_bytes"],
                    total=event["total_bytes"],
                )

        result = session.client().call(
            "verify", {"script": script, "manifest": manifest}, on_event=show, silence_s=None
        )
    screen.result(result, *_screens(result))
    return 0 if result["ok"] else StorageError.exit_code


def _screens(result: dict[str, Any]) -> list[RenderableType]:
    trees = result["trees"]
    if not trees:
        return [Text("Nothing is held here, so there was nothing to verify.", style="quiet")]
    lines: list[RenderableType] = []
    for tree in trees:
        words = "whole" if tree["ok"] else figures.count(len(tree["damage"]), "damaged file")
        lines.append(
            Text.assemble(
                (words, "ok" if tree["ok"] else "alarm"),
                "  ",
                (tree["name"], "name"),
                f" v{tree['version']} ({tree['kind']}), {figures.size(tree['checked_bytes'])}",
            )
        )
        lines += [indented(Text(damage["sentence"])) for damage in tree["damage"]]
    if result["ok"]:
        checked = figures.size(sum(tree["checked_bytes"] for tree in trees))
        words = (
            f"All of it is what was published: {figures.count(len(trees), 'version')}, {checked}."
        )
    else:
        bad = sum(not tree["ok"] for tree in trees)
        whole = figures.count(len(trees), "version")
        words = f"Damaged: {bad} of {whole}. archid status says how the repair goes."
    return [*lines, level(words, "ok" if result["ok"] else "alarm")]
