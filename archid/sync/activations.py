"""Which release was switched to when, by this node's own journal.

The link that a player follows says which bundle is active, not whose it is: two releases may have
had the same name, and a restart must not forget since when something plays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from archid.errors import ArchidError
from archid.journal import Journal, Scalar
from archid.log import get_logger
from archid.sync.recording import record
from protocol.errors import FormatError
from protocol.facts import ReleaseHeader
from protocol.ids import ReleaseId

log = get_logger(__name__)

ACTIVATED: Final = "release_activated"
WITHDRAWN: Final = "release_withdrawn"


@dataclass(frozen=True)
class Activation:
    """The generation of a release that was switched to last, and when (seconds UTC)."""

    name: str
    generation: int
    at_s: int


class Activations:
    """What was switched to and not withdrawn since, by release."""

    def __init__(self, journal: Journal, *, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock
        self._of: dict[ReleaseId, Activation] = {}

    async def load(self) -> None:
        """Read the journal, after a start; what it does not tell is not known."""
        try:
            self._of = await trio.to_thread.run_sync(self._read)
        except ArchidError as error:
            log.error("activations_unknown", why=error.sentence)

    def of(self, release: ReleaseId) -> Activation | None:
        """What is known of one release."""
        return self._of.get(release)

    def owner(self, name: str) -> ReleaseId | None:
        """The release that the name was switched to last, as far as is known."""
        named = [(one.at_s, release) for release, one in self._of.items() if one.name == name]
        return max(named)[1] if named else None

    def seen(self, header: ReleaseHeader) -> None:
        """It is active, whoever switched to it and whenever that was."""
        self._note(header)

    async def activated(self, header: ReleaseHeader) -> None:
        """It has just been switched to."""
        self._note(header)
        await self._record(ACTIVATED, header)

    async def withdrawn(self, header: ReleaseHeader) -> None:
        """It has just been taken away."""
        self._of.pop(header.release, None)
        await self._record(WITHDRAWN, header)

    def _note(self, header: ReleaseHeader) -> None:
        # Who has the name now has it alone.
        for other in [one for one, was in self._of.items() if was.name == header.name]:
            del self._of[other]
        now_s = int(self._clock())
        self._of[header.release] = Activation(header.name, header.generation, now_s)

    async def _record(self, kind: str, header: ReleaseHeader) -> None:
        await record(
            self._journal,
            kind,
            release=header.release.hex(),
            name=header.name,
            generation=header.generation,
        )

    def _read(self) -> dict[ReleaseId, Activation]:
        found: dict[ReleaseId, Activation] = {}
        for entry in self._journal.entries():
            if entry.kind not in (ACTIVATED, WITHDRAWN):
                continue
            release = _release(entry.fields.get("release"))
            name, generation = entry.fields.get("name"), entry.fields.get("generation")
            if release is None or not isinstance(name, str) or not isinstance(generation, int):
                continue
            found.pop(release, None)
            if entry.kind == ACTIVATED:
                found = {one: was for one, was in found.items() if was.name != name}
                found[release] = Activation(name, generation, entry.at_s)
        return found


def _release(text: Scalar) -> ReleaseId | None:
    try:
        return ReleaseId(bytes.fromhex(text)) if isinstance(text, str) else None
    except (ValueError, FormatError):
        return None
