"""A player: a process that resolves a release once and reads all of it, again and again.

``python -m tests.fleet.player HOW FOLDER RELEASE KIND...`` reads ``cue`` of every kind below the
folder that the link led to when it was opened: in each round anew (``again``), or once at the
beginning (``once``). It ends with its standard input, or as soon as what it opened once was not of
one and the same version, and says in JSON what it saw.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

AGAIN: Final = "again"
ONCE: Final = "once"


def play_once(bundle: int, kinds: Sequence[str]) -> list[str]:
    """The first word of every kind's ``cue``, all below one opened folder; raises OSError."""
    words = []
    for kind in kinds:
        cue = os.open(f"{kind}/cue", os.O_RDONLY, dir_fd=bundle)
        try:
            words.append(os.read(cue, 4096).split()[0].decode())
        finally:
            os.close(cue)
    return words


def main(how: str, folder: str, release: str, *kinds: str) -> None:
    """Read until standard input ends or something is wrong."""
    link = Path(folder) / release
    rounds, seen, wrong = 0, set(), None
    bundle = os.open(link, os.O_RDONLY | os.O_DIRECTORY)
    _say("reading")
    while wrong is None and not select.select([sys.stdin], [], [], 0)[0]:
        try:
            if how == AGAIN:
                os.close(bundle)
                bundle = os.open(link, os.O_RDONLY | os.O_DIRECTORY)
            words = play_once(bundle, kinds)
        except OSError as error:
            wrong = f"{error}"
            break
        rounds += 1
        seen.update(words)
        if len(set(words)) != 1:
            wrong = " and ".join(words)
        elif how == ONCE and len(seen) != 1:
            wrong = " and ".join(sorted(seen))
    _say(json.dumps({"rounds": rounds, "seen": sorted(seen), "wrong": wrong}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass
class Player:
    """A player that runs; `report` is what it saw, once it has ended."""

    process: subprocess.Popen[str]
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None


@contextmanager
def playing(how: str, folder: Path, release: str, *kinds: str) -> Iterator[Player]:
    """A player that reads below `folder` during the body, as `AGAIN` or `ONCE` say."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fleet.player", how, str(folder), release, *kinds],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        player = Player(process)
        try:
            yield player
        finally:
            process.stdin.close()
            said = process.stdout.read()
        player.report = json.loads(said)


if __name__ == "__main__":
    main(*sys.argv[1:])
