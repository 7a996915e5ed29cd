"""A network of its own for one program: what passes its loopback is what the program's ends say.

Both ends run in one network namespace that has nothing but loopback, so that the kernel's own
counter of that device is what went over the wire: all bytes both ways, with the headers of IP and
TCP as packets of up to 64 KiB have them. Control by the harness takes Unix sockets and pipes, which
do not count. Who may not make namespaces measures on the machine's own loopback, and nothing is
counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.fleet.hosts import Host
from tests.fleet.namespaces import (
    PREFIX,
    add_namespace,
    in_namespace,
    remove_namespace,
    run_tool,
    sweep,
    why_not,
)


@dataclass(frozen=True)
class Network:
    """Where both ends of one program run; without a namespace it is the machine's own."""

    namespace: str | None
    address: str = "127.0.0.1"
    """Where its ends listen."""

    @classmethod
    def of(cls, host: Host) -> Network:
        """That of a host which has an address of its own."""
        return cls(host.namespace, host.address)

    @property
    def prefix(self) -> list[str]:
        """What comes before a command for it to run there."""
        return in_namespace(self.namespace)

    def host(self, number: int) -> Host | None:
        """An address for one more daemon; None leaves the choice to others."""
        if self.namespace is None:
            return None
        return Host(self.namespace, f"127.0.{number >> 8}.{number & 0xFF}")

    def passed(self) -> int | None:
        """Bytes that went over the wire so far; None where they cannot be counted."""
        if self.namespace is None:
            return None
        # What is sent over loopback is received once: half of the sum.
        return device_totals(self.namespace, "lo")["bytes"] // 2


def device_totals(namespace: str, device: str) -> dict[str, int]:
    """Bytes and packets that a network device has sent and received."""
    [link] = json.loads(run_tool("ip", "-n", namespace, "-s", "-j", "link", "show", device))
    both = link["stats64"]["rx"], link["stats64"]["tx"]
    return {what: sum(int(way[what]) for way in both) for what in ("bytes", "packets")}


@contextmanager
def network(name: str) -> Iterator[Network]:
    """A network that goes with the block; those that killed runs left go first."""
    if why_not():
        yield Network(None)
        return
    sweep()
    namespace = f"{PREFIX}-{os.getpid()}-bench-{name}"
    try:
        add_namespace(namespace)
        yield Network(namespace)
    finally:
        remove_namespace(namespace)
