"""Syncthing as one side of a comparison, from Debian's package, told to be alone.

Both ends have static loopback addresses; discovery, relays, NAT traversal, reporting and its own
low priority are off. As with archid the source has scanned before, and the time runs from the
moment the two are connected until the destination's database says that it has everything.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bench.inputs import discard
from bench.measuring import ProcessMeter
from bench.network import Network
from bench.servers import free_port
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


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, so that questions are no traffic."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Syncthing:
    """One Syncthing process with its own home, loopback port and control socket."""

    def __init__(self, home: Path, name: str, network: Network) -> None:
        self.home = home
        self.name = name
        self._network = network
        self.listens_on = f"tcp://{network.address}:{free_port()}"
        self._api = home.with_suffix(".sock")
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

    @property
    def running(self) -> bool:
        return self._process is not None

    def configure(
        self, folder: Path, kind: str, peers: Sequence[Syncthing], *, dials: Collection[Syncthing]
    ) -> None:
        """Write config.xml: one folder, shared with `peers`, of which it dials some.

        Where both ends dial, one of two connections is dropped, and it may take them half a
        minute to agree on another, or for good over a line that is long and loses packets.
        """
        devices = "".join(
            f"""<device id="{one.device}" name="{one.name}" compression="never">
                <address>{one.listens_on if one in dials else "dynamic"}</address></device>"""
            for one in (self, *peers)
        )
        shared = "".join(f'<device id="{one.device}"/>' for one in (self, *peers))
        (self.home / "config.xml").write_text(
            f"""<configuration version="35">
            <folder id="{FOLDER}" path="{folder}" type="{kind}" rescanIntervalS="0"
                fsWatcherEnabled="false">{shared}<minDiskFree unit="%">0</minDiskFree></folder>
            {devices}
            <gui enabled="true"><address>{self._api}</address>
                <apikey>{API_KEY}</apikey></gui>
            <options>
                <listenAddress>{self.listens_on}</listenAddress>
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
                [*self._network.prefix, "syncthing", "serve", f"--home={self.home}",
                 "--no-browser", "--no-restart"],
                stdout=log,
                stderr=log,
                env={**os.environ, "STNOUPGRADE": "1"},
            )  # fmt: skip
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
        return json.loads(self._ask("GET", path, timeout_s))

    def post(self, path: str, timeout_s: float = TRANSFER_S) -> None:
        """One order over the REST interface."""
        self._ask("POST", path, timeout_s)

    def _ask(self, method: str, path: str, timeout_s: float) -> bytes:
        connection = _UnixConnection(self._api, timeout_s)
        try:
            connection.request(method, f"/rest/{path}", headers={"X-API-Key": API_KEY})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise TransferFailed(f"Syncthing answered {answer.status}: {body[:200]!r}")
        return body

    def wait_scanned(self, files: int) -> None:
        """Return when the first scan is done."""
        deadline = time.monotonic() + TRANSFER_S
        while time.monotonic() < deadline:
            found = self.get(f"db/status?folder={FOLDER}")
            if found["state"] == "idle" and found["localFiles"] == files:
                return
            time.sleep(0.1)
        raise TransferFailed(f"Syncthing did not scan its folder, see {self._log}")

    def last_event(self) -> int:
        """The number of the newest event there is."""
        return max(
            (event["id"] for event in self.get("events?since=0&limit=1&timeout=0")), default=0
        )

    def wait_complete(self, files: int, since: int) -> float:
        """Seconds from being connected until everything is here, by events after `since`.

        What comes first is the exchange of indexes: it is Syncthing's manifest, and counts.
        """
        deadline = time.monotonic() + TRANSFER_S
        connected: float | None = None
        began: float | None = None
        idle: float | None = None
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
                if event["type"] == "DeviceConnected":
                    connected = at_s
                elif event["type"] == "RemoteIndexUpdated" and began is None:
                    began = connected if connected is not None else at_s
                elif event["type"] == "StateChanged" and began is not None:
                    # Idle before it began is idle with the version before.
                    done = event["data"]["from"].startswith("sync")
                    idle = at_s if event["data"]["to"] == "idle" and done else None
            if began is not None and idle is not None:
                found = self.get(f"db/status?folder={FOLDER}")
                if found["globalFiles"] == files and found["needTotalItems"] == 0:
                    return idle - began
                time.sleep(POLL_S)
        raise TransferFailed(f"Syncthing did not get everything, see {self._log}")


