"""``archid watch``: the node, and on central the fleet, as they are from moment to moment."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import click
from rich.console import Group
from rich.text import Text

from archid.cli.options import session_command
from archid.cli.output import write_json
from archid.cli.session import Session
from archid.errors import ArchidError, Unavailable

if TYPE_CHECKING:
    from archid.cli.watching import Moment

STOP_KEYS: Final = ("q", "Q", "\x1b", "\x04")


@session_command("watch")
@click.option(
    "--every",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
def command(session: Session, every: float) -> None:
    """Watch this node, and on central the whole fleet, until q or Ctrl-C.

    Without a terminal, each change is a line; with --json each is an object on a line.
    """
    with suppress(KeyboardInterrupt):
        if session.json or not session.screen.out.is_terminal:
            _lines(session, every)
        else:
            _live(session, every)


def look(session: Session) -> Moment:
    """Ask the daemon how things are. Raises ArchidError."""
    from archid.cli.watching import Moment

    client = session.client()
    status = client.call("status")
    fleet = client.call("fleet") if status["role"] == "central" else None
    return Moment(status, fleet, client.call("peers"))


def _lines(session: Session, every: float) -> None:
    from archid.cli.watching import Change, changes

    before: Moment | None = None
    gone = False
    while True:
        found: list[Change] = []
        try:
            after = look(session)
            if gone:
                found.append(Change("archid", "daemon", "away", "back"))
            found += changes(before, after)
            before, gone = after, False
        except Unavailable as error:
            if before is None:
                raise
            if not gone:
                found.append(Change("archid", "daemon", "here", f"away: {error.message}"))
            gone = True
        for change in found:
            _tell(session, change.who, change.what, change.before, change.after, change.sentence)
        time.sleep(every)


def _tell(
    session: Session, who: str, what: str, before: str | None, after: str | None, sentence: str
) -> None:
    now = time.time()
    if session.json:
        told = {"at_s": int(now), "who": who, "what": what, "before": before, "after": after}
        write_json(told, one_line=True)
        return
    session.screen.out.print(
        f"{time.strftime('%H:%M:%S', time.localtime(now))}  {sentence}", soft_wrap=True
    )
    sys.stdout.flush()


def _live(session: Session, every: float) -> None:
    from rich.live import Live

    from archid.cli.watching import screen

    console = session.screen.out
    moment = look(session)
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        note = ""
        while True:
            parts = screen(moment, columns=console.width, now_s=time.time())
            if note:
                parts.insert(0, Text(f"{note}. What follows is how it was.", style="alarm"))
            live.update(Group(*parts), refresh=True)
            if _stopped_within(every):
                return
            try:
                moment, note = look(session), ""
            except ArchidError as error:
                note = error.message


@contextmanager
def _keys() -> Iterator[None]:
    """Let single keys through, unechoed; Ctrl-C still interrupts."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _stopped_within(seconds: float) -> bool:
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left_s := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left_s)
        if ready:
            pressed = os.read(sys.stdin.fileno(), 64).decode("utf-8", "replace")
            if not pressed or any(key in STOP_KEYS for key in pressed):
                return True
    return False
