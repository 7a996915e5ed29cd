"""The control methods about rates: what is in force, what really goes, and changing it.

Actual rates are measured when somebody asks, over `MEASURE_S`, from the counters that connections
keep anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from archid.control.connection import Exchange, Handler
from archid.control.credentials import Caller
from archid.errors import UsageError
from archid.local_time import zone_name
from archid.log import get_logger
from archid.net.switchboard import Switchboard
from archid.quantities import parse_duration
from archid.rates import RATE_KEYS
from archid.sync.limits import Held, Limits
from archid.sync.upload_slots import UploadSlots
from archid.weekly_grid import check_key, parse_assignments, parse_until
from protocol.ids import NodeId

log = get_logger(__name__)

MEASURE_S: Final = 1.0


@dataclass(frozen=True)
class Moved:
    """What went to and came from one connected node so far."""

    name: str
    site: str
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True)
class Counted:
    """The same of all nodes together, those that have gone included, and of each that is here."""

    sent_bytes: int
    received_bytes: int
    nodes: Mapping[NodeId, Moved]


class BadLimit(UsageError):
    """A limit, or its end, that cannot be."""

    code = "bad_limit"


class LimitsMethods:
    """Handlers for `limits.show`, `limits.set` and `limits.clear`."""

    def __init__(
        self, limits: Limits, counted: Callable[[], Counted], *, own_site: Callable[[], str]
    ) -> None:
        """`counted` reads the counters of all connections: `counted` below, of a switchboard."""
        self._limits = limits
        self._counted = counted
        self._own_site = own_site

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, as `ControlServer` takes them."""
        return {"limits.show": self.show, "limits.set": self.set, "limits.clear": self.clear}

    async def show(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """What is in force, and what goes through; takes as long as it measures."""
        before, began = self._counted(), trio.current_time()
        await trio.sleep(MEASURE_S)
        passed_s = trio.current_time() - began
        site = self._own_site()
        return self._shown(actual_rates(before, self._counted(), own_site=site, passed_s=passed_s))

    async def set(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Let other limits count than the file's, for a while or until they are cleared."""
        try:
            rates = parse_assignments(params["limits"])
            until_s = self._moment(params["until"])
        except ValueError as error:
            raise BadLimit(
                _sentence(error), remedy="archid limits set --help has examples"
            ) from error
        if not rates:
            raise BadLimit("No limit was named", remedy="archid limits set --help has examples")
        await self._limits.set(rates, by=caller.user_name, until_s=until_s)
        return self._shown({})

    async def clear(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Let the file count again."""
        try:
            for key in params["keys"]:
                check_key(key)
        except ValueError as error:
            raise BadLimit(_sentence(error), remedy="archid limits show lists them") from error
        await self._limits.clear(params["keys"] or RATE_KEYS, by=caller.user_name)
        return self._shown({})

    def _moment(self, text: str | None) -> int | None:
        if text is None:
            return None
        now_s = self._limits.now_s
        try:
            return int(now_s + parse_duration(text).total_seconds())
        except ValueError:
            return parse_until(text, now_s, self._limits.zone)

    def _shown(self, actual: Mapping[str, tuple[float, str | None]]) -> dict[str, Any]:
        limits = self._limits
        change_s = limits.next_change_s()
        held = limits.held()
        later = limits.held(change_s) if change_s is not None else held
        return {
            "limits": [_limit(key, held[key], *actual.get(key, (0.0, None))) for key in RATE_KEYS],
            "now_s": int(limits.now_s),
            "time_zone": zone_name(limits.zone),
            "next_change_s": change_s,
            "next": in_force_json(
                {key: one for key, one in later.items() if one.rate != held[key].rate}
            ),
            "weekly": [line.text for line in limits.settings.weekly],
            "upload_slots": upload_slots_json(limits.slots),
        }


def counted(switchboard: Switchboard) -> Counted:
    """The counters of this moment, as the connections keep them."""
    total = switchboard.traffic
    nodes = {
        node: Moved(
            peer.facts.name, peer.facts.site, peer.traffic.sent_bytes, peer.traffic.received_bytes
        )
        for node, peer in switchboard.peers.items()
    }
    return Counted(total.sent_bytes, total.received_bytes, nodes)


def actual_rates(
    before: Counted, after: Counted, *, own_site: str, passed_s: float
) -> dict[str, tuple[float, str | None]]:
    """By key: bytes a second, and whose they are where the limit is for each."""
    found: dict[str, tuple[float, str | None]] = {}
    for way, attribute in (("up", "sent_bytes"), ("down", "received_bytes")):
        sites: Counter[str] = Counter()
        peers: Counter[str] = Counter()
        for node, now in after.nodes.items():
            # One that has connected meanwhile began at nothing.
            then = before.nodes.get(node)
            moved = getattr(now, attribute) - (getattr(then, attribute) if then else 0)
            peers[now.name] += moved
            if now.site != own_site or not own_site:
                sites[now.site] += moved
        everything = getattr(after, attribute) - getattr(before, attribute)
        found[way] = everything / passed_s, None
        found[f"outside_{way}"] = sites.total() / passed_s, None
        found[f"per_site_{way}"] = _most(sites, passed_s)
        found[f"per_peer_{way}"] = _most(peers, passed_s)
    return found


def in_force_json(held: Mapping[str, Held]) -> list[dict[str, Any]]:
    """Limits as keys and rates."""
    return [{"key": key, "rate_bytes_per_s": one.rate} for key, one in held.items()]


def upload_slots_json(slots: UploadSlots) -> dict[str, int]:
    """How the slots stand."""
    return {
        "limit": slots.limit,
        "in_use": slots.in_use,
        "waiting": slots.waiting,
        "refused": slots.refused,
    }


def _most(counts: Counter[str], passed_s: float) -> tuple[float, str | None]:
    for name, moved in counts.most_common(1):
        return moved / passed_s, name if moved else None
    return 0.0, None


def _limit(key: str, held: Held, actual: float, busiest: str | None) -> dict[str, Any]:
    return {
        "key": key,
        "rate_bytes_per_s": held.rate,
        "origin": held.origin,
        "line": held.line,
        "by": held.by,
        "until_s": held.until_s,
        "actual_bytes_per_s": max(0.0, actual),
        "busiest": busiest,
    }


def _sentence(error: ValueError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