class SyncthingPair:
    """A running source that has scanned; each round has a new, empty destination.

    It owns the folder that it offers, so it gets links to the source's files in one of its own. For
    a new version the two are disconnected until the source has scanned it.
    """

    name = "syncthing"

    def __init__(self, base: Path, source: Path, network: Network) -> None:
        self._base = base
        self._rounds = 0
        self._offered = base / "offered"
        self.network = network
        self._source = Syncthing(base / "source-home", "source", network)
        self._destination = Syncthing(base / "destination-home", "destination", network)
        self._source.configure(self._offered, "sendonly", [self._destination], dials=())
        began = time.perf_counter()
        self._link(source)
        self._source.start()
        self._source.wait_scanned(self.files)
        self.publish_s = time.perf_counter() - began

    def _link(self, source: Path) -> None:
        if self._offered.exists():
            shutil.rmtree(self._offered)
        subprocess.run(["cp", "-al", str(source), str(self._offered)], check=True)
        (self._offered / ".stfolder").mkdir()  # Syncthing marks the folders that it owns
        # It counts links apart.
        self.files = sum(one.is_file() and not one.is_symlink() for one in source.rglob("*"))

    @contextmanager
    def ready(self) -> Iterator[Path]:
        """An empty destination, not yet started; it is removed afterwards."""
        self._rounds += 1
        folder = self._base / f"destination-{self._rounds}"
        (folder / ".stfolder").mkdir(parents=True)
        for index in self._destination.home.glob("index-*"):
            shutil.rmtree(index)
        self._destination.configure(folder, "receiveonly", [self._source], dials=[self._source])
        try:
            yield folder
        finally:
            self._destination.stop()
            discard(folder)

    def transfer(self, folder: Path) -> Transfer:  # noqa: ARG002 - every contender is given its place
        """Let the two connect, and follow the destination until it is complete."""
        source = ProcessMeter(self._source.pid)
        since = self._destination.last_event() if self._destination.running else 0
        if not self._destination.running:
            self._destination.start()
        destination = ProcessMeter(self._destination.pid)
        if since:
            self._destination.post(f"system/resume?device={self._source.device}")
        seconds = self._destination.wait_complete(self.files, since)
        return Transfer(seconds, source.read(), destination.read())

    def tree(self, folder: Path) -> Path:
        """Where the files came to stand."""
        return folder

    def pid(self, folder: Path) -> int:  # noqa: ARG002 - there is one destination at a time
        """The destination's process."""
        return self._destination.pid

    def change(self, source: Path) -> float:
        """Put this in place of what is offered, and scan it, while nobody is connected."""
        if self._destination.running:
            self._destination.post(f"system/pause?device={self._source.device}")
        self._link(source)
        began = time.perf_counter()
        self._source.post(f"db/scan?folder={FOLDER}")
        self._source.wait_scanned(self.files)
        return time.perf_counter() - began

    def stop(self) -> None:
        self._source.stop()
        self._destination.stop()


@contextmanager
def syncthing_pair(base: Path, source: Path, network: Network) -> Iterator[SyncthingPair]:
    """A source that has scanned `source`; everything is stopped with the block."""
    base.mkdir()
    pair = SyncthingPair(base, source, network)
    try:
        yield pair
    finally:
        pair.stop()


def seconds_of(text: str) -> float:
    """A time as Go writes it (RFC 3339); of its nanoseconds microseconds are kept."""
    kept = re.sub(r"\.(\d+)", lambda found: f".{found[1][:6]:0<6}", text)
    return datetime.fromisoformat(kept).timestamp()
