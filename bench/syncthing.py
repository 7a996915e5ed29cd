"""Syncthing as one side of a comparison, from Debian's package, told to be alone.

Both ends have static loopback addresses; discovery, relays, NAT traversal, reporting and its own
low priority are off. As with archid the source has scanned before, and the time runs from the
moment the destination has the source's index until its database says that it has everything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bench.measuring import ProcessMeter
from bench.transfer import Transfer, TransferFailed

API_KEY: Final = "bench"
FOLDER: Final = "bench"
READY_S: Final = 60.0
TRANSFER_S: Final = 900.0
EVENT_WAIT_S: Final = 30
POLL_S: Final = 0.05


def installed() -> bool:
    """Whether there is a syncthing to compare with."""
    return shutil.which("syncthing") is not None


class Syncthing:
    """One Syncthing process with its own home and its own loopback ports."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        self.listen_port, self.api_port = _free_ports(2)
        self._log = home.with_suffix(".log")
        subprocess.run(
            ["syncthing", "generate", f"--home={home}", "--no-default-folder"],
            check=True,
            capture_output=True,
        )
        self.device = subprocess.run(
            ["syncthing", "serve", f"--home={home}", "--device-id"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def configure(self, folder: Path, kind: str, peers: Sequence[Syncthing]) -> None:
        """Write config.xml: one folder, shared with `peers`."""
        devices = "".join(
            f"""<device id="{one.device}" name="{one.name}" compression="never">
                <address>tcp://127.0.0.1:{one.listen_port}</address></device>"""
            for one in (self, *peers)
        )
        shared = "".join(f'<device id="{one.device}"/>' for one in (self, *peers))
        (self.home / "config.xml").write_text(
            f"""<configuration version="35">
            <folder id="{FOLDER}" path="{folder}" type="{kind}" rescanIntervalS="0"
                fsWatcherEnabled="false">{shared}<minDiskFree unit="%">0</minDiskFree></folder>
            {devices}
            <gui enabled="true"><address>127.0.0.1:{self.api_port}</address>
                <apikey>{API_KEY}</apikey></gui>
            <options>
                <listenAddress>tcp://127.0.0.1:{self.listen_port}</listenAddress>
                <globalAnnounceEnabled>false</globalAnnounceEnabled>
                <localAnnounceEnabled>false</localAnnounceEnabled>
                <relaysEnabled>false</relaysEnabled>
                <natEnabled>false</natEnabled>
                <startBrowser>false</startBrowser>
                <urAccepted>-1</urAccepted>
                <crashReportingEnabled>false</crashReportingEnabled>
                <autoUpgradeIntervalH>0</autoUpgradeIntervalH>
                <setLowPriority>false</setLowPriority>
                <reconnectionIntervalS>1</reconnectionIntervalS>
                <stunKeepaliveStartS>0</stunKeepaliveStartS>
            </options></configuration>"""
        )

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["syncthing", "serve", f"--home={self.home}", "--no-browser", "--no-restart"],
                stdout=log,
                stderr=log,
                env={**os.environ, "STNOUPGRADE": "1"},
            )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                self.get("system/ping")
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise TransferFailed(f"Syncthing did not start, see {self._log}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(READY_S)
            self._process = None

    def get(self, path: str, timeout_s: float = 10.0) -> Any:
        """One question over the REST interface."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api_port}/rest/{path}", headers={"X-API-Key": API_KEY}
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return json.load(answer)

    def wait_scanned(self, files: int) -> None:
        """Return when the first scan is done."""
        deadline = time.monotonic() + TRANSFER_S
        while time.monotonic() < deadline:
            found = self.get(f"db/status?folder={FOLDER}")
            if found["state"] == "idle" and found["localFiles"] == files:
                return
            time.sleep(0.1)
        raise TransferFailed(f"Syncthing did not scan its folder, see {self._log}")

    def wait_complete(self, files: int) -> float:
        """Seconds from the peer's index until everything is here."""
        deadline = time.monotonic() + TRANSFER_S
        began: float | None = None
        idle: float | None = None
        since = 0
        while time.monotonic() < deadline:
            # The database may say so a little after the event: then it is asked again.
            wait_s = EVENT_WAIT_S if idle is None else 0
            for event in self.get(
                # All kinds: a chosen few are only kept from the first question on.
                f"events?since={since}&timeout={wait_s}",
                timeout_s=EVENT_WAIT_S + 10,
            ):
                since = event["id"]
                at_s = seconds_of(event["time"])
                if event["type"] == "RemoteIndexUpdated":
                    began = began if began is not None else at_s
                elif event["type"] == "StateChanged" and began is not None:
                    idle = at_s if event["data"]["to"] == "idle" else None
            if began is not None and idle is not None:
                found = self.get(f"db/status?folder={FOLDER}")
                if found["globalFiles"] == files and found["needTotalItems"] == 0:
                    return idle - began
                time.sleep(POLL_S)
        raise TransferFailed(f"Syncthing did not get everything, see {self._log}")


class SyncthingPair:
    """A running source that has scanned; each round has a new, empty destination."""

    name = "syncthing"

    def __init__(self, base: Path, source: Path) -> None:
        self._base = base
        self._rounds = 0
        # It counts links apart.
        self.files = sum(path.is_file() and not path.is_symlink() for path in source.rglob("*"))
        self._source = Syncthing(base / "source-home", "source")
        self._destination = Syncthing(base / "destination-home", "destination")
        # Syncthing marks the folders that it owns.
        (source / ".stfolder").mkdir(exist_ok=True)
        self._source.configure(source, "sendonly", [self._destination])
        begin = time.perf_counter()
        self._source.start()
        self._source.wait_scanned(self.files)
        self.publish_s = time.perf_counter() - begin

    @contextmanager
    def ready(self) -> Iterator[Path]:
        """An empty destination, not yet started; it is removed afterwards."""
        self._rounds += 1
        folder = self._base / f"destination-{self._rounds}"
        (folder / ".stfolder").mkdir(parents=True)
        for index in self._destination.home.glob("index-*"):
            shutil.rmtree(index)
        self._destination.configure(folder, "receiveonly", [self._source])
        try:
            yield folder
        finally:
            self._destination.stop()
            shutil.rmtree(folder)

    def transfer(self, folder: Path) -> Transfer:  # noqa: ARG002 - every contender is given its place
        """Let the two connect, and follow the destination until it is complete."""
        source = ProcessMeter(self._source.pid)
        self._destination.start()
        destination = ProcessMeter(self._destination.pid)
        seconds = self._destination.wait_complete(self.files)
        return Transfer(seconds, source.read(), destination.read())

    def tree(self, folder: Path) -> Path:
        """Where the files came to stand."""
        return folder

    def pid(self, folder: Path) -> int:  # noqa: ARG002 - there is one destination at a time
        """The destination's process."""
        return self._destination.pid

    def stop(self) -> None:
        self._source.stop()
        self._destination.stop()


@contextmanager
def syncthing_pair(base: Path, source: Path) -> Iterator[SyncthingPair]:
    """A source that has scanned `source`; everything is stopped with the block."""
    base.mkdir()
    pair = SyncthingPair(base, source)
    try:
        yield pair
    finally:
        pair.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def seconds_of(text: str) -> float:
    """A time as Go writes it (RFC 3339); of its nanoseconds microseconds are kept."""
    kept = re.sub(r"\.(\d+)", lambda found: f".{found[1][:6]:0<6}", text)
    return datetime.fromisoformat(kept).timestamp()
