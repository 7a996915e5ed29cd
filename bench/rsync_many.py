"""rsync's daemon with any number of destinations, each of which runs the command by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.many import Delivery, Layout
from bench.measuring import ProcessMeter, Usage, run_metered
from bench.network import Network
from bench.servers import Server, free_port
from bench.transfer import TransferFailed


class RsyncMany:
    """A daemon that sends in the clear."""

    name = "rsync"

    def __init__(self, base: Path, layout: Layout, server: Server, url: str) -> None:
        self._base = base
        self._layout = layout
        self._server = server
        self._url = url

    def offer(self, source: Path) -> None:
        """The daemon offers every round's folder."""
        self._source = source

    def deliver(self) -> Delivery:
        """Run all commands at once, to their ends."""
        source = ProcessMeter(self._server.pid)
        with ThreadPoolExecutor(len(self._layout.places)) as pool:
            done = list(pool.map(self._fetch, range(len(self._layout.places))))
        used = [usage for usage, _ in done]
        return Delivery(
            tuple(seconds for _, seconds in done),
            source.read(),
            Usage(sum(one.cpu_s for one in used), max(one.peak_mb for one in used)),
        )

    def _fetch(self, place: int) -> tuple[Usage, float]:
        network = Network.of(self._layout.places[place].host)
        folder = self.tree(place)
        folder.mkdir(parents=True)
        words = [*network.prefix, "rsync", "-a", f"{self._url}{self._source.name}/", f"{folder}/"]
        try:
            return run_metered(words)
        except subprocess.CalledProcessError as error:
            raise TransferFailed(f"rsync ended with {error.returncode}: {error.output}") from error

    def tree(self, place: int) -> Path:
        """Where the files came to stand."""
        return self._base / f"destination-{place}" / self._source.name


@contextmanager
def rsync_many(base: Path, layout: Layout) -> Iterator[RsyncMany]:
    """The daemon at the source; it is stopped with the block."""
    base.mkdir(parents=True)
    network, port = Network.of(layout.seed), free_port()
    config = base / "rsyncd.conf"
    config.write_text(
        f"use chroot = no\nlog file = {base}/rsyncd.log\nreverse lookup = no\n"
        f"[bench]\npath = {base.parent}/sources\nread only = yes\n"
        f"uid = {os.getuid()}\ngid = {os.getgid()}\n"
    )
    words = ["rsync", "--daemon", "--no-detach", f"--config={config}",
             f"--address={network.address}", f"--port={port}"]  # fmt: skip
    server = Server(words, base / "server.log", network, port)
    try:
        yield RsyncMany(base, layout, server, f"rsync://{network.address}:{port}/bench/")
    finally:
        server.stop()
