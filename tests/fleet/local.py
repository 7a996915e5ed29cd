"""A whole fleet on this machine: every node a real process with its own state and address.

Each fleet takes a /24 of the loopback range of its own (Linux answers on all of 127.0.0.0/8), so
that nodes keep the default port, look like hosts, and several fleets can run at once. Nodes are
made, joined and run, and scripts published, as a person would: with the `archid` command. What is
asked of a running daemon goes over its control socket, as from the command, without a process for
each question: starting those took most of the time of all tests.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archid.control.client import ControlClient
from archid.errors import ArchidError
from tests.fleet.hosts import Host
from tests.fleet.namespaces import in_namespace
from tests.fleet.process import DaemonProcess

PASSPHRASE = "a passphrase for a fleet of tests"
EVENT_TIMEOUT_S = 60.0
TOKEN_LIFETIME_S = 7 * 86400
SUBNETS = 32_000

_made = itertools.count()


class CommandFailed(AssertionError):
    """An `archid` command ended with another exit code than it should."""

    def __init__(self, args: Sequence[str], code: int, out: str, err: str) -> None:
        super().__init__(f"archid {' '.join(args)} ended with {code}\n{out}\n{err}")
        self.code = code
        self.out = out
        self.err = err


class FleetNode:
    """One node: its files, its process, its commands."""

    def __init__(
        self,
        base: Path,
        name: str,
        role: str,
        address: str,
        *,
        peers: Sequence[str] = (),
        extra: str = "",
        network_namespace: str | None = None,
        env: Mapping[str, str] | None = None,
        advertise: str = "",
    ) -> None:
        self.advertise = advertise or address
        self.env = dict(env or {})
        self.network_namespace = network_namespace
        self.name = name
        self.role = role
        self.address = address
        self.folder = base / name
        self.state = self.folder / "state"
        self.scripts = self.folder / "scripts"
        self.socket = self.folder / "control.sock"
        self.config = self.folder / "archid.toml"
        self.log = self.folder / "daemon.log"
        self.extra = extra
        self.storage = ""
        """More keys of [storage], for the next `write_config`."""
        self.peers = tuple(peers)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_config()
        self.process = DaemonProcess(self.config, self.log, self.env, namespace=network_namespace)

    def write_config(self) -> None:
        """Write archid.toml; what is in `extra` and `storage` is added as it is."""
        listing = ", ".join(f'"{peer}"' for peer in self.peers)
        self.config.write_text(
            f"""version = 1
