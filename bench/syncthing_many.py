"""Syncthing with many destinations: one folder, shared by everybody with everybody.

All are connected beforehand. A round adds a folder at the source, which is told to scan; the time
of a destination runs from when the index reaches it until its database says that it is complete.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.many import Delivery, Layout, together
from bench.measuring import ProcessMeter
from bench.network import Network
from bench.syncthing import FOLDER, Syncthing
from bench.transfer import TransferFailed

MEETING_S: Final = 60.0
STARTED_AT_ONCE: Final = 3


class SyncthingMany:
    """A source that only sends, and destinations that receive and pass on."""

    name = "syncthing"

    def __init__(self, folders: list[Path], nodes: list[Syncthing]) -> None:
        self._folders = folders
        self._nodes = nodes
        self._files = 0
        for number, (node, folder) in enumerate(zip(nodes, folders, strict=True)):
            (folder / ".stfolder").mkdir(parents=True)
            before, after = nodes[:number], nodes[number + 1 :]
            kind = "receiveonly" if before else "sendonly"
            node.configure(folder, kind, [*before, *after], dials=before)
        with ThreadPoolExecutor(STARTED_AT_ONCE) as pool:
            list(pool.map(Syncthing.start, nodes))
        deadline = time.monotonic() + MEETING_S
        for node in nodes:
            while not _meets_all(node, len(nodes) - 1):
                if time.monotonic() > deadline:
                    raise TransferFailed(f"Syncthing's {node.name} does not meet everybody")
                time.sleep(0.2)

    def offer(self, source: Path) -> None:
        """Put links to its files into the folder; it is scanned when it is delivered."""
        self._source = source
        subprocess.run(["cp", "-al", str(source), str(self._folders[0] / source.name)], check=True)
        self._files += sum(path.is_file() for path in source.rglob("*"))

    def deliver(self) -> Delivery:
        """Let the source scan, and follow everybody until they are complete."""
        source, *others = self._nodes
        meters = [ProcessMeter(node.pid) for node in self._nodes]
        since = [node.last_event() for node in others]
        source.post(f"db/scan?folder={FOLDER}")
        with ThreadPoolExecutor(len(others)) as pool:
            waiting = [
                pool.submit(node.wait_complete, self._files, begin)
                for node, begin in zip(others, since, strict=True)
            ]
            seconds = tuple(one.result() for one in waiting)
        return Delivery(seconds, together(meters[:1]), together(meters[1:]))

    def tree(self, place: int) -> Path:
        """Where the files came to stand."""
        return self._folders[1 + place] / self._source.name


def _meets_all(node: Syncthing, others: int) -> bool:
    known = node.get("system/connections")["connections"].values()
    return len([one for one in known if one["connected"]]) == others


@contextmanager
def syncthing_many(base: Path, layout: Layout) -> Iterator[SyncthingMany]:
    """A Syncthing on each host; everything is stopped with the block."""
    base.mkdir(parents=True)
    hosts = {"seed": layout.seed} | {place.name: place.host for place in layout.places}
    with ThreadPoolExecutor(STARTED_AT_ONCE) as pool:
        nodes = list(
            pool.map(
                lambda one: Syncthing(base / f"{one[0]}-home", one[0], Network.of(one[1])),
                hosts.items(),
            )
        )
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.stop)
        yield SyncthingMany([base / name for name in hosts], nodes)
