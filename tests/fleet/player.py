"""A player: a process that resolves a release once, reads all of it, and does so again and again.

``python -m tests.fleet.player FOLDER RELEASE KIND...`` reads ``cue`` of every kind below the
folder that the link led to when it was opened. It ends with its standard input, or as soon as what
it opened once was not of one and the same version, and says in JSON what it saw.
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
from typing import Any


def play_once(folder: Path, release: str, kinds: Sequence[str]) -> list[str]:
    """The first word of every kind's ``cue``, all below one opened folder; raises OSError."""
    bundle = os.open(folder / release, os.O_RDONLY | os.O_DIRECTORY)
    try:
        words = []
        for kind in kinds:
            cue = os.open(f"{kind}/cue", os.O_RDONLY, dir_fd=bundle)
            try:
                words.append(os.read(cue, 4096).split()[0].decode())
            finally:
                os.close(cue)
        return words
    finally:
        os.close(bundle)


def main(folder: str, release: str, *kinds: str) -> None:
    """Read until standard input ends or something is wrong."""
    rounds, seen, wrong = 0, set(), None
    _say("reading")
    while wrong is None and not select.select([sys.stdin], [], [], 0)[0]:
        try:
            words = play_once(Path(folder), release, kinds)
        except OSError as error:
            wrong = f"{error}"
            break
        rounds += 1
        seen.update(words)
        if len(set(words)) != 1:
            wrong = " and ".join(words)
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
def playing(folder: Path, release: str, *kinds: str) -> Iterator[Player]:
    """A player that reads below `folder` during the body."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fleet.player", str(folder), release, *kinds],
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
