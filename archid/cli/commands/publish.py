"""``archid publish``: a folder becomes the next version of a script; central only.

The files are opened here, as the calling user, and handed to the daemon as descriptors, so that
the daemon needs no access to anybody's home. Two batches are on their way at a time: one that
the daemon reads and one that waits for it. Of a folder that was published before only those files
are opened that the daemon asks for; the digest of the listing may spare even that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.text import Text

from archid.cli import figures
from archid.cli.options import session_command
from archid.cli.output import indented, pairs
from archid.cli.session import Session
from archid.cli.walk import BATCH_DESCRIPTORS, Found, Walk, check_unchanged, open_files, walk
from archid.control.wire import close_descriptors
from archid.errors import ArchidError, Interrupted, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from archid.control.client import Conversation

KINDS: Final = ("feature", "sas", "loop")
BATCHES_UNDERWAY: Final = 2
PHASES: Final = {"reading": "Publishing", "syncing": "Writing to disk", "signing": "Signing"}


@session_command("publish")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--script", required=True, metavar="NAME", help="The script's name.")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is for.")
@click.option(
    "--rehash", is_flag=True, help="Read every file, even if it looks as when it was read before."
)
def command(session: Session, folder: Path, script: str, kind: str, rehash: bool) -> None:
    """Publish FOLDER as the next version of a script.

    Nothing is published unless all of it is: Ctrl-C, or a file that changes meanwhile, leaves
    things as they were. Publishing what is published already makes no new version; files whose
    size, times and inode are as they were are then not read again.
    """
    from protocol.paths import PathRefused, check_script_name

    try:
        check_script_name(script)
    except PathRefused as error:
        raise UsageError(
            f"This cannot be the name of a script: {error}",
            remedy="Choose another name; nothing was published",
            code="script_name",
        ) from error
    client = session.client()
    try:
        with session.screen.progress() as progress:
            task = progress.add_task("Looking", total=None)
            found = walk(folder)
            progress.update(task, description="Publishing", total=found.size_bytes)
            params = {
                "script": script,
                "kind": kind,
                "files": found.file_count,
                "size_bytes": found.size_bytes,
                "listing": None if rehash else found.listing().hex(),
            }
            with client.start("publish", params) as conversation:
                result = _Publishing(conversation, progress, task).send(found)
    except KeyboardInterrupt as interruption:
        raise Interrupted(
            "Interrupted; nothing was published", remedy="The same command starts again"
        ) from interruption
    session.screen.result(result, *_screens(result, verbose=session.verbose))


class _Publishing:
    """The dialogue of one publication."""

    def __init__(self, conversation: Conversation, progress: Progress, task: TaskID) -> None:
        self._conversation = conversation
        self._progress = progress
        self._task = task
        self._underway = 0

    def send(self, found: Walk) -> dict[str, Any]:
        """Hand everything over; returns what the daemon published. Raises ArchidError."""
        known = self._next("publish.compare")
        if known is None:  # nothing has changed since the last time
            return self._conversation.result(self._show)
        if known["known"]:
            for part in found.batches(None):
                self._announce(found, part)
        else:
            for batch in found.batches():
                self._bring(found, batch, {"entries": [entry.to_json() for entry in batch]})
        while self._underway:
            self._listen()
        check_unchanged(found)
        self._conversation.send_input({"commit": True})
        return self._conversation.result(self._show)

    def _announce(self, found: Walk, part: list[Found]) -> None:
        while self._underway:
            self._listen()
        self._conversation.send_input({"announce": [entry.to_json() for entry in part]})
        answer = self._next("publish.wanted")
        if answer is None:
            raise _ended_early()
        wanted = [part[at] for at in answer["wanted"]]
        for first in range(0, len(wanted), BATCH_DESCRIPTORS):
            batch = wanted[first : first + BATCH_DESCRIPTORS]
            self._bring(found, batch, {"brought": True})

    def _bring(self, found: Walk, batch: list[Found], body: dict[str, Any]) -> None:
        """Send an input with the open files of a batch."""
        while self._underway >= BATCHES_UNDERWAY:
            self._listen()
        descriptors = open_files(found, batch)
        try:
            self._conversation.send_input(body, descriptors)
        finally:
            close_descriptors(descriptors)
        self._underway += 1

    def _next(self, name: str) -> dict[str, Any] | None:
        """The next event of this name; None when the result has come instead."""
        while (event := self._conversation.next_event()) is not None:
            if event.get("event") == name:
                break
            self._show(event)
        return event

    def _listen(self) -> None:
        event = self._conversation.next_event()
        if event is None:
            raise _ended_early()
        self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        if event.get("event") == "publish.taken":
            self._underway -= 1
        elif event.get("event") == "publish.progress":
            self._progress.update(
                self._task,
                description=PHASES.get(event["phase"], "Publishing"),
                completed=event["bytes"],
            )


def _ended_early() -> ArchidError:
    return UsageError(
        "The daemon ended the publication before it had all of it",
        remedy="The command and the daemon may be of different versions",
    )


def _screens(result: dict[str, Any], *, verbose: bool) -> list[Any]:
    name = f"{result['script']} v{result['version']}"
    if result["unchanged"]:
        first = Text.assemble((name, "name"), " is published already with exactly this content.")
    else:
        first = Text.assemble(("Published ", "ok"), (name, "name"), f" ({result['kind']}).")
    seconds = result["duration_s"]
    speed = f", {figures.rate(result['size_bytes'] / seconds)}" if seconds > 0 else ""
    content = f"{figures.count(result['files'], 'file')}, {figures.size(result['size_bytes'])}"
    rows: list[tuple[str, Any]] = [
        ("content", f"{content}; {figures.size(result['new_bytes'])} of it new"),
        ("took", f"{figures.duration(seconds)}{speed}"),
    ]
    if verbose:
        parts = ("chunk", "piece", "folder", "link")
        counts = (figures.count(result[f"{part}s"], part) for part in parts)
        rows += [("manifest", result["manifest"]), ("made of", ", ".join(counts))]
    return [first, indented(pairs(*rows))]
