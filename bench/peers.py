"""The programs that archid is compared with: how each is opened, and whether it is here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import libtorrent_pair, rsync, servers, syncthing, web
from bench.archid_pair import archid_pair
from bench.network import network
from bench.transfer import Contender, Open

FUZZY: Final = ("--fuzzy", "--delete-after")
"""What is deleted first cannot be taken for similar."""
PEERS: Final[Mapping[str, tuple[Open, Callable[[], bool]]]] = {
    "syncthing": (syncthing.syncthing_pair, syncthing.installed),
    "rsync": (rsync.rsync_daemon, servers.has("rsync")),
    "rsync-fsync": (
        functools.partial(rsync.rsync_daemon, name="rsync-fsync", options=["--fsync"]),
        servers.has("rsync"),
    ),
    "rsync-fuzzy": (
        functools.partial(rsync.rsync_daemon, name="rsync-fuzzy", options=FUZZY),
        servers.has("rsync"),
    ),
    "rsync-ssh": (rsync.rsync_ssh, servers.has("rsync", "ssh", "sshd", "ssh-keygen")),
    "nginx": (web.nginx_curl, servers.has("nginx", "curl", "openssl")),
    "libtorrent": (libtorrent_pair.libtorrent_pair, libtorrent_pair.installed),
    "casync": (web.casync_http, servers.has("casync", "nginx")),
}


def chosen(names: Iterable[str], suited: Iterable[str]) -> tuple[str, ...]:
    """Those of `suited` that were asked for."""
    asked = set(names)
    return tuple(name for name in suited if name in asked)


def installed_peers(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that this machine has (`make bench-peers` installs them)."""
    return tuple(name for name in names if PEERS[name][1]())


@contextmanager
def opened(name: str, base: Path, source: Path) -> Iterator[Contender]:
    """A program that offers `source`, with its files in `base` and a network of its own."""
    start: Open = archid_pair if name == "archid" else PEERS[name][0]
    with network(name) as own, start(base, source, own) as contender:
        yield contender
