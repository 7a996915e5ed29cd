"""What the demo does, in order, and how it ends.

Nothing is taken from a log or from what a command claims: the play ends well only if every act has
seen with its own eyes what it is about. An act that finds something wrong but can go on notes a
failure; one after which nothing else makes sense raises NotSeen.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from archid.errors import ArchidError
from protocol.errors import ProtocolError
from tests.demo import asking, delivering, losing, renewing, revoking, rotting, setting
from tests.demo.cast import MEMBERS, Options
from tests.demo.stage import NotSeen, Stage
from tests.demo.story import Story
from tests.demo.summary import Member, Summary
from tests.fleet.local import CommandFailed, FleetNode

ACTS: Final[tuple[tuple[str, Callable[[Stage], None]], ...]] = (
    ("Start the fleet", setting.start),
    ("Write the scripts", setting.write),
    ("Publish on central", setting.publish),
    ("Release to two cinemas", delivering.release),
    ("Compare in the rooms", delivering.compare),
    ("Ask as the third one", asking.ask),
    ("Change a little", renewing.renew),
    ("Let a byte rot", rotting.rot),
    ("Kill central", losing.lose),
    ("Revoke a server", revoking.revoke),
)
STEPS: Final = tuple(title for title, _ in ACTS)


class Play:
    """One performance. `run` plays it; `stop` ends every process, whatever happened."""

    def __init__(self, options: Options, story: Story) -> None:
        self._stage = Stage(options, story)

    def run(self) -> Summary:
        """Play all of it; what went wrong is in the summary."""
        stage, summary = self._stage, self._stage.summary
        try:
            for _, act in ACTS:
                act(stage)
            summary.complete = True
        except (NotSeen, AssertionError) as error:
            summary.failures.append(_told(error))
        except (ArchidError, ProtocolError, OSError, subprocess.SubprocessError) as error:
            summary.failures.append(f"{type(error).__name__}: {error}")
        stage.watcher.close()
        summary.nodes = [
            Member(node.name, node.role, site, node.address, node.process.pid)
            for node, site in zip(
                stage.nodes, ("", *(stage.site(member) for member in MEMBERS)), strict=False
            )
            if node.process.returncode is not None or node.process.running
        ]
        summary.disk_bytes = _disk_bytes(stage.options.folder)
        errors = [
            f"{name} logged {event}: {lines[name, event]}"
            for node in stage.nodes
            for lines in [_errors_in(node)]
            for name, event in sorted(lines.keys() - stage.expected_errors)
        ]
        summary.errors_logged = len(errors)
        summary.failures += errors
        summary.seconds = time.monotonic() - stage.story.began
        return summary

    def stop(self) -> None:
        """End every process that still runs."""
        self._stage.watcher.close()
        self._stage.fleet.stop()


def _told(error: BaseException) -> str:
    """A failure in words; of a command, what it said."""
    if isinstance(error, CommandFailed):
        return f"An archid command ended with {error.code}: {(error.err or error.out).strip()}"
    if isinstance(error, AssertionError):
        return str(error).partition("\n")[0]
    return str(error)


def _disk_bytes(folder: Path) -> int:
    """What a folder takes, hard links once."""
    seen: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(parent, name))
                seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _errors_in(node: FleetNode) -> dict[tuple[str, str], str]:
    """The node with each event that its log has as an error, and the last line of each."""
    if not node.log.exists():
        return {}
    found = {}
    for line in node.log.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            logged = json.loads(line)
            if logged.get("level") in ("error", "critical"):
                found[node.name, str(logged.get("event"))] = line
    return found
