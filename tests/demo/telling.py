"""The summary in plain words: two small tables, and what was observed or was not."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from archid.cli import figures
from tests.demo.refusal import Asked
from tests.demo.summary import Compared, Delivered, Renewed, Shared, Summary

GOOD: Final = "seen"
BAD: Final = "failed"


def summary_table(summary: Summary, *, seen: str = "✓", failed: str = "✗") -> RenderableType:
    """All of it; the marks are those of the terminal."""
    parts: list[RenderableType] = []
    if summary.deliveries:
        parts += [_received(summary.deliveries, summary.comparisons), Text()]
    if summary.refusals:
        asked = [*summary.refusals, *([summary.answered] if summary.answered else [])]
        parts += [_asked(asked, entitled=summary.answered), Text()]
    if facts := _facts(summary):
        parts += [_told(facts, seen), Text()]
    parts += [Text.assemble((f"{failed} ", BAD), one) for one in summary.failures]
    if summary.ok:
        parts.append(
            Text.assemble(
                (f"{seen} All of this was observed", GOOD),
                f" in {figures.duration(summary.seconds)},"
                f" with {figures.size(summary.disk_bytes)} of disk.",
            )
        )
    return Padding(Group(*parts), (1, 1, 0, 1))


def seconds(value: float) -> str:
    """A short time with one digit."""
    return f"{value:.1f} s"


def shares(by_source: dict[str, int]) -> str:
    """Whom bytes came from, in shares, the most first."""
    whole = sum(by_source.values())
    ordered = sorted(by_source.items(), key=lambda one: -one[1])
    if len(ordered) == 1:
        return ordered[0][0]
    return ", ".join(f"{name} {100 * size / whole:.0f} %" for name, size in ordered) or "nobody"


def _table(*columns: Column) -> Table:
    return Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="quiet")


def _received(deliveries: list[Delivered], comparisons: list[Compared]) -> Table:
    table = _table(
        Column("received", no_wrap=True),
        Column("", no_wrap=True, justify="right"),
        Column("in", no_wrap=True, justify="right"),
        Column("at", no_wrap=True, justify="right"),
        Column("from", overflow="fold"),
        Column("compared", no_wrap=True),
    )
    compared = {one.node: one for one in comparisons}
    for one in deliveries:
        table.add_row(
            Text(one.node, "name"),
            figures.size(one.held_bytes),
            seconds(one.seconds),
            figures.rate(one.bytes_per_s),
            shares(one.by_source),
            _verdict(compared.get(one.node)),
        )
    return table


def _verdict(one: Compared | None) -> Text:
    if one is None:
        return Text()
    if one.differences:
        return Text("NOT equal", BAD)
    return Text(f"{one.files:,} equal", GOOD)


def _told(facts: list[tuple[str, str]], seen: str) -> Table:
    table = Table.grid(
        Column(), Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0)
    )
    for what, told in facts:
        table.add_row(Text(seen if what else "", GOOD), Text(what, "name"), told)
    return table


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """What else was seen, each as a word and its figures."""
    facts: list[tuple[str, str]] = []
    for shared in summary.sharing:
        if shared.received_bytes:
            facts.append(("shared" if not facts else "", _sharing(shared)))
    if (renewed := summary.renewals) and not any(one.mixed for one in renewed):
        facts.append(("second version", _renewal(renewed)))
        looks = sum(one.looks for one in renewed)
        facts.append(("", f"{looks:,} looks of readers at them meanwhile saw no mix"))
    if (rot := summary.rot) and rot.repaired:
        told = f"not given out by {rot.node} ({rot.refused}), alarm raised, repaired"
        facts.append(("rotten byte", f"{told} after {seconds(rot.seconds)}"))
    if dead := summary.orphaned:
        size = figures.size(sum(dead.by_source.values()))
        told = f"process {dead.central_pid} is dead; {dead.node}, holding nothing, got {size}"
        facts.append(("central killed", f"{told} in {seconds(dead.seconds)}"))
        facts.append(("", f"({shares(dead.by_source)}), {dead.files:,} files equal"))
    if cut := summary.revoked:
        told = (
            f"{cut.node} was cut off by every peer {seconds(cut.seconds)} after the command began"
        )
        facts.append(("revoked", told))
        part = figures.part(cut.received_bytes, cut.size_bytes)
        facts.append(("", f"when it had received {part} of the film"))
    return facts


def _sharing(one: Shared) -> str:
    part = f"{100 * one.received_bytes / one.whole_bytes:.0f} %"
    received, sent = figures.size(one.received_bytes), figures.size(one.sent_bytes)
    return f"{one.node} had {part} from its neighbour: {received} received, {sent} sent"


def _renewal(renewed: list[Renewed]) -> str:
    most = figures.size(max(one.received_bytes for one in renewed))
    first, last = (1000 * f(one.after_start_s for one in renewed) for f in (min, max))
    return (
        f"{most} to a server; {len(renewed)} bundles switched {first:.0f} to {last:.0f} ms after"
        " the set second"
    )


def _asked(asked: list[Asked], *, entitled: Asked | None) -> Table:
    table = _table(
        Column("with the key of", no_wrap=True),
        Column("asked", overflow="fold"),
        Column("questions", no_wrap=True, justify="right"),
        Column("refused", no_wrap=True, justify="right"),
        Column("given", no_wrap=True, justify="right"),
        Column("", no_wrap=True),
    )
    # Those that refused everything are told together.
    refusing = [one for one in asked if one is not entitled and not one.payload_bytes]
    rows = [refusing] if refusing else []
    rows += [[one] for one in asked if one not in refusing]
    for row in rows:
        given = sum(one.payload_bytes for one in row)
        may_ask = row == [entitled]
        table.add_row(
            Text(row[0].asker, "name"),
            ", ".join(one.peer for one in row),
            f"{sum(one.questions for one in row)}",
            f"{sum(one.refused for one in row)}",
            Text(figures.size(given), GOOD if bool(given) == may_ask else BAD),
            "it may ask" if may_ask else "",
        )
    return table
