"""Hosts with networks of their own on this machine: slow lines, cut lines, NAT.

Each host, each cinema's router and the Internet between them is a network namespace; they are
joined by veth pairs, a cinema's servers by a bridge. A line's rate is kept by tc's token buckets at
both ends, addresses are hidden by nft's masquerading, bytes are counted by the kernel. Nothing is
added to the machine's own network, and several of these can be there at once.

Namespaces are removed with the block, and what a killed run left is removed by the next one.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import pytest

PORT: Final = 4777
TOOLS: Final = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}
PREFIX: Final = "archid"
BURST: Final = "64kb"
LATENCY: Final = "100ms"
"""How long a token bucket lets packets wait before it drops them: the router's queue."""

_made = itertools.count(1)


class NetworkFailed(AssertionError):
    """A tool that makes networks ended otherwise than it should."""


@dataclass(frozen=True)
class Host:
    """Where a daemon can run: a namespace and an address in it."""

    namespace: str
    address: str

    @property
    def endpoint(self) -> str:
        """What a daemon there listens on."""
        return f"{self.address}:{PORT}"


class Line:
    """What joins a cinema to the Internet, seen from the cinema's router."""

    def __init__(self, router: str) -> None:
        self._router = router

    def received_bytes(self) -> int:
        """What has come in over it, headers included."""
        return self._counter("rx")

    def sent_bytes(self) -> int:
        """What has gone out over it, headers included."""
        return self._counter("tx")

    def cut(self) -> None:
        """Let nothing pass, without telling anybody."""
        _run("ip", "-n", self._router, "link", "set", "wan", "down")

    def heal(self) -> None:
        """Let everything pass again."""
        _run("ip", "-n", self._router, "link", "set", "wan", "up")
        _run("ip", "-n", self._router, "route", "replace", "default", "via", self.gateway)

    @property
    def gateway(self) -> str:
        """The Internet's end of it."""
        [address] = json.loads(_run("ip", "-n", self._router, "-j", "address", "show", "wan"))
        [own] = [one["local"] for one in address["addr_info"] if one["family"] == "inet"]
        return f"{own.rpartition('.')[0]}.1"

    def _counter(self, direction: str) -> int:
        [link] = json.loads(_run("ip", "-n", self._router, "-s", "-j", "link", "show", "wan"))
        return int(link["stats64"][direction]["bytes"])


class Cinema:
    """A router with a line to the Internet, and a bridge that joins the cinema's servers."""

    def __init__(self, internet: Internet, number: int, *, nat: bool, rate: str) -> None:
        self._internet = internet
        self._number = number
        self._hosts = 0
        self.router = router = internet.namespace(f"router{number}")
        self.line = Line(router)
        self.public_address = f"10.77.{number}.2"
        core = internet.core
        _pair(router, "wan", core, f"line{number}")
        _address(core, f"line{number}", f"10.77.{number}.1/24")
        _address(router, "wan", f"{self.public_address}/24")
        _run("ip", "-n", router, "route", "add", "default", "via", f"10.77.{number}.1")
        _run("ip", "-n", router, "link", "add", "lan", "type", "bridge")
        _address(router, "lan", f"192.168.{number}.1/24")
        _forward(router)
        if nat:  # and the Internet knows no way to these addresses
            _run("nft", "add table ip nat", within=router)
            hook = "type nat hook postrouting priority srcnat;"
            _run("nft", f"add chain ip nat out {{ {hook} }}", within=router)
            _run("nft", 'add rule ip nat out oifname "wan" masquerade', within=router)
        else:
            lan = f"192.168.{number}.0/24"
            _run("ip", "-n", core, "route", "add", lan, "via", self.public_address)
        if rate:
            for namespace, device in ((router, "wan"), (core, f"line{number}")):
                shape = ["tbf", "rate", rate, "burst", BURST, "latency", LATENCY]
                _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *shape)

    def host(self) -> Host:
        """One more server."""
        self._hosts += 1
        namespace = self._internet.namespace(f"ice{self._number}-{self._hosts}")
        _pair(namespace, "eth0", self.router, f"port{self._hosts}")
        _run("ip", "-n", self.router, "link", "set", f"port{self._hosts}", "master", "lan")
        _run("ip", "-n", self.router, "link", "set", f"port{self._hosts}", "up")
        address = f"192.168.{self._number}.{9 + self._hosts}"
        _address(namespace, "eth0", f"{address}/24")
        gateway = f"192.168.{self._number}.1"
        _run("ip", "-n", namespace, "route", "add", "default", "via", gateway)
        return Host(namespace, address)


