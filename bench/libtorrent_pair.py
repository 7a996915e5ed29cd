"""libtorrent as one side of a comparison: two sessions, one torrent, peers connected by hand.

As with the others the source has hashed before. The time is from when the destination is given the
torrent until every piece is here, hashed and written; it checks what it finds, and syncs nothing. A
new version is a new torrent over the same folder.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.inputs import discard
from bench.measuring import ProcessMeter
from bench.network import Network
from bench.servers import free_port
from bench.transfer import Transfer, TransferFailed

PROGRAM = Path(__file__).with_name("libtorrent_node.py")
DEBIANS_PYTHON = "/usr/bin/python3"


@functools.cache
def interpreter() -> str | None:
    """A Python that has libtorrent: the one that runs this, else Debian's."""
    for python in (sys.executable, DEBIANS_PYTHON):
        if shutil.which(python) is None:
            continue
        words = [python, "-c", "import libtorrent"]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return python
    return None


def installed() -> bool:
    """Whether there is a libtorrent to compare with."""
    return interpreter() is not None


class LibtorrentNode:
    """One session in a process of its own."""

    def __init__(self, log: Path, network: Network) -> None:
        python = interpreter()
        assert python is not None, "asked for without being there"
        self.place = (network.address, free_port())
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*network.prefix, python, str(PROGRAM), *map(str, self.place)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
            )  # fmt: skip
        self._log = log
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, **order: Any) -> dict[str, Any]:
        """Give an order and wait until it is carried out."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._log.read_text()}
        if "error" in answer:
            raise TransferFailed(f"libtorrent: {answer['error'][-500:]}")
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class LibtorrentPair:
    """A seed that stays; each round has a new session at the destination."""

    name = "libtorrent"

    def __init__(self, base: Path, source: Path, network: Network) -> None:
        self._base = base
        self._rounds = 0
        self._torrents: dict[Path, Path] = {}
        self.network = network
        self._seed = LibtorrentNode(base / "seed.log", network)
        self.publish_s = self.change(source)

    @contextmanager
    def ready(self) -> Iterator[tuple[LibtorrentNode, Path]]:
        """A session, and an empty folder; both go afterwards."""
        self._rounds += 1
        folder = self._base / f"destination-{self._rounds}"
        folder.mkdir()
        node = LibtorrentNode(self._base / "destination.log", self.network)
        try:
            yield node, folder
        finally:
            node.stop()
            discard(folder)

    def transfer(self, destination: tuple[LibtorrentNode, Path]) -> Transfer:
        """Give it the torrent and the seed's address."""
        node, _ = destination
        node.tell(forget=True)
        meters = ProcessMeter(self._seed.pid), ProcessMeter(node.pid)
        torrent = self._torrents[self._offered]
        done = node.tell(
            fetch=str(self.tree(destination)), torrent=str(torrent), peers=[self._seed.place]
        )
        source, here = (meter.read() for meter in meters)
        return Transfer(done["seconds"], source, here)

    def tree(self, destination: tuple[LibtorrentNode, Path]) -> Path:
        """Where the files came to stand."""
        return destination[1] / self._offered.name

    def pid(self, destination: tuple[LibtorrentNode, Path]) -> int:
        """The destination's process."""
        return destination[0].pid

    def change(self, source: Path) -> float:
        """Seed this folder instead; hashed when it is new."""
        began = time.perf_counter()
        if source not in self._torrents:
            torrent = self._base / f"{len(self._torrents)}.torrent"
            self._seed.tell(make=str(source), torrent=str(torrent))
            self._torrents[source] = torrent
        self._seed.tell(forget=True)
        self._seed.tell(seed=str(source), torrent=str(self._torrents[source]))
        self._offered = source
        return time.perf_counter() - began

    def stop(self) -> None:
        self._seed.stop()


@contextmanager
def libtorrent_pair(base: Path, source: Path, network: Network) -> Iterator[LibtorrentPair]:
    """A seed that has hashed `source`; everything is stopped with the block."""
    base.mkdir()
    pair = LibtorrentPair(base, source, network)
    try:
        yield pair
    finally:
        pair.stop()
