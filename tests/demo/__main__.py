"""The command line of the demo: `python -m tests.demo`, which is what ``make demo`` runs.

Ends with 0 only if everything was observed, with 1 if something was not, with 2 if the demo could
not begin, with 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.demo import checks
from tests.demo.cast import (
    CENTRAL,
    NAMES,
    NEEDED_BYTES,
    NEEDED_SMALL_BYTES,
    ROOMS,
    SUBNET,
    TITLE,
    Fault,
    Options,
)
from tests.demo.play import STEPS, Play
from tests.demo.screen import Picture, Screen
from tests.demo.story import Story

OK, NOT_SEEN, NOT_BEGUN, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    options = Options(
        folder=Path(chosen.folder).absolute(),
        subnet=chosen.subnet,
        small=chosen.small,
        keep=chosen.keep,
        json=chosen.json,
        picture=chosen.picture,
        faults=_faults(parser),
        needed_bytes=NEEDED_SMALL_BYTES if chosen.small else NEEDED_BYTES,
    )
    screen = Screen(to_stderr=options.json)
    with _interruptible():
        try:
            if chosen.stop:
                return _stop(options, screen)
            checks.prepare(options)
            return _play(options, screen)
        except checks.CannotPlay as why:
            screen.say(f"demo: {why}")
            return NOT_BEGUN
        except KeyboardInterrupt:
            screen.say("demo: stopped; nothing of it is left")
            return INTERRUPTED


def _play(options: Options, screen: Screen) -> int:
    story = Story(STEPS, NAMES)
    play = Play(options, story)
    picture = Picture(options.picture) if options.picture else None
    if picture is not None:
        story.listen(picture.look)
    kept = failed = False
    try:
        with screen.showing(story):
            summary = play.run()
        kept, failed = summary.ok and options.keep, not summary.ok
        if picture is not None:
            picture.save(story, summary, "make demo")
        if options.json:
            sys.stdout.write(json.dumps(summary.to_json(), indent=2) + "\n")
            sys.stdout.flush()
        else:
            screen.summary(summary)
    finally:
        with _uninterruptible():
            if kept:
                (options.folder / checks.KEPT).touch()
            else:
                play.stop()
                if not failed:
                    checks.remove_folder(options.folder)
    if kept:
        _tell_how_to_talk(options, screen)
    elif failed:
        screen.say(f"Everything was stopped; the logs are {options.folder}/*/daemon.log")
    return NOT_SEEN if failed else OK


def _tell_how_to_talk(options: Options, screen: Screen) -> None:
    archid = Path(sys.executable).with_name("archid")
    folder = _short(options.folder)
    screen.say(f"The fleet runs on in {folder}. Talk to it:")
    for name, command in (
        (CENTRAL, f"release show {TITLE}"),
        (CENTRAL, "status"),
        (ROOMS[0].name, "status"),
        (ROOMS[0].name, "verify"),
    ):
        screen.say(f"  {_short(archid)} --config {folder / name / 'archid.toml'} {command}")
    screen.say(f"The room's files are in {folder / ROOMS[0].name / 'scripts/releases' / TITLE}")
    screen.say(f"Stop it and remove it: {checks.stop_command(options)}")


def _short(path: Path) -> Path:
    """As a person in this folder would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _stop(options: Options, screen: Screen) -> int:
    count = checks.stop_all(options.folder)
    checks.remove_folder(options.folder)
    if count:
        screen.say(f"{count} processes were stopped, and {_short(options.folder)} is removed")
    else:
        screen.say(f"no fleet runs in {_short(options.folder)}")
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo",
        description="Run a real fleet on this machine and see what becomes of a release.",
        epilog="DEMO_BREAK=FAULT[,FAULT] injects what must make the demo fail: "
        + "; ".join(f"{fault.value}: {fault.meaning}" for fault in Fault),
    )
    parser.add_argument("--json", action="store_true", help="print only the summary, as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the fleet running at the end")
    parser.add_argument("--stop", action="store_true", help="stop and remove a fleet that was kept")
    parser.add_argument("--small", action="store_true", help="scripts of a few MB, for tests")
    parser.add_argument(
        "--folder", default=".demo", help="where everything goes; made and removed (%(default)s)"
    )
    parser.add_argument(
        "--subnet", default=SUBNET, help="the loopback addresses to use (%(default)s.2 and on)"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw the run into FILE, an SVG"
    )
    return parser


def _faults(parser: argparse.ArgumentParser) -> frozenset[Fault]:
    names = [name for name in os.environ.get("DEMO_BREAK", "").split(",") if name]
    known = {fault.value: fault for fault in Fault}
    for name in names:
        if name not in known:
            parser.error(f"DEMO_BREAK={name} is not known; there are {', '.join(known)}")
    return frozenset(known[name] for name in names)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Being asked to end, or losing the terminal, is like Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield


@contextmanager
def _uninterruptible() -> Iterator[None]:
    """Cleaning up is not cut short by a second Ctrl-C."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
