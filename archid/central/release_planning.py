"""Working out what a release definition would change, before anything is signed.

Pure: a definition, the estate and the release as it stands go in, a `ReleasePlan` or everything
that is wrong with the definition comes out. Reading and writing the database is in
`archid.central.releases`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from archid.central.release_definition import REMEDY, ReleaseDefinition, ScriptChoice
from archid.central.release_plan import (
    CurrentRelease,
    Estate,
    FieldChange,
    ReleasePlan,
    ReleaseScript,
    Server,
)
from archid.errors import UsageError
from protocol.ids import NodeId

LARGE_LOSS_DIVISOR: Final = 5
_MAX_NAMED: Final = 8
ROLES: Final = {"central": "central", "repo": "a REPO"}


def plan_release(
    definition: ReleaseDefinition,
    estate: Estate,
    current: CurrentRelease | None,
    *,
    source: str,
    now_s: int,
    total_grants: int = 0,
) -> ReleasePlan:
    """Compare `definition` with what is there; `total_grants` are all that the fleet has now.

    Raises UsageError (code definition_invalid) that names everything wrong at once: scripts,
    sites, rooms and servers that are unknown (with the nearest known name), a script of another
    kind, a server that is named twice.
    """
    problems: list[str] = []
    scripts = _choose_scripts(definition.scripts, estate, problems)
    servers = _choose_servers(definition, estate, problems)
    if problems:
        raise _refused(problems, source)
    previous = {} if current is None else dict(current.servers)
    chosen = {server.node for server in servers}
    lost = tuple(sorted(each for node, each in previous.items() if node not in chosen))
    gained = tuple(server for server in servers if server.node not in previous)
    changes = tuple(_changes(definition, scripts, current))
    touched = bool(changes or gained or lost)
    before = None if current is None else current.generation
    previous_scripts = {} if current is None else dict(current.scripts)
    return ReleasePlan(
        name=definition.name,
        release=None if current is None else current.release,
        previous_generation=before,
        generation=(before or 0) + (1 if touched or before is None else 0),
        prefetch_s=definition.prefetch_s,
        start_s=definition.start_s,
        end_s=definition.end_s,
        scripts=scripts,
        previous_scripts=previous_scripts,
        servers=servers,
        gained=gained,
        lost=lost,
        changes=changes,
        targets=definition.targets.rows,
        warnings=(
            *_loss_warning(lost, previous_scripts, total_grants),
            *_warnings(definition, servers, estate, now_s),
        ),
    )


def is_large_loss(lost: int, total: int) -> bool:
    """Whether losing `lost` of `total` grants is for a person to decide: more than a fifth."""
    return lost * LARGE_LOSS_DIVISOR > total


def _loss_warning(
    lost: tuple[Server, ...], previous_scripts: Mapping[str, ReleaseScript], total_grants: int
) -> Iterator[str]:
    count = len(lost) * len(previous_scripts)
    if count and is_large_loss(count, total_grants):
        names = ", ".join(server.name for server in lost[:_MAX_NAMED])
        more = f" and {len(lost) - _MAX_NAMED} more" if len(lost) > _MAX_NAMED else ""
        yield (
            f"This takes away {count} of all {total_grants} grants, more than a fifth, from"
            f" {names}{more}"
        )


def _choose_scripts(
    choices: Mapping[str, ScriptChoice], estate: Estate, problems: list[str]
) -> tuple[ReleaseScript, ...]:
    found: list[ReleaseScript] = []
    for kind, choice in choices.items():
        known = estate.scripts.get(choice.name)
        if known is None:
            hint = _nearest(choice.name, estate.scripts, "No script has been published yet")
            problems.append(f"{kind} names the script '{choice.name}', which is not known. {hint}")
            continue
        if known.kind != kind:
            problems.append(
                f"{kind} names '{choice.name}', which was published as a {known.kind} script"
            )
            continue
        newest = known.versions[-1]
        wanted = newest.version if choice.version is None else choice.version
        version = next((each for each in known.versions if each.version == wanted), None)
        if version is None:
            problems.append(
                f"{kind} names version {wanted} of '{choice.name}', whose newest version is"
                f" {newest.version}"
            )
            continue
        found.append(
            ReleaseScript(kind, known.name, version.version, version.manifest, version.size_bytes)
        )
    return tuple(found)


def _choose_servers(
    definition: ReleaseDefinition, estate: Estate, problems: list[str]
) -> tuple[Server, ...]:
    """The targeted servers by name; each may be reached by one entry of [targets] only."""
    named_by: dict[NodeId, str] = {}
    chosen: list[Server] = []

    def take(server: Server, entry: str) -> None:
        if other := named_by.get(server.node):
            problems.append(f"the server '{server.name}' is named twice, by {other} and by {entry}")
            return
        named_by[server.node] = entry
        chosen.append(server)

    servers = estate.ice_servers
    for site in definition.targets.sites:
        inside = [server for server in servers if server.site == site]
        if not inside:
            hint = _nearest(site, {each.site for each in servers}, "No ICE server has joined yet")
            problems.append(f"[targets] sites names '{site}', where no ICE server is. {hint}")
        for server in inside:
            take(server, f"the site '{site}'")
    for place in definition.targets.rooms:
        inside = [server for server in servers if f"{server.site}/{server.room}" == place]
        if not inside:
            rooms = {f"{each.site}/{each.room}" for each in servers}
            hint = _nearest(place, rooms, "No ICE server has joined yet")
            problems.append(f"[targets] rooms names '{place}', where no ICE server is. {hint}")
        for server in inside:
            take(server, f"the room '{place}'")
    by_name = {server.name: server for server in estate.servers}
    for name in definition.targets.nodes:
        found = by_name.get(name)
        if found is None:
            hint = _nearest(name, {each.name for each in servers}, "No ICE server has joined yet")
            problems.append(f"[targets] nodes names '{name}', which is not known. {hint}")
        elif found.role != "ice":
            problems.append(
                f"[targets] nodes names '{name}', which is {ROLES[found.role]} and not an ICE"
                " server; it holds every script anyway"
            )
        else:
            take(found, "its own name")
    return tuple(sorted(chosen))


def _changes(
    definition: ReleaseDefinition,
    scripts: tuple[ReleaseScript, ...],
    current: CurrentRelease | None,
) -> Iterator[FieldChange]:
    """The fields that change, in the order of the definition file."""
    if current is not None and current.state != "active":
        yield FieldChange("state", current.state, "active")
    for script in scripts:
        before = None if current is None else current.scripts.get(script.kind)
        if before is None or before.manifest != script.manifest:
            yield FieldChange(script.kind, None if before is None else str(before), str(script))
    moments = (
        ("prefetch", definition.prefetch_s, None if current is None else current.prefetch_s),
        ("start", definition.start_s, None if current is None else current.start_s),
        ("end", definition.end_s, None if current is None else current.end_s),
    )
    for name, after_s, before_s in moments:
        if after_s != before_s:
            yield FieldChange(
                name, None if before_s is None else _moment(before_s), _moment(after_s)
            )


def _warnings(
    definition: ReleaseDefinition, servers: tuple[Server, ...], estate: Estate, now_s: int
) -> Iterator[str]:
    """What is allowed but may not be meant; sentences without their full stop."""
    if definition.end_s <= now_s:
        yield f"The release ended already, at {_moment(definition.end_s)}"
    elif definition.start_s <= now_s:
        yield "The start is in the past: servers switch as soon as they hold the scripts"
    chosen = {server.node for server in servers}
    rooms = {(server.site, server.room) for server in servers}
    for site, room in sorted(rooms):
        members = [each for each in estate.ice_servers if (each.site, each.room) == (site, room)]
        left_out = [each.name for each in members if each.node not in chosen]
        if left_out:
            yield f"The room {site}/{room} gets it in part only: not {', '.join(sorted(left_out))}"


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _nearest(name: str, known: Collection[str], when_empty: str) -> str:
    """A hint that ends the sentence about an unknown name."""
    if not known:
        return when_empty
    lowered = {each.lower(): each for each in sorted(known)}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)
    if close:
        return "The nearest known is " + " or ".join(f"'{lowered[each]}'" for each in close)
    shown = sorted(known)[:_MAX_NAMED]
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    return "Known are " + ", ".join(f"'{each}'" for each in shown) + more


def _refused(problems: list[str], source: str) -> UsageError:
    if len(problems) == 1:
        message = f"{source}: {problems[0]}"
    else:
        message = f"{source} has {len(problems)} mistakes:" + "".join(
            f"\n  {problem}" for problem in problems
        )
    return UsageError(message, remedy=REMEDY, code="definition_invalid")
