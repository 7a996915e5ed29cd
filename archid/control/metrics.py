"""The figures of a node for Prometheus: which there are, and their values at this moment.

`METRICS` is the whole list, and METRICS.md says the same for people; a test compares the two with
what a daemon answers. Values come from the same objects that `archid status` and `archid fleet`
show, so that an alarm and the command cannot disagree. Labels have few values: names of nodes are
not among them but for the node itself, or a large fleet would drown its Prometheus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

Json = Mapping[str, Any]
Values = Iterable[tuple[tuple[str, ...], float]]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LEVELS: Final = {"ok": 0, "attention": 1, "alarm": 2}
ROLES: Final = ("central", "repo", "ice")
READY: Final = frozenset({"ready", "active"})


class Described(NamedTuple):
    """One metric: its kind, what it says, its labels."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final[dict[str, Described]] = {
    "archid_info": Described(
        GaugeMetricFamily,
        "Always 1; the labels say which node this is",
        ("name", "role", "site", "room", "node", "fleet", "software"),
    ),
    "archid_start_time_seconds": Described(GaugeMetricFamily, "When the daemon started"),
    "archid_health_level": Described(GaugeMetricFamily, "0 well, 1 attention, 2 alarm"),
    "archid_health_reasons": Described(
        GaugeMetricFamily, "What needs attention, by the code in archid status", ("level", "code")
    ),
    "archid_head_serial": Described(
        GaugeMetricFamily, "The newest head of the fleet that this node has", ("epoch",)
    ),
    "archid_head_issued_timestamp_seconds": Described(
        GaugeMetricFamily, "When that head was signed"
    ),
    "archid_head_expires_timestamp_seconds": Described(
        GaugeMetricFamily, "When that head expires; what is granted goes on after it"
    ),
    "archid_peers": Described(
        GaugeMetricFamily, "Connected nodes, and who dialled", ("role", "direction")
    ),
    "archid_dials_failing": Described(
        GaugeMetricFamily, "Addresses that are dialled and not reached"
    ),
    "archid_wire_bytes": Described(
        CounterMetricFamily, "Bytes on all connections, TLS included", ("direction",)
    ),
    "archid_content_bytes": Described(
        CounterMetricFamily, "Content alone, by the other node's role", ("direction", "role")
    ),
    "archid_gossip_bytes": Described(
        CounterMetricFamily, "What nodes tell one another unasked", ("direction",)
    ),
    "archid_limit_bytes_per_second": Described(
        GaugeMetricFamily, "Limits in force now; none for what is not limited", ("limit",)
    ),
    "archid_upload_slots": Described(GaugeMetricFamily, "Spans that may be sent at once"),
    "archid_upload_slots_used": Described(GaugeMetricFamily, "Those that are being sent"),
    "archid_uploads_waiting": Described(GaugeMetricFamily, "Requests that wait for a slot"),
    "archid_uploads_refused": Described(
        CounterMetricFamily, "Requests that were told that this node is busy"
    ),
    "archid_storage_free_bytes": Described(GaugeMetricFamily, "Free where the scripts are"),
    "archid_storage_size_bytes": Described(GaugeMetricFamily, "All there is where they are"),
    "archid_storage_held_bytes": Described(GaugeMetricFamily, "Content that is held here"),
    "archid_storage_versions": Described(GaugeMetricFamily, "Script versions held here, whole"),
    "archid_releases": Described(
        GaugeMetricFamily, "Releases of this ICE server, by how they stand", ("state",)
    ),
    "archid_release_ready": Described(
        GaugeMetricFamily, "1 if all of the release is here or plays, else 0", ("release",)
    ),
    "archid_release_start_timestamp_seconds": Described(
        GaugeMetricFamily, "When the release starts", ("release",)
    ),
    "archid_release_size_bytes": Described(
        GaugeMetricFamily, "Its scripts, as far as their sizes are known", ("release",)
    ),
    "archid_release_held_bytes": Described(GaugeMetricFamily, "What of them is here", ("release",)),
    "archid_fleet_nodes": Described(
        GaugeMetricFamily,
        "On central: nodes by health; silent and unknown are those not heard of",
        ("role", "health"),
    ),
    "archid_fleet_releases": Described(
        GaugeMetricFamily, "On central: servers by how a release stands", ("release", "state")
    ),
}


