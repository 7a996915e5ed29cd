"""archid as one side of a comparison: a real central and, for each round, a new real ICE server.

A round publishes once before it, joins a server that holds nothing, applies a release for it, and
takes the time from the moment the server has its leaf, which names the manifest, until the tree
stands: manifest, pieces, spans, verification, sync and rename are all in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from archid.control.client import ControlClient
from archid.errors import ArchidError
from bench.inputs import discard
from bench.measuring import ProcessMeter
from bench.network import Network
from bench.transfer import Transfer, TransferFailed
from tests.fleet.local import FleetNode, LocalFleet, local_fleet

SILENCE_S: Final = 120.0
TIMES: Final = {
    "prefetch": "2026-01-01T00:00:00+01:00",
    "start": "2026-01-02T00:00:00+01:00",
    "end": "2099-01-02T00:00:00+01:00",
}


class ArchidPair:
    """A running central that has published one script."""

    name = "archid"

    def __init__(self, fleet: LocalFleet, source: Path, network: Network) -> None:
        self._fleet = fleet
        self._hosts = 1
        self._versions: dict[Path, dict[str, Any]] = {}
        self.network = network
        self.central = fleet.found(host=network.host(self._hosts))
        for kind in ("sas", "loop"):
            # A release has all three; these two hold one byte each.
            fleet.publish(one_byte(fleet.base / kind), f"bench-{kind}", kind)
        self.publish_s = self.change(source)

    @contextmanager
    def ready(self) -> Iterator[FleetNode]:
        """A server that has joined, runs and holds nothing; it is removed afterwards."""
        self._hosts += 1
        name, host = f"room-{self._hosts}", self.network.host(self._hosts)
        room = str(self._hosts)
        node = self._fleet.join(name, "ice", site="lyon", room=room, kind="salle", host=host)
        node.wait(lambda status: bool(status["peers"]), what="being connected")
        # When something fails its files stay, with the log, and the fleet stops it.
        yield node
        node.process.stop()
        del self._fleet.nodes[name]
        discard(node.folder)

    def transfer(self, node: FleetNode) -> Transfer:
        """Grant the script to the server and follow it until the tree stands."""
        source, destination = (ProcessMeter(one.process.pid) for one in (self.central, node))
        manifest = self.published["manifest"]
        with ControlClient(node.socket).start("events.subscribe", {"prefixes": []}) as events:
            events.limit_silence(SILENCE_S)
            self._apply(node.name)
            at_s: dict[str, float] = {}
            while "tree.placed" not in at_s:
                event = events.next_event()
                if event is None or event["event"] in ("fetch.failed", "alarm"):
                    raise TransferFailed(f"{event}\n{node.process.tail()}")
                if event.get("manifest", manifest) == manifest:
                    at_s.setdefault(event["event"], event["at_s"])
        return Transfer(
            seconds=at_s["tree.placed"] - at_s["leaf.accepted"],
            source=source.read(),
            destination=destination.read(),
        )

    def pid(self, node: FleetNode) -> int:
        """The server's process."""
        return node.process.pid

    def tree(self, node: FleetNode) -> Path:
        """Where the files came to stand."""
        return Path(node.state / "trees" / str(self.published["manifest"]))

    def change(self, source: Path) -> float:
        """Publish it as the next version, or go back to the one that it was published as."""
        began = time.perf_counter()
        if source not in self._versions:
            self._versions[source] = self._fleet.publish(source, "bench-feature", "feature")
        self.published = self._versions[source]
        return time.perf_counter() - began

    def _apply(self, node: str) -> None:
        """Over the control socket: the command's own start would run beside the transfer."""
        definition = "\n".join(
            [
                f'name = "{node}"',
                f'feature = "bench-feature@{self.published["version"]}"',
                *(f'{kind} = "bench-{kind}"' for kind in ("sas", "loop")),
                *(f"{key} = {value}" for key, value in TIMES.items()),
                "[targets]",
                f'nodes = ["{node}"]',
            ]
        )
        try:
            self.central.call(
                "release.apply", definition=definition, filename="bench.toml", sign=True, plan=None
            )
        except ArchidError as error:
            raise TransferFailed(error.sentence) from error


def one_byte(folder: Path) -> Path:
    """The smallest script there can be; a release has one of each kind."""
    folder.mkdir()
    (folder / "empty.led").write_bytes(b".")
    return folder


@contextmanager
def archid_pair(base: Path, source: Path, network: Network) -> Iterator[ArchidPair]:
    """Central with `source` published; everything is stopped with the block."""
    with local_fleet(base) as fleet:
        yield ArchidPair(fleet, source, network)