class Internet:
    """Routes between whatever is joined to it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._namespaces: list[str] = []
        self._joined = 0

    def open(self) -> None:
        """Make what everything else is joined to."""
        self.core = self.namespace("core")
        _forward(self.core)

    def close(self) -> None:
        """Remove all of it; what is in a namespace goes with it."""
        for namespace in reversed(self._namespaces):
            _remove(namespace)

    def namespace(self, name: str) -> str:
        """A network that holds nothing but its loopback."""
        full = f"{self._name}-{name}"
        self._namespaces.append(full)
        _run("ip", "netns", "add", full)
        _run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def cinema(self, *, nat: bool = False, rate: str = "") -> Cinema:
        """One more cinema: `rate` of its line as tc has it, such as ``20mbit``; else no limit."""
        self._joined += 1
        return Cinema(self, self._joined, nat=nat, rate=rate)

    def host(self, *, addresses: int = 1) -> list[Host]:
        """One more host that is joined without a router, with as many addresses as daemons."""
        self._joined += 1
        number = self._joined
        namespace = self.namespace(f"host{number}")
        _pair(namespace, "eth0", self.core, f"line{number}")
        _address(self.core, f"line{number}", f"10.77.{number}.1/24")
        found = [f"10.77.{number}.{2 + one}" for one in range(addresses)]
        for address in found:
            _address(namespace, "eth0", f"{address}/24")
        _run("ip", "-n", namespace, "route", "add", "default", "via", f"10.77.{number}.1")
        return [Host(namespace, address) for address in found]


@contextmanager
def internet() -> Iterator[Internet]:
    """An Internet without anybody; it goes with the block, whatever happened."""
    require_tools()
    _sweep()
    made = Internet(f"{PREFIX}-{os.getpid()}-{next(_made)}")
    try:
        made.open()
        yield made
    finally:
        made.close()


def require_tools() -> None:
    """Skip the test, visibly, where networks cannot be made; CI installs what is needed."""
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        pytest.skip(f"install as root: apt-get install {' '.join(sorted(missing))}")
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")


def namespaces() -> list[str]:
    """Every namespace that has a name on this machine."""
    listed = json.loads(_run("ip", "-j", "netns", "list") or "[]")
    return [one["name"] for one in listed]


def _sweep() -> None:
    """Remove what runs left that were killed."""
    for name in namespaces():
        prefix, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if prefix == PREFIX and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            _remove(name)


def _remove(namespace: str) -> None:
    with suppress(NetworkFailed):  # one that was never made
        _run("ip", "netns", "delete", namespace)


def _pair(one: str, device: str, other: str, peer: str) -> None:
    _run("ip", "link", "add", device, "netns", one, "type", "veth",
         "peer", "name", peer, "netns", other)  # fmt: skip


def _address(namespace: str, device: str, address: str) -> None:
    _run("ip", "-n", namespace, "address", "add", address, "dev", device)
    _run("ip", "-n", namespace, "link", "set", device, "up")


def _forward(namespace: str) -> None:
    _run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward", within=namespace)


def _run(*words: str, within: str | None = None) -> str:
    """Run one of the tools, in a namespace if one is named; what it printed."""
    prefix = ["ip", "netns", "exec", within] if within else []
    done = subprocess.run([*prefix, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkFailed(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done.stdout
