"""What the demo does, in order, and what it looks at.

Nothing is taken from a log or from what a command claims: the play ends well only if every file
was compared and every question was refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from archid.cli import figures
from archid.errors import ArchidError
from protocol.errors import ProtocolError
from protocol.ids import NodeId
from tests.demo.breaking import spoil
from tests.demo.cast import (
    CENTRAL,
    KINDS,
    MEMBERS,
    OTHER,
    REPO,
    ROOM,
    TITLE,
    Fault,
    Options,
    script_name,
)
from tests.demo.comparing import Contents, compare_at, hashing_program, shortened
from tests.demo.refusal import ask_as, content_of
from tests.demo.story import StepNotes, Story
from tests.demo.summary import Compared, Delivered, Member, Published, Summary
from tests.demo.watching import NotInTime, Views, Watcher
from tests.fleet.local import CommandFailed, FleetNode, LocalFleet
from tests.fleet.process import DaemonFailed
from tests.fleet.scripts import write_script

STEPS: Final = (
    "Start the fleet",
    "Write the scripts",
    "Publish on central",
    "Release to one cinema",
    "Compare in the room",
    "Ask as the other one",
)
DELIVERY_TIMEOUT_S: Final = 120.0
FAR_FUTURE: Final = "2090-01-01T00:00:00+00:00"


class NotSeen(Exception):
    """Something that should have been observed was not; the message says what."""


class Play:
    """One performance. `run` plays it; `stop` ends every process, whatever happened."""

    def __init__(self, options: Options, story: Story) -> None:
        self._options = options
        self._story = story
        self._fleet = LocalFleet(options.folder, options.subnet)
        self._watcher = Watcher(story, TITLE)
        self._sources = options.folder / "scripts-of-the-film"
        self.summary = Summary()

    @property
    def nodes(self) -> Sequence[FleetNode]:
        """Those that were made so far."""
        return tuple(self._fleet.nodes.values())

    def run(self) -> Summary:
        """Play all of it; what went wrong is in the summary."""
        summary = self.summary
        try:
            self._start()
            self._write()
            self._publish()
            self._release()
            self._compare()
            self._ask()
            summary.complete = True
        except (NotSeen, CommandFailed, DaemonFailed) as error:
            summary.failures.append(_told(error))
        except (ArchidError, ProtocolError, OSError, subprocess.SubprocessError) as error:
            summary.failures.append(f"{type(error).__name__}: {error}")
        self._watcher.close()
        summary.disk_bytes = _disk_bytes(self._options.folder)
        summary.errors_logged = sum(_errors_in(node.log) for node in self.nodes)
        summary.seconds = time.monotonic() - self._story.began
        return summary

    def stop(self) -> None:
        """End every process that still runs."""
        self._watcher.close()
        self._fleet.stop()

    # The steps

    def _start(self) -> None:
        began = time.monotonic()
        with self._story.step("central is founded") as notes:
            self._watcher.follow(self._fleet.found())
            for member in MEMBERS:
                notes.say(f"{member.name} joins by token")
                node = self._fleet.join(
                    member.name,
                    member.role,
                    site=member.site,
                    room=member.room,
                    kind=member.kind,
                    start=False,
                )
                node.process.launch()  # it gets ready while the next one joins
            for member in MEMBERS:
                notes.say(f"{member.name} gets ready")
                node = self._fleet.nodes[member.name]
                node.process.wait_ready()
                self._watcher.follow(node)
            notes.say("central, a REPO, 3 ICE servers of 2 cinemas")
        self.summary.joining_seconds = time.monotonic() - began
        self.summary.nodes = [
            Member(node.name, node.role, site, node.address, node.process.pid)
            for node, site in zip(
                self.nodes, ("", *(member.site for member in MEMBERS)), strict=True
            )
        ]

    def _write(self) -> None:
        with self._story.step() as notes:
            total = 0
            for kind in KINDS:
                notes.say(f"{kind} of the film {TITLE}")
                shape = self._options.shapes[kind]
                total += write_script(self._sources / kind, TITLE, kind, shape)
            notes.say(f"a Feature, a SAS and a loop, {figures.size(total)}")

    def _publish(self) -> None:
        with self._story.step() as notes:
            self._published_at = time.monotonic()
            for kind in KINDS:
                notes.say(script_name(kind))
                began = time.monotonic()
                result = self._fleet.publish(self._sources / kind, script_name(kind), kind)
                self.summary.scripts.append(_published(result, time.monotonic() - began))
            size, took = self._published_bytes, sum(one.seconds for one in self.summary.scripts)
            notes.say(f"3 scripts, {figures.size(size)}, {figures.rate(size / took)}")

    def _release(self) -> None:
        with self._story.step(f"{TITLE} for the cinema in {ROOM[0].site}") as notes:
            began = time.monotonic()
            self._apply()
            arrivals = _Arrivals(self._published_bytes)
            try:
                views = self._watcher.wait(
                    lambda views: self._all_there(views, arrivals),
                    timeout_s=DELIVERY_TIMEOUT_S,
                )
            except NotInTime:
                late = [name for name in arrivals.expected if name not in arrivals.at]
                raise NotSeen(
                    f"{', '.join(late)} did not get the release within {DELIVERY_TIMEOUT_S:g} s"
                ) from None
            except NotSeen:
                notes.fail("it did not become active at the room")
                raise
            for name in arrivals.expected:
                since = self._published_at if name == REPO.name else began
                view = views[name]
                self.summary.deliveries.append(
                    Delivered(name, view.held_bytes, dict(view.sources), arrivals.at[name] - since)
                )
            slowest = max(arrivals.at[member.name] for member in ROOM) - began
            rate = self._published_bytes * len(ROOM) / slowest
            notes.say(f"both servers switched to it, {figures.rate(rate)} in all")

    def _apply(self) -> None:
        now = datetime.now(UTC)
        sites = [ROOM[0].site]
        if Fault.REFUSAL in self._options.faults:
            sites.append(OTHER.site)
        far = Fault.ACTIVATION in self._options.faults
        self._fleet.apply(
            TITLE,
            scripts={kind: script_name(kind) for kind in KINDS},
            prefetch=(now - timedelta(hours=1)).isoformat(timespec="seconds"),
            start=FAR_FUTURE if far else (now - timedelta(minutes=1)).isoformat(timespec="seconds"),
            end="2095-01-01T00:00:00+00:00",
            sites=json.dumps(sites),
        )

    def _all_there(self, views: Views, arrivals: _Arrivals) -> bool:
        for node in self.nodes:
            if not node.process.running:
                raise NotSeen(f"{node.name} ended while the release travelled; see {node.log}")
        arrivals.look(views)
        if problems := [
            f"{view.name} {view.problem}"
            for member in ROOM
            if (view := views.get(member.name)) is not None and view.problem
        ]:
            raise NotSeen("; ".join(problems))
        return all(name in arrivals.at for name in arrivals.expected)

    def _compare(self) -> None:
        with self._story.step() as notes:
            for fault in sorted(self._options.faults, key=lambda one: one.value):
                room = self._fleet.nodes[ROOM[0].name]
                spoil(fault, room.release_file(TITLE, "feature"))
            total = sum(one.files for one in self.summary.scripts) * (1 + len(ROOM))
            counted = _Counter(notes, total)
            sources = {kind: Contents.of(self._sources / kind, counted) for kind in KINDS}

            def one(name: str) -> Compared:
                node = self._fleet.nodes[name]
                paths = {kind: node.release_file(TITLE, kind) for kind in KINDS}
                return compare_at(name, paths, sources, counted)

            with ThreadPoolExecutor(len(ROOM)) as pool:
                compared = list(pool.map(one, [member.name for member in ROOM]))
            self.summary.comparisons += compared
            for found in compared:
                if found.differences:
                    told = shortened(found.differences)
                    self.summary.failures.append(f"At {found.node} {told}")
                    notes.fail(f"{found.node} does not have what was published")
            if not notes.failed:
                files = sum(found.files for found in compared)
                notes.say(
                    f"{files:,} files at {len(ROOM)} servers are equal by {hashing_program()}"
                )

    def _ask(self) -> None:
        with self._story.step() as notes:
            nodes, summary = self._fleet.nodes, self.summary
            other, friend = nodes[OTHER.name], nodes[ROOM[1].name]
            entitled = NodeId.from_hex(friend.status()["node"])
            other.process.stop()
            for name in (CENTRAL, REPO.name):
                notes.say(f"{OTHER.name} asks {name} for everything")
                asked = ask_as(other, nodes[name], nodes[CENTRAL], entitled)
                summary.refusals.append(asked)
                summary.failures += asked.failures()
                if asked.failures():
                    notes.fail(f"{name} does not refuse it")
            lying = content_of(other.state)
            summary.content_at_other = len(lying)
            if lying:
                notes.fail(f"{OTHER.name} holds what it was not granted")
                summary.failures.append(
                    f"{OTHER.name} holds {figures.count(len(lying), 'file')} of scripts that are"
                    " not granted to its cinema"
                )
            # The same questions by somebody who may ask them: else silence would pass, too.
            friend.process.stop()
            summary.answered = ask_as(friend, nodes[REPO.name], nodes[CENTRAL], entitled)
            if summary.answered.span_bytes == 0:
                notes.fail("the questions are refused to everybody")
                summary.failures.append(
                    f"{REPO.name} refuses {friend.name}, which is entitled, too: the refusals"
                    " prove nothing"
                )
            if self._options.keep:
                for node in (other, friend):
                    node.process.start()
            if not notes.failed:
                count = sum(one.refused for one in summary.refusals)
                notes.say(f"{count} questions, {count} typed refusals, 0 bytes")

    @property
    def _published_bytes(self) -> int:
        return sum(one.size_bytes for one in self.summary.scripts)


class _Arrivals:
    """When each node had all that it should have."""

    def __init__(self, size_bytes: int) -> None:
        self.expected: Final = (*(member.name for member in ROOM), REPO.name)
        self.at: dict[str, float] = {}
        self._size_bytes = size_bytes

    def look(self, views: Views) -> None:
        """Note who has arrived."""
        for name in self.expected:
            view = views.get(name)
            if view is None or name in self.at:
                continue
            if view.active or (name == REPO.name and view.held_bytes >= self._size_bytes):
                self.at[name] = time.monotonic()


class _Counter:
    """Says how many files were hashed, from any thread."""

    def __init__(self, notes: StepNotes, total: int) -> None:
        self._notes = notes
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, files: int) -> None:
        with self._lock:
            self._done += files
            self._notes.say(f"{self._done:,} of {self._total:,} files hashed")


def _published(result: dict[str, Any], took_s: float) -> Published:
    return Published(
        name=result["script"],
        kind=result["kind"],
        version=result["version"],
        manifest=result["manifest"],
        files=result["files"],
        size_bytes=result["size_bytes"],
        seconds=took_s,
    )


def _told(error: Exception) -> str:
    """A failure in words; of a command, what it said."""
    if isinstance(error, CommandFailed):
        return f"An archid command ended with {error.code}: {(error.err or error.out).strip()}"
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


def _errors_in(log: Path) -> int:
    """Lines of a daemon's log that are errors."""
    if not log.exists():
        return 0
    found = 0
    for line in log.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            found += json.loads(line).get("level") in ("error", "critical")
    return found
