"""What the acts of the demo share: the fleet, who watches it, and what was seen so far."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tests.demo.cast import CENTRAL, KINDS, SITES, TITLE, Fault, Member, Options, script_name
from tests.demo.story import StepNotes, Story
from tests.demo.summary import Published, Summary
from tests.demo.watching import NotInTime, Views, Watcher
from tests.fleet.local import FleetNode, LocalFleet

DELIVERY_TIMEOUT_S: Final = 120.0
DISCARD_PORT: Final = 9
"""Nobody listens there."""
FAR_FUTURE: Final = "2090-01-01T00:00:00+00:00"
DAMAGE_LOGGED: Final = ("tree_damaged", "chunk_rotten")
END: Final = "2095-01-01T00:00:00+00:00"


class NotSeen(Exception):
    """Something that should have been observed was not; the message says what."""


class Stage:
    """One performance's things."""

    def __init__(self, options: Options, story: Story) -> None:
        self.options = options
        self.story = story
        self.fleet = LocalFleet(options.folder, options.subnet)
        self.watcher = Watcher(story, TITLE)
        self.sources = options.folder / "scripts-of-the-film"
        self.summary = Summary()
        self.published_at = 0.0
        self.expected_errors: set[tuple[str, str]] = set()
        """Node and event of what is logged at ERROR because the demo caused it."""

    def has(self, fault: Fault) -> bool:
        """Whether DEMO_BREAK asks for it."""
        return fault in self.options.faults

    def expect_errors(self, member: Member) -> None:
        """The demo damages a tree at this node: that it logs it at ERROR is right."""
        self.expected_errors |= {(member.name, event) for event in DAMAGE_LOGGED}

    @property
    def nodes(self) -> Sequence[FleetNode]:
        """Those that were made so far."""
        return tuple(self.fleet.nodes.values())

    @property
    def central(self) -> FleetNode:
        return self.fleet.nodes[CENTRAL]

    def node(self, member: Member) -> FleetNode:
        return self.fleet.nodes[member.name]

    def site(self, member: Member) -> str:
        """Where a member is; with a fault, everybody is alone."""
        return f"{member.site}-{member.kind}" if self.alone(member) else member.site

    def alone(self, member: Member) -> bool:
        """Whether no neighbour shall find this one."""
        return self.has(Fault.SHARING) and member.role == "ice"

    def advertised(self, member: Member) -> str:
        """Where others are told that it is; empty for where it listens."""
        # Servers of other sites that fetch the same find one another too, by what they advertise.
        return f"{self.fleet.subnet}.1:{DISCARD_PORT}" if self.alone(member) else ""

    @property
    def film_bytes(self) -> int:
        """Of the film's scripts, as they were first published."""
        return sum(one.size_bytes for one in self.summary.scripts if one.version == 1)

    def publish(self, kind: str, title: str = TITLE) -> dict[str, Any]:
        """Publish a folder of the sources; what the command said."""
        return self.fleet.publish(self.sources / title / kind, script_name(kind, title), kind)

    def apply(
        self,
        *,
        title: str = TITLE,
        sites: Sequence[str] = SITES,
        start: str = "",
        scripts: dict[str, str] | None = None,
    ) -> None:
        """Release a film to cinemas, from now on if no start is given."""
        now = datetime.now(UTC)
        if self.has(Fault.SHARING):
            sites = [f"{site}-{kind}" for site in sites for kind in ("salle", "sas")]
        self.fleet.apply(
            title,
            scripts=scripts or {kind: script_name(kind) for kind in KINDS},
            prefetch=(now - timedelta(hours=1)).isoformat(timespec="seconds"),
            start=start or (now - timedelta(minutes=1)).isoformat(timespec="seconds"),
            end=END,
            sites=json.dumps(list(sites)),
        )

    def wait(
        self,
        condition: Callable[[Views], bool],
        *,
        what: str,
        alive: Sequence[FleetNode] = (),
        timeout_s: float = DELIVERY_TIMEOUT_S,
    ) -> Views:
        """The first views that fulfil it. Raises NotSeen."""

        def holds(views: Views) -> bool:
            for node in alive:
                if not node.process.running:
                    raise NotSeen(f"{node.name} ended meanwhile; see {node.log}")
            return condition(views)

        try:
            return self.watcher.wait(holds, timeout_s=timeout_s)
        except NotInTime:
            raise NotSeen(f"{what} within {timeout_s:g} s") from None

    def received_bytes(self, member: Member) -> int:
        """Script content that a node's daemon has received in its present life."""
        return int(self.node(member).status()["traffic"]["content_received_bytes"])


class Counter:
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


def published(result: dict[str, Any], took_s: float) -> Published:
    """What a publish command said."""
    return Published(
        name=result["script"],
        kind=result["kind"],
        version=result["version"],
        manifest=result["manifest"],
        files=result["files"],
        size_bytes=result["size_bytes"],
        seconds=took_s,
    )
