"""``archid release``: which servers get which scripts, and when; central only."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.text import Text

from archid.cli import figures
from archid.cli.consent import has_consent
from archid.cli.options import session_command
from archid.cli.output import heading, indented, pairs, table
from archid.cli.session import Session
from archid.errors import UsageError

Json = dict[str, Any]

MAX_DEFINITION_BYTES: Final = 512 * 1024
SHOWN_UNCHANGED: Final = 8
MOMENTS: Final = ("prefetch", "start", "end")
CHANGE_MARKS: Final = {
    "added": Text("+ added", style="ok"),
    "removed": Text("- removed", style="alarm"),
    "changed": Text("~ changed", style="attention"),
    "unchanged": Text("  as it is", style="quiet"),
}


@click.group("release")
def command() -> None:
    """Define which servers get which scripts, and when (on central)."""


@session_command("apply")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--yes", is_flag=True, help="Sign without asking.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
def apply(session: Session, file: Path, yes: bool, dry_run: bool) -> None:
    """Make the release that FILE (TOML) describes the one in force.

    Shows what would change for whom, and asks before central signs it. Where nobody can be
    asked (no terminal, or --json), nothing is signed without --yes, and the exit code is 2 if
    there was something to sign. --dry-run only shows the plan.
    """
    if yes and dry_run:
        raise UsageError("--yes and --dry-run contradict each other", remedy="Give one of them")
    params = {
        "definition": _read(file),
        "filename": str(file),
        "sign": False,
        "plan": None,
    }
    screen = session.screen
    plan = session.call("release.apply", params)
    nothing = plan["action"] == "none"
    if not screen.json and not (screen.quiet and yes and not nothing):
        _show_plan(session, plan)
    if not (nothing or dry_run):
        if not yes and session.interactive:
            yes = click.confirm("Sign this release?", default=False, err=True)
            if not yes:
                screen.say("Nothing was signed.")
                return
        if not yes:
            raise UsageError(
                "Nothing was signed, because nobody could be asked",
                remedy="Check the plan with --dry-run, then run it again with --yes",
                code="not_confirmed",
            )
        plan = session.call("release.apply", {**params, "sign": True, "plan": plan["plan"]})
        head = plan["head"] or {}
        signed = Text(
            f"Signed: {plan['name']} generation {plan['generation']} is in head"
            f" {head.get('epoch', '?')}/{head.get('serial', '?')}.",
            style="ok",
        )
        if screen.quiet and not screen.json:  # then it is the result, in one line
            screen.out.print(signed)
        screen.say(signed)
    if screen.json:
        screen.result(plan)


@session_command("list")
def list_releases(session: Session) -> None:
    """List the releases."""
    result = session.call("release.list")
    screen: RenderableType = Text("There is no release yet.", style="quiet")
    if result["releases"]:
        made = table("release", "gen", "state", "start", "end", "servers", "size",
                     right=("gen", "servers", "size"))  # fmt: skip
        for release in result["releases"]:
            made.add_row(
                release["name"],
                str(release["generation"]),
                Text(release["state"], style="ok" if release["state"] == "active" else "quiet"),
                figures.moment(release["start_s"]),
                figures.moment(release["end_s"]),
                str(release["target_count"]),
                figures.size(release["size_bytes"]),
            )
        screen = made
    session.screen.result(result, screen)


@session_command("show")
@click.argument("release")
def show(session: Session, release: str) -> None:
    """Show one RELEASE (its name or id): scripts, dates and servers."""
    result = session.call("release.show", {"release": release})
    servers = table("server", "site", "room", "kind", "state")
    for target in result["targets"]:
        servers.add_row(
            target["name"], target["site"], target["room"], target["server_kind"], target["state"]
        )
    session.screen.result(
        result,
        Text.assemble(
            (result["name"], "name"),
            f"  generation {result['generation']}, {result['state']},"
            f" applied {figures.moment(result['applied_s'])}",
        ),
        indented(_dates(result)),
        heading("Scripts"),
        indented(_scripts(result["scripts"], with_change=False)),
        heading(figures.count(len(result["targets"]), "server").capitalize()),
        indented(servers),
        heading(_rooms_title(result["rooms"])),
        *(
            indented(Text(f"{room['sentence']}.", style="attention"))
            for room in result["rooms"]
            if not room["ready"]
        ),
    )


def _rooms_title(rooms: list[Json]) -> str:
    ready = sum(room["ready"] for room in rooms)
    return f"{ready} of {figures.count(len(rooms), 'room')} ready"


@session_command("withdraw")
@click.argument("release")
@click.option("--yes", is_flag=True, help="Do not ask.")
def withdraw(session: Session, release: str, yes: bool) -> None:
    """Take RELEASE away from every server, at once; the scripts stay on their disks for a while."""
    if not has_consent(session, f"Take {release} away from every server?", yes=yes):
        return
    result = session.call("release.withdraw", {"release": release, "confirm": True})
    session.screen.result(
        result,
        Text.assemble(("Withdrawn: ", "ok"), (result["name"], "name"), " from "),
        indented(Text(", ".join(result["servers"]) or "no server")),
    )


def _read(file: Path) -> str:
    """The text of the definition. Raises UsageError naming the file."""
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(MAX_DEFINITION_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(MAX_DEFINITION_BYTES + 1)
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text", remedy="Save it as UTF-8") from error
    except OSError as error:
        raise UsageError(
            f"The release file {file} cannot be read ({error.strerror})", remedy="Check the path"
        ) from error
    if len(data) > MAX_DEFINITION_BYTES:
        raise UsageError(
            f"{file} is larger than {figures.size(MAX_DEFINITION_BYTES)}; no release is that long",
            remedy="Check that it is the right file",
        )
    return text


def _show_plan(session: Session, plan: Json) -> None:
    out = session.screen.out
    words = {
        "create": f"New release, generation {plan['generation']}",
        "change": f"Changed release, generation {plan['previous_generation']} to"
        f" {plan['generation']}",
        "none": "is in force as it is; nothing changes.",
    }
    out.print(Text.assemble((plan["name"], "name"), f"  {words[plan['action']]}"))
    for warning in plan["warnings"]:
        out.print(Text(f"Attention: {warning}.", style="attention"))
    if plan["action"] == "none":
        return
    out.print(indented(_dates(plan)))
    if plan["action"] == "change" and plan["changes"]:
        changes = table("what", "was", "will be")
        for change in plan["changes"]:
            changes.add_row(change["field"], _shown(change, "before"), _shown(change, "after"))
        out.print(heading("Changes"), indented(changes), sep="\n")
    out.print(heading("Scripts"), indented(_scripts(plan["scripts"], with_change=True)), sep="\n")
    out.print(heading("Servers"), indented(_targets(plan["targets"], session.verbose)), sep="\n")


def _shown(change: Json, when: str) -> str:
    """A field before or after; moments are shown as everywhere else."""
    value: str = change[when] or ""
    if value and change["field"] in MOMENTS:
        return figures.moment(datetime.fromisoformat(value).timestamp())
    return value


def _dates(release: Json) -> RenderableType:
    return pairs(
        ("fetched from", figures.moment(release["prefetch_s"])),
        ("starts", figures.moment(release["start_s"])),
        ("ends", figures.moment(release["end_s"])),
    )


def _scripts(scripts: list[Json], *, with_change: bool) -> RenderableType:
    made = table(*(["change"] if with_change else []), "kind", "script", "version", "size",
                 right=("version", "size"))  # fmt: skip
    for script in scripts:
        made.add_row(
            *([CHANGE_MARKS[script["change"]]] if with_change else []),
            script["kind"],
            script["script"],
            str(script["version"]),
            figures.size(script["size_bytes"]),
        )
    return made


def _targets(targets: list[Json], verbose: bool) -> RenderableType:
    made = table("change", "server", "site", "room", "kind")
    unchanged = 0
    for target in targets:
        if target["change"] == "unchanged" and not verbose:
            unchanged += 1
            if unchanged > SHOWN_UNCHANGED:
                continue
        made.add_row(
            CHANGE_MARKS[target["change"]],
            target["name"],
            target["site"],
            target["room"],
            target["server_kind"],
        )
    if unchanged <= SHOWN_UNCHANGED:
        return made
    rest = figures.count(unchanged - SHOWN_UNCHANGED, "more server")
    return Group(made, Text(f"  {rest} as it is" if rest[:2] == "1 " else f"  {rest} as they are",
                            style="quiet"))  # fmt: skip


for each in (apply, list_releases, show, withdraw):
    command.add_command(each)
