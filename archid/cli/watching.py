"""What `archid watch` shows: the moment as a screen, and between two moments what has changed.

Pure functions from the results of the methods ``status`` and ``fleet``; the command asks for them
and keeps the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from archid.cli import figures
from archid.cli.commands.fleet import screen as fleet_screen
from archid.cli.commands.peers import View
from archid.cli.commands.peers import screens as peer_screens
from archid.cli.commands.status import release_screens, title_and_health
from archid.cli.output import heading

Json = dict[str, Any]
Fact = tuple[str, str]
"""Who, and what of it."""

QUARTERS: Final = 4
NOTHING: Final = "nothing"
LEVELS: Final = {"ok": "well", "attention": "attention", "alarm": "alarm"}


@dataclass(frozen=True)
class Moment:
    """What was answered at one moment; `fleet` on central only."""

    status: Json
    fleet: Json | None
    peers: Json


@dataclass(frozen=True)
class Change:
    """One fact that is not what it was; None where there was, or is, none."""

    who: str
    what: str
    before: str | None
    after: str | None

    @property
    def sentence(self) -> str:
        """As a line says it."""
        if self.before is None:
            return f"{self.who}: {self.what} {self.after}"
        return f"{self.who}: {self.what} {self.before} → {self.after or NOTHING}"


def changes(before: Moment | None, after: Moment) -> list[Change]:
    """What is different, in a lasting order; all of it when there was nothing before."""
    old = {} if before is None else dict(facts(before))
    new = dict(facts(after))
    keys = [*new, *(key for key in old if key not in new)]
    return [
        Change(*key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)
    ]


def facts(moment: Moment) -> Iterator[tuple[Fact, str]]:
    """Everything whose change is worth a line; figures that always move are coarse."""
    status = moment.status
    own = status["name"] or status["node"][:12]
    health = status["health"]
    yield (own, "health"), LEVELS[health["level"]]
    for reason in health["reasons"]:
        yield (own, reason["code"]), reason["sentence"]
    for one in status["deliveries"]:
        yield (own, f"release {one['name']}"), _standing(one)
        for script in one["scripts"]:
            if script["state"] == "fetching" and script["size_bytes"]:
                done = QUARTERS * script["held_bytes"] // script["size_bytes"] * (100 // QUARTERS)
                yield (own, f"script {script['script']}"), f"{done} % here"
    for peer in moment.peers["nodes"]:
        if moment.fleet is None or peer["connected"]:
            yield (own, f"peer {peer['name']}"), "connected" if peer["connected"] else "away"
    for node in (moment.fleet or {"nodes": []})["nodes"]:
        if node["name"] == own:
            continue
        yield (node["name"], "health"), _health(node)
        for number, sentence in enumerate(node["reasons"]):
            yield (node["name"], f"reason {number + 1}"), sentence
        for one in node["releases"]:
            yield (node["name"], f"release {one['name']}"), _standing(one)


def screen(moment: Moment, *, columns: int, now_s: float) -> list[RenderableType]:
    """The whole screen: on central the fleet, elsewhere the node's releases; then the lines."""
    # What quits stands at the top: a small terminal cuts off the end.
    parts: list[RenderableType] = [_summit(moment), "", *title_and_health(moment.status), ""]
    if moment.fleet is not None:
        parts += [_summary(moment.fleet), "", fleet_screen(moment.fleet, verbose=False), ""]
    elif moment.status["deliveries"] or moment.status["role"] == "ice":
        parts += [*release_screens(moment.status), ""]
    wide = columns >= 110
    parts += [heading("Connections"), *peer_screens(moment.peers, View(now_s, wide))]
    return parts


def _summary(fleet: Json) -> Table:
    """How many nodes are well, and how each release stands over all of its servers."""
    nodes = fleet["nodes"]
    made = Table.grid(padding=(0, 2))
    made.add_column(style="quiet", no_wrap=True)
    made.add_column(overflow="fold")
    made.add_row("nodes", _tally(_health(node) for node in nodes))
    releases: dict[str, list[str]] = {}
    for node in nodes:
        for one in node["releases"]:
            if one["state"] != "withdrawn":
                told = "silent" if node["silent"] else one["state"]
                releases.setdefault(one["name"], []).append(told)
    for name, states in sorted(releases.items()):
        made.add_row(name, _tally(states))
    return made


STYLES: Final = {
    "well": "ok", "active": "ok", "ready": "ok", "attention": "attention", "fetching": "attention",
    "alarm": "alarm", "failed": "alarm", "silent": "alarm", "unknown": "alarm",
}  # fmt: skip


def _tally(states: Iterator[str] | list[str]) -> Text:
    counted: dict[str, int] = {}
    for state in states:
        counted[state] = counted.get(state, 0) + 1
    parts = [Text(f"{count} {name}", STYLES.get(name, "")) for name, count in counted.items()]
    return Text(", ").join(parts) if parts else Text("none", style="quiet")


def _summit(moment: Moment) -> Text:
    peers = [one for one in moment.peers["peers"] if one["state"] == "admitted"]
    rates = [
        figures.rate(sum(one[f"content_{way}_bytes_per_s"] for one in peers)) + f" {way}"
        for way in ("in", "out")
    ]
    told = f"{figures.count(len(peers), 'connection')}, {', '.join(rates)}    q quits"
    return Text(told, style="quiet")


def _standing(one: Mapping[str, Any]) -> str:
    return str(one["state"]) + (f" ({one['reason']})" if one["reason"] else "")


def _health(node: Json) -> str:
    if node["health"] is None:
        return "unknown"
    return "silent" if node["silent"] else LEVELS.get(node["health"], str(node["health"]))