def metrics_text(status: Json, fleet: Json | None) -> bytes:
    """The answer to a scrape, from the results of the methods ``status`` and ``fleet``."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Snapshot(dict(_of_node(status)) | dict(_of_fleet(fleet))))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, values: Mapping[str, Values]) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for name, described in METRICS.items():
            family = described.kind(name, described.help, labels=described.labels)
            for labels, value in self._values.get(name, ()):
                family.add_metric(labels, value)
            yield family


def _plain(value: float | None) -> Values:
    return [] if value is None else [((), value)]


def _counted(rows: Iterable[tuple[str, ...]]) -> Values:
    return sorted(Counter(rows).items())


def _of_node(status: Json) -> Iterator[tuple[str, Values]]:
    names = (status[key] for key in ("name", "role", "site", "room", "node", "fleet", "software"))
    yield "archid_info", [(tuple(names), 1)]
    yield "archid_start_time_seconds", _plain(status["started_s"])
    health = status["health"]
    yield "archid_health_level", _plain(LEVELS[health["level"]])
    yield (
        "archid_health_reasons",
        _counted((one["level"], one["code"]) for one in health["reasons"]),
    )
    if status["trust"] is not None:
        trust = status["trust"]
        yield "archid_head_serial", [((str(trust["epoch"]),), trust["serial"])]
        yield "archid_head_issued_timestamp_seconds", _plain(trust["issued_s"])
        yield "archid_head_expires_timestamp_seconds", _plain(trust["expires_s"])
    yield from _of_traffic(status)
    limits = [one for one in status["limits"] if one["rate_bytes_per_s"] is not None]
    yield (
        "archid_limit_bytes_per_second",
        [((one["key"],), one["rate_bytes_per_s"]) for one in limits],
    )
    slots = status["upload_slots"]
    yield "archid_upload_slots", _plain(slots["limit"])
    yield "archid_upload_slots_used", _plain(slots["in_use"])
    yield "archid_uploads_waiting", _plain(slots["waiting"])
    yield "archid_uploads_refused", _plain(slots["refused"])
    storage = status["storage"]
    yield "archid_storage_free_bytes", _plain(storage["free_bytes"])
    yield "archid_storage_size_bytes", _plain(storage["total_bytes"])
    yield "archid_storage_held_bytes", _plain(storage["held_bytes"])
    yield "archid_storage_versions", _plain(storage["trees"])
    if status["role"] == "ice":
        yield from _of_releases(status["deliveries"])


def _of_traffic(status: Json) -> Iterator[tuple[str, Values]]:
    peers, traffic = status["peers"], status["traffic"]
    admitted = [one for one in peers if one["state"] == "admitted"]
    yield "archid_peers", _counted((one["role"], one["direction"]) for one in admitted)
    yield "archid_dials_failing", _plain(len(peers) - len(admitted))
    both = (("in", "received"), ("out", "sent"))
    yield "archid_wire_bytes", [((way,), traffic[f"{did}_bytes"]) for way, did in both]
    yield "archid_gossip_bytes", [((way,), traffic[f"gossip_{did}_bytes"]) for way, did in both]
    sums = {(way, role): 0 for way, _ in both for role in ROLES}
    for node in traffic["nodes"]:
        for way, did in both:
            key = (way, node["role"])
            sums[key] = sums.get(key, 0) + node[f"content_{did}_bytes"]
    yield "archid_content_bytes", sorted(sums.items())


def _of_releases(deliveries: Iterable[Json]) -> Iterator[tuple[str, Values]]:
    shown = list(deliveries)
    yield "archid_releases", _counted((one["state"],) for one in shown)
    # Two releases may share a name; the one that is later in the list starts later.
    present = {one["name"]: one for one in shown if one["state"] not in ("withdrawn", "ended")}
    rows = sorted(present.items())
    yield "archid_release_ready", [((name,), one["state"] in READY) for name, one in rows]
    yield (
        "archid_release_start_timestamp_seconds",
        [((name,), one["start_s"]) for name, one in rows],
    )
    for key, metric in (("size_bytes", "size"), ("held_bytes", "held")):
        yield (
            f"archid_release_{metric}_bytes",
            [((name,), sum(part[key] or 0 for part in one["scripts"])) for name, one in rows],
        )


def _of_fleet(fleet: Json | None) -> Iterator[tuple[str, Values]]:
    if fleet is None:
        return
    nodes = fleet["nodes"]
    yield "archid_fleet_nodes", _counted((node["role"], _health(node)) for node in nodes)
    yield (
        "archid_fleet_releases",
        _counted((one["name"], one["state"]) for node in nodes for one in node["releases"]),
    )


def _health(node: Json) -> str:
    if node["health"] is None:
        return "unknown"
    return "silent" if node["silent"] else str(node["health"])
