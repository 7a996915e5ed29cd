"""archid as one side of a comparison: a real central, REPOs and many real ICE servers.

All have joined, run and are connected before anything is measured. A round publishes new content
before it and applies a release for every site; the time of a server runs from then until its tree
stands: the head, leaf, manifest, spans, verification, sync and rename are all in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from archid.control.client import ControlClient, Conversation
from archid.errors import ArchidError
from bench.many import Delivery, Layout, together
from bench.measuring import ProcessMeter
from bench.transfer import TransferFailed
from tests.fleet.local import FleetNode, LocalFleet, local_fleet

SILENCE_S: Final = 900.0
MEETING_S: Final = 180.0
MOST_NEIGHBOURS: Final = 16
HOLDERS_MET: Final = 2
JOINING_AT_ONCE: Final = 3
TIMES: Final = {
    "prefetch": "2026-01-01T00:00:00+01:00",
    "start": "2026-01-02T00:00:00+01:00",
    "end": "2099-01-02T00:00:00+01:00",
}
KINDS: Final = ("feature", "sas", "loop")


class ArchidMany:
    """A running fleet, laid out as asked."""

    name = "archid"

    def __init__(self, fleet: LocalFleet, layout: Layout, *, fetch_plans: bool) -> None:
        self._fleet = fleet
        self._layout = layout
        self._rounds = 0
        self._log = "fetch_plans = true\n" if fetch_plans else ""
        fleet.found(host=layout.seed, extra=self._log)
        for kind in KINDS[1:]:
            # A release has all three; these two hold one byte each.
            fleet.publish(_one_byte(fleet.base / kind), f"bench-{kind}", kind)
        jobs: list[tuple[str, str, dict[str, Any]]] = [
            (f"repo-{number}", "repo", {"site": "hub", "host": host})
            for number, host in enumerate(layout.repos, 1)
        ]
        jobs += [
            (place.name, "ice",
             {"site": place.site, "room": place.name, "kind": "salle", "host": place.host})
            for place in layout.places
        ]  # fmt: skip
        with ThreadPoolExecutor(JOINING_AT_ONCE) as pool:
            nodes = list(pool.map(self._join, jobs))
        self._repos, self._servers = nodes[: len(layout.repos)], nodes[len(layout.repos) :]
        self._meet()

    def _join(self, job: tuple[str, str, dict[str, Any]]) -> FleetNode:
        name, role, keys = job
        return self._fleet.join(name, role, extra=self._log, **keys)

    def _meet(self) -> None:
        """Return once every server has its holders and the servers of its site."""
        sizes: dict[str, int] = {}
        for place in self._layout.places:
            sizes[place.site] = sizes.get(place.site, 0) + 1
        holders = min(HOLDERS_MET, len(self._layout.holders))
        for place, node in zip(self._layout.places, self._servers, strict=True):
            wanted = holders + min(sizes[place.site] - 1, MOST_NEIGHBOURS)
            node.wait(
                lambda status, wanted=wanted: len(admitted(status)) >= wanted,  # type: ignore[misc]
                what=f"meeting {wanted} others",
                timeout_s=MEETING_S,
            )

    def offer(self, source: Path) -> None:
        """Publish it, and wait until the REPOs have it."""
        self._rounds += 1
        self._script = f"bench-{self._rounds}"
        self.published = self._fleet.publish(source, self._script, "feature")
        trees = len(KINDS) - 1 + self._rounds
        for repo in self._repos:
            repo.wait(
                lambda status: status["storage"]["trees"] >= trees,
                what="replication",
                timeout_s=SILENCE_S,
            )

    def deliver(self) -> Delivery:
        """Apply a release for everybody and follow them until the last tree stands."""
        holders = [ProcessMeter(node.process.pid) for node in (self._fleet.central, *self._repos)]
        meters = [ProcessMeter(node.process.pid) for node in self._servers]
        with ExitStack() as stack:
            listening = [
                stack.enter_context(
                    ControlClient(node.socket).start(
                        "events.subscribe", {"prefixes": ["tree.", "fetch.", "leaf.", "alarm"]}
                    )
                )
                for node in self._servers
            ]
            for events in listening:
                events.limit_silence(SILENCE_S)
            began = time.time()
            self._apply()
            placed = [
                self._placed(node, events)
                for node, events in zip(self._servers, listening, strict=True)
            ]
        return Delivery(tuple(at_s - began for at_s in placed), together(holders), together(meters))

    def _placed(self, node: FleetNode, events: Conversation) -> float:
        manifest = self.published["manifest"]
        while True:
            event = events.next_event()
            if event is None or event["event"] in ("fetch.failed", "alarm"):
                raise TransferFailed(f"{node.name}: {event}\n{node.process.tail()}")
            if event["event"] == "tree.placed" and event["manifest"] == manifest:
                return float(event["at_s"])

    def tree(self, place: int) -> Path:
        """Where the files came to stand."""
        return Path(self._servers[place].state / "trees" / str(self.published["manifest"]))

    def peers(self, place: int) -> Mapping[str, Mapping[str, Any]]:
        """What a destination says of its connections, by name."""
        return {one["name"]: one for one in admitted(self._servers[place].status())}

    def _apply(self) -> None:
        """Over the control socket: the command's own start would run beside the transfer."""
        sites = sorted({place.site for place in self._layout.places})
        definition = "\n".join(
            [
                f'name = "{self._script}"',
                f'feature = "{self._script}"',
                *(f'{kind} = "bench-{kind}"' for kind in KINDS[1:]),
                *(f"{key} = {value}" for key, value in TIMES.items()),
                "[targets]",
                f"sites = [{', '.join(chr(34) + site + chr(34) for site in sites)}]",
            ]
        )
        try:
            self._fleet.central.call(
                "release.apply", definition=definition, filename="bench.toml", sign=True, plan=None
            )
        except ArchidError as error:
            raise TransferFailed(error.sentence) from error


def admitted(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The peers that a node works with."""
    return [one for one in status["peers"] if one["state"] == "admitted"]


def _one_byte(folder: Path) -> Path:
    folder.mkdir()
    (folder / "empty.led").write_bytes(b".")
    return folder


@contextmanager
def archid_many(base: Path, layout: Layout, *, fetch_plans: bool = False) -> Iterator[ArchidMany]:
    """A fleet whose servers are connected; everything is stopped with the block."""
    with local_fleet(base) as fleet:
        yield ArchidMany(fleet, layout, fetch_plans=fetch_plans)
