"""libtorrent with many destinations: a torrent for each round, everybody told of everybody else.

Discovery is off as for the pair; who is told of the torrent dials all others once a second, so that
everybody is connected to everybody within the first second. All seed on until the last one is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.libtorrent_pair import LibtorrentNode
from bench.many import Delivery, Layout, together
from bench.measuring import ProcessMeter
from bench.network import Network


class LibtorrentMany:
    """A seed and a session at each destination."""

    name = "libtorrent"

    def __init__(self, base: Path, seed: LibtorrentNode, others: list[LibtorrentNode]) -> None:
        self._base = base
        self._seed = seed
        self._others = others

    def offer(self, source: Path) -> None:
        """Hash it and seed it; nobody else knows of it yet."""
        self._source = source
        self._torrent = self._base / f"{source.name}.torrent"
        for node in (self._seed, *self._others):
            node.tell(forget=True)
        self._seed.tell(make=str(source), torrent=str(self._torrent))
        self._seed.tell(seed=str(source), torrent=str(self._torrent))

    def deliver(self) -> Delivery:
        """Give everybody the torrent at the same time."""
        source = [ProcessMeter(self._seed.pid)]
        meters = [ProcessMeter(node.pid) for node in self._others]
        everybody = (self._seed, *self._others)

        def fetch(place: int) -> float:
            node = self._others[place]
            done = node.tell(
                fetch=str(self.tree(place)),
                torrent=str(self._torrent),
                peers=[other.place for other in everybody if other is not node],
            )
            return float(done["seconds"])

        with ThreadPoolExecutor(len(self._others)) as pool:
            seconds = tuple(pool.map(fetch, range(len(self._others))))
        return Delivery(seconds, together(source), together(meters))

    def tree(self, place: int) -> Path:
        """Where the files came to stand."""
        return self._base / f"destination-{place}" / self._source.name


@contextmanager
def libtorrent_many(base: Path, layout: Layout) -> Iterator[LibtorrentMany]:
    """A session on each host; everything is stopped with the block."""
    base.mkdir(parents=True)
    with ExitStack() as stack:

        def node(name: str, network: Network) -> LibtorrentNode:
            made = LibtorrentNode(base / f"{name}.log", network)
            stack.callback(made.stop)
            return made

        seed = node("seed", Network.of(layout.seed))
        others = []
        for number, place in enumerate(layout.places):
            (base / f"destination-{number}").mkdir()
            others.append(node(place.name, Network.of(place.host)))
        yield LibtorrentMany(base, seed, others)
