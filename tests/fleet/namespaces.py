"""Network namespaces: made by name, entered, found again, and removed with whatever runs in them.

A name begins with who made it, ``archid-PID-``, so that what a killed run left behind is known by
its dead process and removed by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import Final

TOOLS: Final = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}
PREFIX: Final = "archid"


class NetworkFailed(AssertionError):
    """A tool that makes networks ended otherwise than it should."""


def in_namespace(namespace: str | None) -> list[str]:
    """What is put before a command for it to run in a network namespace."""
    return ["ip", "netns", "exec", namespace] if namespace else []


def run_tool(*words: str, within: str | None = None) -> str:
    """Run one of the tools, in a namespace if one is named; what it printed."""
    done = subprocess.run(
        [*in_namespace(within), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NetworkFailed(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def why_not() -> str | None:
    """Why networks cannot be made here, with the remedy; None where they can."""
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        return f"install as root: apt-get install {' '.join(sorted(missing))}"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    return None


def add_namespace(name: str) -> None:
    """Make a network that holds nothing but its loopback."""
    run_tool("ip", "netns", "add", name)
    run_tool("ip", "-n", name, "link", "set", "lo", "up")


def namespaces() -> list[str]:
    """Every namespace that has a name on this machine."""
    listed = json.loads(run_tool("ip", "-j", "netns", "list") or "[]")
    return [one["name"] for one in listed]


def remove_namespace(name: str) -> None:
    """Kill what still runs in it and remove it, with its devices; nothing if there is none."""
    with suppress(NetworkFailed):
        for pid in run_tool("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run_tool("ip", "netns", "delete", name)


def sweep() -> None:
    """Remove what runs left that were killed."""
    for name in namespaces():
        prefix, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if prefix == PREFIX and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            remove_namespace(name)
