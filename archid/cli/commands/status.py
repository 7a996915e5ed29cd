"""``archid status``: what this node is, has, fetches and lacks, on one screen."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import bar, heading, indented, level, pairs, table
from archid.cli.session import Session
from archid.rates import format_rate

Json = dict[str, Any]

ROLE_WORDS: Final = {"central": "central", "repo": "REPO", "ice": "ICE server"}
ROLE_SHORT: Final = {"central": "central", "repo": "REPO", "ice": "ICE"}
LEVEL_WORDS: Final = {"ok": "Well", "attention": "Attention", "alarm": "Alarm"}
DELIVERY_STYLES: Final = {
    "active": "ok",
    "ready": "ok",
    "failed": "alarm",
    "withdrawn": "quiet",
    "ended": "quiet",
}


@session_command("status")
def command(session: Session) -> None:
    """Show what this node is, has, fetches and lacks."""
    status = session.call("status")
    session.screen.result(status, *_screens(status, verbose=session.verbose))


def _screens(status: Json, *, verbose: bool) -> list[RenderableType]:
    screens: list[RenderableType] = [*title_and_health(status), ""]
    screens.append(indented(_facts(status, verbose=verbose)))
    if status["deliveries"] or status["role"] == "ice":
        screens += ["", *release_screens(status)]
    screens += ["", heading("Peers")]
    screens.append(indented(_peers(status["peers"], status["now_s"], verbose=verbose)))
    return screens


def title_and_health(status: Json) -> list[RenderableType]:
    """Which node this is, and how it is in words."""
    return [_title(status), *_health(status["health"])]


def release_screens(status: Json) -> list[RenderableType]:
    """The releases of an ICE server and how far each script is."""
    screens: list[RenderableType] = [heading("Releases")]
    now_s = status["now_s"]
    for delivery in status["deliveries"]:
        screens += [indented(_delivery_line(delivery, now_s)), indented(_scripts(delivery))]
    if not status["deliveries"]:
        screens.append(indented(Text("None is granted to this server.", style="quiet")))
    return screens


def _title(status: Json) -> Text:
    place = [
        ROLE_WORDS[status["role"]],
        f"({status['server_kind']})" if status["server_kind"] else "",
    ]
    where = [f"room {status['room']}" if status["room"] else "", status["site"]]
    words = ", ".join(filter(None, [" ".join(filter(None, place)), *where]))
    return Text.assemble(
        (status["name"] or status["node"][:12], "name"), "  ", words, "  ",
        (f"fleet {status['fleet_name']}", "quiet"),
    )  # fmt: skip


def _health(health: Json) -> list[RenderableType]:
    if not health["reasons"]:
        return [level(f"{LEVEL_WORDS[health['level']]}: nothing needs attention.", health["level"])]
    lines: list[RenderableType] = []
    for reason in health["reasons"]:
        lines.append(
            level(f"{LEVEL_WORDS[reason['level']]}: {reason['sentence']}.", reason["level"])
        )
        if reason["remedy"]:
            lines.append(indented(Text(f"{reason['remedy']}.")))
    return lines


def _facts(status: Json, *, verbose: bool) -> Table:
    storage, trust, traffic = status["storage"], status["trust"], status["traffic"]
    running_s = status["now_s"] - status["started_s"]
    held = figures.count(storage["trees"], "version")
    free = f"{figures.size(storage['free_bytes'])} free of {figures.size(storage['total_bytes'])}"
    received, sent = (figures.size(traffic[key]) for key in ("received_bytes", "sent_bytes"))
    software = f"{status['software']}, pid {status['pid']}"
    rows: list[tuple[str, RenderableType]] = [
        ("running", f"for {figures.duration(running_s)}, {software}"),
        ("listens", ", ".join(status["listen"]) or "nowhere"),
        ("holds", f"{held}, {figures.size(storage['held_bytes'])}; {free}"),
        ("read again", _scrub(status["scrub"], status["now_s"])),
        ("traffic", f"{received} received, {sent} sent"),
    ]
    if limited := [one for one in status["limits"] if one["rate_bytes_per_s"] is not None]:
        words = ", ".join(f"{one['key']} {format_rate(one['rate_bytes_per_s'])}" for one in limited)
        rows.append(("limits", words))
    if trust is None:
        rows.append(("fleet head", Text("none yet", style="attention")))
    else:
        words = (
            f"{trust['epoch']}/{trust['serial']} of {figures.moment(trust['issued_s'])},"
            f" {'expired' if trust['expired'] else 'valid'}"
            f" {'since' if trust['expired'] else 'until'} {figures.moment(trust['expires_s'])}"
        )
        rows.append(("fleet head", Text(words, style="alarm" if trust["expired"] else "")))
    if status["pins"]:
        named = dict.fromkeys(pin["name"] for pin in status["pins"])
        rows.append(("pinned", ", ".join(named)))
    if verbose:
        rows += [
            ("node", status["node"]),
            ("fleet", status["fleet"]),
            ("advertises", ", ".join(status["advertise"]) or "nothing"),
            ("state", storage["state"]),
            ("scripts", storage["scripts"]),
        ]
    return pairs(*rows)


def _scrub(scrub: Json, now_s: float) -> Text:
    """The last look at every byte, and what came of it."""
    if scrub["state"] == "running":
        words = f"now, {figures.size(scrub['checked_bytes'])} so far"
    elif scrub["finished_s"] is not None:
        words = f"whole, {figures.distance(scrub['finished_s'], now_s)}"
    else:
        words = "not yet"
    if scrub["state"] == "off":
        words += "; the scrub is off"
    elif scrub["next_s"] is not None:
        words += f"; next {figures.distance(scrub['next_s'], now_s)}"
    for number, what in ((scrub["damaged"], "damaged"), (scrub["repaired"], "repaired so far")):
        if number:
            words += f"; {figures.count(number, 'version')} {what}"
    return Text(words, style="alarm" if scrub["damaged"] else "")


def _delivery_line(delivery: Json, now_s: float) -> Text:
    state = delivery["state"]
    if state in {"planned", "fetching", "ready"}:
        first = delivery["prefetch_s"] if state == "planned" else delivery["start_s"]
        verb = "fetches from" if state == "planned" else "starts"
        when = f", {verb} {figures.moment(first)} ({figures.distance(first, now_s)})"
    elif state == "active":
        when = f" until {figures.moment(delivery['end_s'])}"
    else:
        when = ""
    line = Text.assemble(
        (delivery["name"], "name"),
        (f" generation {delivery['generation']}: ", "quiet"),
        (state.replace("_", " "), DELIVERY_STYLES.get(state, "attention")),
        when,
    )
    if delivery["reason"]:
        line.append(f"; {delivery['reason']}", style="attention")
    return line


def _scripts(delivery: Json) -> Table:
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column("", width=2)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold", ratio=1)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold", ratio=2)
    for script in delivery["scripts"]:
        version = "" if script["version"] is None else f" v{script['version']}"
        made.add_row(
            "",
            Text(script["kind"], style="quiet"),
            f"{script['script']}{version}",
            bar(script["held_bytes"], script["size_bytes"] or 1, width=10),
            _script_words(script),
        )
    return made


def _script_words(script: Json) -> Text:
    total = script["size_bytes"]
    if script["state"] == "held":
        return Text(figures.size(total or 0), style="ok")
    if script["state"] in {"failed", "waiting"} and script["reason"]:
        style = "alarm" if script["state"] == "failed" else "attention"
        return Text(f"{script['state']}: {script['reason']}", style=style)
    if total is None:
        return Text(script["state"])
    words = [figures.part(script["held_bytes"], total)]
    if script["rate_bytes_per_s"]:
        words.append(figures.rate(script["rate_bytes_per_s"]))
    if script["remaining_s"] is not None:
        words.append(f"{figures.duration(script['remaining_s'])} left")
    if script["state"] == "placing":
        words = ["all here, being put in place"]
    return Text(", ".join(words))


def _peers(peers: list[Json], now_s: float, *, verbose: bool) -> RenderableType:
    """A table of those who are here, and under it why the others are not."""
    if not peers:
        return Text("None is known.", style="attention")
    here = table("name", "role", "address", "for", "in", "out", right=("for", "in", "out"))
    away: list[RenderableType] = []
    for peer in peers:
        if peer["state"] != "admitted":
            words = f"{peer['name'] or peer['address']}: {peer['reason'] or peer['state']}."
            away.append(Text(words, style="attention"))
            continue
        here.add_row(
            peer["name"],
            ROLE_SHORT.get(peer["role"], peer["role"]),
            peer["address"],
            figures.duration(now_s - peer["since_s"]),
            figures.size(peer["received_bytes"]),
            figures.size(peer["sent_bytes"]),
        )
    ids = _ids(peers) if verbose else []
    return Group(*([here] if here.row_count else []), *away, *ids)


def _ids(peers: list[Json]) -> list[RenderableType]:
    """The id of each peer, whole, and who dialled whom."""
    made = Table.grid(padding=(0, 2))
    for peer in peers:
        if peer["node"]:
            words = (peer["name"], peer["node"], peer["direction"])
            made.add_row(*(Text(word, style="quiet", no_wrap=True) for word in words))
    return ["", made] if made.row_count else []
