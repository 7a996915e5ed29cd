"""The programs that bring something to many: how each is opened, and whether it is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final

from bench import libtorrent_pair, syncthing
from bench.archid_many import archid_many
from bench.libtorrent_many import libtorrent_many
from bench.many import Layout, Spreader
from bench.measuring import say
from bench.rsync_many import rsync_many
from bench.servers import has
from bench.syncthing_many import syncthing_many
from bench.transfer import TransferFailed

Open = Callable[[Path, Layout], AbstractContextManager[Spreader]]

SPREADERS: Final[Mapping[str, tuple[Open, Callable[[], bool]]]] = {
    "syncthing": (syncthing_many, syncthing.installed),
    "libtorrent": (libtorrent_many, libtorrent_pair.installed),
    "rsync": (rsync_many, has("rsync")),
}


def spreaders(
    stack: ExitStack, base: Path, layout: Layout, peers: Sequence[str], *, fetch_plans: bool = False
) -> dict[str, Spreader | None]:
    """archid and its peers, running and connected until the stack ends; None for who is absent.

    A peer that cannot be brought to run here, or does not find the others over these lines, is
    absent too, and it is said why: what archid does is measured all the same.
    """
    opened: dict[str, Spreader | None] = {
        "archid": stack.enter_context(archid_many(base / "archid", layout, fetch_plans=fetch_plans))
    }
    for name in peers:
        program, installed = SPREADERS[name]
        opened[name] = None
        if installed():
            try:
                opened[name] = stack.enter_context(program(base / name, layout))
            except TransferFailed as error:
                say(f"{name} takes no part: {error}")
    return opened
