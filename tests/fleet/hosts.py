"""Hosts with networks of their own on this machine: slow lines, long lines, cut lines, NAT.

Each host, each cinema's router and the Internet between them is a network namespace; they are
joined by lines (`tests.fleet.lines`), a cinema's servers by a bridge. Addresses are hidden by nft's
masquerading, bytes are counted by the kernel. Nothing is added to the machine's own network, and
several of these can be there at once.

Namespaces are removed with the block, and what a killed run left is removed by the next one.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from tests.fleet.lines import End, LineShape, Wire, add_address, add_pair, join
from tests.fleet.namespaces import (
    PREFIX,
    NetworkFailed,
    add_namespace,
    remove_namespace,
    run_tool,
    sweep,
    why_not,
)

PORT: Final = 4777
WITHOUT_LIMIT: Final = LineShape()

_made = itertools.count(1)


@dataclass(frozen=True)
class Host:
    """Where a daemon can run: a namespace and an address in it."""

    namespace: str
    address: str

    @property
    def endpoint(self) -> str:
        """What a daemon there listens on."""
        return f"{self.address}:{PORT}"

    @property
    def line(self) -> End:
        """Its own end of what joins it to anything else, which counts its bytes."""
        return End(self.namespace, "eth0")


class Line:
    """What joins a cinema to the Internet, seen from the cinema's router."""

    def __init__(self, router: str) -> None:
        self._router = router
        self._end = End(router, "wan")

    def received_bytes(self) -> int:
        """What has come in over it, headers included."""
        return self._end.received_bytes()

    def sent_bytes(self) -> int:
        """What has gone out over it, headers included."""
        return self._end.sent_bytes()

    def cut(self) -> None:
        """Let nothing pass, without telling anybody."""
        run_tool("ip", "-n", self._router, "link", "set", "wan", "down")

    def heal(self) -> None:
        """Let everything pass again."""
        run_tool("ip", "-n", self._router, "link", "set", "wan", "up")
        run_tool("ip", "-n", self._router, "route", "replace", "default", "via", self.gateway)

    @property
    def gateway(self) -> str:
        """The Internet's end of it."""
        [address] = json.loads(run_tool("ip", "-n", self._router, "-j", "address", "show", "wan"))
        [own] = [one["local"] for one in address["addr_info"] if one["family"] == "inet"]
        return f"{own.rpartition('.')[0]}.1"


class Cinema:
    """A router with a line to the Internet, and a bridge that joins the cinema's servers."""

    def __init__(self, internet: Internet, number: int, *, nat: bool, shape: LineShape) -> None:
        self._internet = internet
        self._number = number
        self._hosts = 0
        self.router = router = internet.namespace(f"router{number}")
        self.line = Line(router)
        self.public_address = f"10.77.{number}.2"
        core = internet.core
        internet.join(End(router, "wan"), End(core, f"line{number}"), number, shape)
        run_tool("ip", "-n", router, "link", "add", "lan", "type", "bridge")
        add_address(End(router, "lan"), f"192.168.{number}.1/24")
        _forward(router)
        if nat:  # and the Internet knows no way to these addresses
            run_tool("nft", "add table ip nat", within=router)
            hook = "type nat hook postrouting priority srcnat;"
            run_tool("nft", f"add chain ip nat out {{ {hook} }}", within=router)
            run_tool("nft", 'add rule ip nat out oifname "wan" masquerade', within=router)
        else:
            lan = f"192.168.{number}.0/24"
            run_tool("ip", "-n", core, "route", "add", lan, "via", self.public_address)

    def host(self) -> Host:
        """One more server."""
        self._hosts += 1
        namespace = self._internet.namespace(f"ice{self._number}-{self._hosts}")
        host = Host(namespace, f"192.168.{self._number}.{9 + self._hosts}")
        port = f"port{self._hosts}"
        add_pair(host.line, End(self.router, port))
        run_tool("ip", "-n", self.router, "link", "set", port, "master", "lan", "up")
        add_address(host.line, f"{host.address}/24")
        gateway = f"192.168.{self._number}.1"
        run_tool("ip", "-n", namespace, "route", "add", "default", "via", gateway)
        return host


class Internet:
    """Routes between whatever is joined to it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._namespaces: list[str] = []
        self._wires: list[Wire] = []
        self._joined = 0

    def open(self) -> None:
        """Make what everything else is joined to."""
        self.core = self.namespace("core")
        _forward(self.core)

    def close(self) -> None:
        """Remove all of it; what is in a namespace goes with it."""
        for wire in self._wires:
            wire.close()
        for namespace in reversed(self._namespaces):
            remove_namespace(namespace)

    def namespace(self, name: str) -> str:
        """A network that holds nothing but its loopback."""
        full = f"{self._name}-{name}"
        self._namespaces.append(full)
        add_namespace(full)
        return full

    def join(self, near: End, far: End, number: int, shape: LineShape) -> None:
        """A line from `near` to `far`, which is the Internet's end, with the way to everywhere."""
        if wire := join(near, far, shape):
            self._wires.append(wire)
        add_address(far, f"10.77.{number}.1/24")
        add_address(near, f"10.77.{number}.2/24")
        gateway = f"10.77.{number}.1"
        run_tool("ip", "-n", near.namespace, "route", "add", "default", "via", gateway)

    def cinema(self, *, nat: bool = False, shape: LineShape = WITHOUT_LIMIT) -> Cinema:
        """One more cinema, behind such a line."""
        self._joined += 1
        return Cinema(self, self._joined, nat=nat, shape=shape)

    def host(self, *, addresses: int = 1, shape: LineShape = WITHOUT_LIMIT) -> list[Host]:
        """One more host that is joined without a router, with as many addresses as daemons."""
        self._joined += 1
        number = self._joined
        namespace = self.namespace(f"host{number}")
        hosts = [Host(namespace, f"10.77.{number}.{2 + one}") for one in range(addresses)]
        self.join(hosts[0].line, End(self.core, f"line{number}"), number, shape)
        for host in hosts[1:]:
            add_address(host.line, f"{host.address}/24")
        return hosts


@contextmanager
def internet() -> Iterator[Internet]:
    """An Internet without anybody; it goes with the block, whatever happened."""
    if reason := why_not():
        raise NetworkFailed(reason)
    sweep()
    made = Internet(f"{PREFIX}-{os.getpid()}-{next(_made)}")
    try:
        made.open()
        yield made
    finally:
        made.close()


def require_tools() -> None:
    """Skip the test, visibly, where networks cannot be made; CI installs what is needed."""
    if reason := why_not():
        pytest.skip(reason)


def _forward(namespace: str) -> None:
    run_tool("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward", within=namespace)
