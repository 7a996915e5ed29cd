"""Peers that are a server and a command, such as rsync: what they have in common.

The server's CPU is that of its processes, children that have ended included; the client is a
command that begins with nothing in memory.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.inputs import discard
from bench.measuring import ProcessMeter, run_metered
from bench.network import Network
from bench.transfer import Transfer, TransferFailed

START_S: Final = 30.0
STOP_S: Final = 10.0
ADDRESS: Final = "127.0.0.1"
SBIN: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
"""Where servers may be that are no commands for everybody."""


class Server:
    """A server process in the foreground, and the port that says when it is ready."""

    def __init__(self, words: Sequence[str], log: Path, network: Network, port: int) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*network.prefix, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        deadline = time.monotonic() + START_S
        probe = [*network.prefix, "bash", "-c", f": </dev/tcp/{network.address}/{port}"]
        while subprocess.run(probe, capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise TransferFailed(f"{words[0]} did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class CommandPair:
    """One that fetches by a command. Made with the command's words for a source and a place."""

    def __init__(
        self,
        name: str,
        base: Path,
        source: Path,
        network: Network,
        server: Server,
        *,
        offer: Callable[[Path], None],
        fetch: Callable[[Path, Path | None], Sequence[str]],
    ) -> None:
        self.name = name
        self.network = network
        self._base = base
        self._server = server
        self._offer = offer
        self._fetch = fetch
        self._rounds = 0
        self._held: Path | None = None
        self.publish_s = self.change(source)

    @contextmanager
    def ready(self) -> Iterator[Path]:
        """An empty folder; it is removed afterwards, with what came after it."""
        self._rounds += 1
        folder = self._base / f"destination-{self._rounds}"
        folder.mkdir()
        self._held = None
        yield folder
        discard(folder)

    def transfer(self, folder: Path) -> Transfer:
        """Run the command to its end."""
        source = ProcessMeter(self._server.pid)
        words = [*self.network.prefix, *self._fetch(folder, self._held)]
        try:
            destination, seconds = run_metered(words, cwd=folder)
        except subprocess.CalledProcessError as error:
            raise TransferFailed(
                f"{' '.join(words)[:300]} ended with {error.returncode}: {error.output}"
            ) from error
        self._held = self.tree(folder)
        return Transfer(seconds, source.read(), destination)

    def tree(self, folder: Path) -> Path:
        """Where the files came to stand."""
        return folder

    def pid(self, folder: Path) -> int:
        """A command does not rest."""
        raise NotImplementedError(f"{self.name} has no process at the destination {folder}")

    def change(self, source: Path) -> float:
        """Offer this folder instead."""
        began = time.perf_counter()
        self._offer(source)
        return time.perf_counter() - began


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((ADDRESS, 0)) as found:
        port: int = found.getsockname()[1]
    return port


def has(*commands: str) -> Callable[[], bool]:
    """Whether all of these are on this machine."""
    return lambda: all(shutil.which(command, path=SBIN) for command in commands)
