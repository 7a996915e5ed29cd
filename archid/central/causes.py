"""Why a release stands on a server as it does: one sentence of cause, and what to do about it.

Pure functions from what central defined and what the server said last. What a server says comes
as sentences, so those that name a cause are told by words which `archid.control.node_status` and
`archid.sync` use, and a test holds the two together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

ALONE: Final = "No other node is connected"
CLOCK: Final = "machine's clock is"
NO_SOURCE: Final = "no peer that holds it is connected"
WRONG_BYTES: Final = "it sent wrong bytes"
REFUSED: Final = " does not give it: "
FULL: Final = ("are free", "is full", "No space left", "disk is full")
LATE_AFTER_S: Final = 120
"""A switch is told a little after it happened."""


class Cause(NamedTuple):
    """Why a room stands as it stands; `solved` when it is as it should be."""

    sentence: str
    remedy: str | None
    solved: bool


@dataclass(frozen=True)
class Situation:
    """One release on one server: its dates, and what the server said of it."""

    node: str
    release: str
    generation: int
    prefetch_s: int
    start_s: int
    end_s: int
    state: str
    reason: str
    health_reasons: Sequence[str]
    held_percent: float
    holders: Sequence[str]
    """Nodes that say they hold all of it."""
    now_s: float


def cause_of(one: Situation) -> Cause:
    """The most telling cause."""
    return _clock(one) or _by_state(one)


def _clock(one: Situation) -> Cause | None:
    """A clock that is off is the cause where the server did not do in time what it should."""
    told = next((reason for reason in one.health_reasons if CLOCK in reason), None)
    if told is None:
        return None
    switches_late = one.state == "ready" and one.now_s > one.start_s
    fetches_late = one.state == "planned" and one.now_s > one.prefetch_s
    switched_early = one.state == "active" and one.now_s < one.start_s
    if not (switches_late or fetches_late or switched_early):
        return None
    done = f"has not switched to {one.release} yet"
    if fetches_late:
        done = f"does not fetch {one.release} yet"
    elif switched_early:
        done = f"has switched to {one.release} too early"
    return Cause(
        f"{one.node} {done}, since its clock is wrong: {_lower(told)}",
        f"Set the clock of {one.node} by NTP",
        False,
    )


def _by_state(one: Situation) -> Cause:
    start = moment(one.start_s)
    match one.state:
        case "planned":
            when = moment(one.prefetch_s)
            return Cause(f"{one.node} fetches {one.release} from {when} on", None, True)
        case "fetching":
            return _fetching(one)
        case "ready" if one.now_s > one.start_s + LATE_AFTER_S:
            return Cause(
                f"{one.node} holds all of {one.release} and should have switched at {start}",
                "Look at `archid status` and `archid log` there; another release may have its name",
                False,
            )
        case "ready":
            return Cause(
                f"{one.node} holds all of {one.release} and switches at {start}", None, True
            )
        case "active":
            return Cause(f"{one.node} plays generation {one.generation}", None, True)
        case "rolled_back":
            return Cause(
                f"{one.node} was rolled back {one.reason}",
                f"archid activate {one.release} there ends it, or apply a newer generation",
                False,
            )
        case "ended":
            return Cause(f"{one.release} ended at {moment(one.end_s)}", None, True)
        case "withdrawn":
            return Cause(f"{one.release} was withdrawn from {one.node}", None, True)
    return _failed(one)


def _fetching(one: Situation) -> Cause:
    held = f"{one.held_percent:.0f} % is there"
    if not one.reason:
        return Cause(f"{one.node} is fetching {one.release}: {held}", None, False)
    if WRONG_BYTES in one.reason:
        who = one.reason.partition(REFUSED)[0]
        return Cause(
            f"{one.node} got wrong bytes of {one.release} from {who} and waits for another source:"
            f" {held}",
            f"Run `archid verify` on {who} and look at its disk; wrong bytes are never kept",
            False,
        )
    if _is_full(one.reason):
        return _no_space(one)
    alone = next((reason for reason in one.health_reasons if reason.startswith(ALONE)), None)
    if alone is not None:
        return Cause(
            f"{one.node} reaches no other node, so it cannot fetch {one.release}: {held}"
            + (alone.removeprefix(ALONE).replace(": ", "; ", 1)),
            "Look at its network, and at `archid peers` there",
            False,
        )
    if one.reason == NO_SOURCE:
        holders = ", ".join(one.holders)
        where = f"; {holders} hold it" if holders else "; no node says that it holds all of it"
        return Cause(
            f"{one.node} waits for a source: none of the nodes that it reaches holds"
            f" {one.release}, {held}{where}",
            "See with `archid peers` there why those that hold it are not connected"
            if holders
            else "See with `archid fleet` whether the REPOs are well",
            False,
        )
    return Cause(
        f"{one.node} is fetching {one.release}: {held}; {one.reason}",
        "See which peers it reaches with `archid peers` there",
        False,
    )


def _failed(one: Situation) -> Cause:
    if _is_full(one.reason):
        return _no_space(one)
    return Cause(
        f"{one.release} failed on {one.node}: {one.reason or one.state}",
        "Run `archid doctor` there",
        False,
    )


def _is_full(reason: str) -> bool:
    return any(words in reason for words in FULL)


def _no_space(one: Situation) -> Cause:
    return Cause(
        f"{one.node} has no space for {one.release}: {one.reason}",
        "Free some there (`archid gc` removes what is no longer needed), or lower [storage]"
        " keep_free",
        False,
    )


def moment(seconds: int) -> str:
    """As central's sentences say it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
