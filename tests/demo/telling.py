"""The summary in plain words: two small tables, and what was observed or was not."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from archid.cli import figures
from tests.demo.refusal import Asked
from tests.demo.summary import Compared, Delivered, Summary

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
    if summary.errors_logged:
        parts.append(Text(f"The daemons logged {figures.count(summary.errors_logged, 'error')}."))
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


def _asked(asked: list[Asked], *, entitled: Asked | None) -> Table:
    table = _table(
        Column("with the key of", no_wrap=True),
        Column("asked", no_wrap=True),
        Column("questions", no_wrap=True, justify="right"),
        Column("refused", no_wrap=True, justify="right"),
        Column("given", no_wrap=True, justify="right"),
        Column("", no_wrap=True),
    )
    for one in asked:
        expected = bool(one.payload_bytes) == (one is entitled)
        table.add_row(
            Text(one.asker, "name"),
            one.peer,
            str(one.questions),
            str(one.refused),
            Text(figures.size(one.payload_bytes), GOOD if expected else BAD),
            "it may ask" if one is entitled else "",
        )
    return table