[node]
role = "{self.role}"
name = "{self.name}"
[network]
listen = ["{self.address}"]
advertise = ["{self.advertise}"]
peers = [{listing}]
[storage]
state = "{self.state}"
scripts = "{self.scripts}"
keep_free = "16MiB"
{self.storage}
[control]
socket = "{self.socket}"
group = ""
admin_group = ""
[log]
format = "json"
{self.extra}"""
        )

    # Commands

    def command(self, *args: str | bytes) -> list[str | bytes]:
        """The words of `archid --config ... ARGS`."""
        words = [sys.executable, "-m", "archid", "--config", str(self.config)]
        return [*in_namespace(self.network_namespace), *words, *args]

    def run(
        self,
        *args: str,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """`archid --config ... ARGS`; raises CommandFailed unless it ends with 0."""
        done = subprocess.run(
            self.command(*args),
            capture_output=True,
            text=True,
            input=stdin,
            timeout=timeout_s,
            check=False,
            env={**os.environ, **self.env},
        )
        if check and done.returncode:
            raise CommandFailed(args, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *args: str) -> Any:
        """The same with ``--json``, decoded."""
        return json.loads(self.run("--json", *args).stdout)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One request over the control socket."""
        return ControlClient(self.socket).call(method, params)

    def status(self) -> dict[str, Any]:
        return self.call("status")

    # Waiting

    def wait(
        self,
        condition: Callable[[dict[str, Any]], bool],
        *,
        what: str,
        timeout_s: float = EVENT_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Return the status as soon as `condition` holds, looking again at every event."""
        deadline = time.monotonic() + timeout_s
        with ControlClient(self.socket).start("events.subscribe", {"prefixes": []}) as events:
            status: dict[str, Any] = {}
            while (left_s := deadline - time.monotonic()) > 0:
                events.limit_silence(left_s)
                try:
                    if events.next_event() is None:
                        break
                except ArchidError:
                    break
                status = self.status()
                if condition(status):
                    return status
        raise AssertionError(
            f"{self.name}: {what} did not happen within {timeout_s:g} s\n"
            f"{json.dumps(status, indent=1)}\n{self.process.tail()}"
        )

    def wait_active(self, release: str, *, generation: int = 1, timeout_s: float = 120.0) -> None:
        """Return when the release is switched to on this node."""
        self.wait(
            lambda status: any(
                one["name"] == release
                and one["state"] == "active"
                and one["generation"] >= generation
                for one in status["deliveries"]
            ),
            what=f"release {release} becoming active",
            timeout_s=timeout_s,
        )

    # Files

    def release_file(self, release: str, path: str) -> Path:
        """A file as the player finds it."""
        return self.scripts / "releases" / release / path

    def remove(self) -> None:
        for parent, _, _ in os.walk(self.folder):
            os.chmod(parent, 0o700)
        shutil.rmtree(self.folder)


@dataclass
class LocalFleet:
    """Central and whatever joins it."""

    base: Path
    subnet: str
    nodes: dict[str, FleetNode] = field(default_factory=dict)
    _next_host: int = 1

    def address(self) -> str:
        """The next free address."""
        self._next_host += 1
        return f"{self.subnet}.{self._next_host}:4777"

    @property
    def central(self) -> FleetNode:
        return self.nodes["central"]

    def found(
        self,
        *,
        extra: str = "",
        start: bool = True,
        advertise: str = "",
        host: Host | None = None,
    ) -> FleetNode:
        """Make the fleet; central runs afterwards. It may advertise another address."""
        node = FleetNode(
            self.base,
            "central",
            "central",
            host.endpoint if host else self.address(),
            extra=extra,
            advertise=advertise,
            network_namespace=host.namespace if host else None,
        )
        self.nodes["central"] = node
        secret = node.folder / "passphrase"
        secret.write_text(PASSPHRASE + "\n")
        secret.chmod(0o600)
        keys = self.base / "root-keys"
        node.run("init", "test fleet", "--root-keys", str(keys), "--passphrase-file", str(secret))
        if start:
            node.process.start()
        return node

    def token(self, name: str, role: str, *, site: str = "", room: str = "", kind: str = "") -> str:
        """What central's operator hands over."""
        made = self.central.call(
            "token.create",
            role=role,
            name=name,
            site=site,
            room=room,
            server_kind=kind,
            lifetime_s=TOKEN_LIFETIME_S,
        )
        token: str = made["token"]
        return token

    def join(
        self,
        name: str,
        role: str,
        *,
        site: str = "",
        room: str = "",
        kind: str = "",
        peers: Sequence[str] = (),
        extra: str = "",
        start: bool = True,
        env: Mapping[str, str] | None = None,
        host: Host | None = None,
        advertise: str = "",
    ) -> FleetNode:
        """Add a node: token, join, start. `env` is for its daemon and its commands.

        It may advertise another address than the one it listens on.
        """
        node = FleetNode(
            self.base,
            name,
            role,
            host.endpoint if host else self.address(),
            peers=peers,
            extra=extra,
            env=env,
            network_namespace=host.namespace if host else None,
            advertise=advertise,
        )
        self.nodes[name] = node
        token = self.token(name, role, site=site, room=room, kind=kind)
        node.run("join", "-", stdin=token + "\n")
        if start:
            node.process.start()
        return node

    def publish(self, folder: Path, script: str, kind: str) -> dict[str, Any]:
        """Publish on central; returns the command's JSON."""
        result: dict[str, Any] = self.central.json(
            "publish", str(folder), "--script", script, "--kind", kind
        )
        return result

    def apply(self, name: str, *, scripts: dict[str, str], **keys: str) -> dict[str, Any]:
        """Apply a release whose other keys are given as TOML text."""
        lines = [f'name = "{name}"', *(f'{kind} = "{one}"' for kind, one in scripts.items())]
        targets = {key: keys.pop(key) for key in ("sites", "rooms", "nodes") if key in keys}
        lines += [f"{key} = {value}" for key, value in keys.items()]
        lines += ["[targets]", *(f"{key} = {value}" for key, value in targets.items())]
        asked = {"definition": "\n".join(lines) + "\n", "filename": f"{name}.toml"}
        plan = self.central.call("release.apply", **asked, sign=False, plan=None)
        if plan["action"] == "none":
            return plan
        return self.central.call("release.apply", **asked, sign=True, plan=plan["plan"])

    def stop(self) -> None:
        """End every process that still runs; the first failure to stop is raised at the end."""
        failure: Exception | None = None
        for node in self.nodes.values():
            if node.process.running:
                try:
                    node.process.stop()
                except Exception as error:  # noqa: BLE001 - the others must be stopped too
                    failure = failure or error
        if failure is not None:
            raise failure


@contextmanager
def local_fleet(base: Path, *, number: int | None = None) -> Iterator[LocalFleet]:
    """An empty fleet in `base`; its processes are ended with the block."""
    if number is None:  # apart from other processes' fleets and from earlier ones of this one
        number = os.getpid() + 7919 * next(_made)
    number %= SUBNETS
    fleet = LocalFleet(base, f"127.{64 + number // 250}.{1 + number % 250}")
    try:
        yield fleet
    finally:
        fleet.stop()
