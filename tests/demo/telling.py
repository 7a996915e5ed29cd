"""The summary in plain words: a line each for what was seen, how long it took, and figures."""

from __future__ import annotations

from archid.cli import figures
from tests.demo.refusal import Asked
from tests.demo.summary import Compared, Delivered, Member, Published, Summary

Row = tuple[str, str, str]


def rows(summary: Summary) -> list[Row]:
    """What was seen, as far as the demo came."""
    found = []
    if summary.nodes:
        found.append(_joined(summary.nodes, summary.joining_seconds))
    if summary.scripts:
        found.append(_published(summary.scripts))
    found += [_delivered(one) for one in summary.deliveries]
    found += [_compared(one) for one in summary.comparisons]
    found += [_refused(one) for one in summary.refusals]
    if summary.answered is not None:
        found.append(_answered(summary.answered))
    return found


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


def _joined(nodes: list[Member], took_s: float) -> Row:
    roles = [node.role for node in nodes]
    repos, ices = figures.count(roles.count("repo"), "REPO"), roles.count("ice")
    how = f"{len(roles)} processes: central, {repos}, {ices} ICE servers"
    return "Joined by token", seconds(took_s), how


def _published(scripts: list[Published]) -> Row:
    size = sum(one.size_bytes for one in scripts)
    took_s = sum(one.seconds for one in scripts)
    files = figures.count(sum(one.files for one in scripts), "file")
    how = f"{len(scripts)} scripts, {files}, {figures.size(size)} at {figures.rate(size / took_s)}"
    return "Published", seconds(took_s), how


def _delivered(one: Delivered) -> Row:
    size, rate = figures.size(one.held_bytes), figures.rate(one.bytes_per_s)
    how = f"{size} at {rate} from {shares(one.by_source)}"
    return f"Whole at {one.node}", seconds(one.seconds), how


def _compared(one: Compared) -> Row:
    files, size = figures.count(one.files, "file"), figures.size(one.bytes)
    equal = "NOT equal" if one.differences else "all equal"
    how = f"{files}, {size} by {one.program}: {equal}"
    return f"Compared at {one.node}", seconds(one.seconds), how


def _refused(one: Asked) -> Row:
    given = figures.size(one.payload_bytes)
    how = f"{one.refused} of {one.questions} questions of {one.asker}; {given} given"
    return f"Refused by {one.peer}", "", how


def _answered(one: Asked) -> Row:
    given, size = len(one.report.given), figures.size(one.payload_bytes)
    how = f"{given} of the same questions of {one.asker}, which may ask; {size} given"
    return f"Answered by {one.peer}", "", how
