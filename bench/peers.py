"""The programs that archid is compared with: how each is opened, and whether it is here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from bench import syncthing
from bench.transfer import Contender

Open = Callable[[Path, Path], AbstractContextManager[Contender]]

PEERS: Final[Mapping[str, tuple[Open, Callable[[], bool]]]] = {
    "syncthing": (syncthing.syncthing_pair, syncthing.installed),
}


def installed_peers(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that this machine has (`make bench-peers` installs them)."""
    return tuple(name for name in names if PEERS[name][1]())


def opened(name: str, base: Path, source: Path) -> AbstractContextManager[Contender]:
    """A peer that offers `source`, with its files in `base`."""
    return PEERS[name][0](base, source)
