"""Which release was switched to when, and which is held back, by this node's own journal.

The link that a player follows says which bundle is active, not whose it is: two releases may have
had the same name, and a restart must not forget since when something plays, nor that a person
rolled it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from archid.errors import ArchidError
from archid.journal import Entry, Journal, Scalar
from archid.log import get_logger
from archid.store.bundles import BundleId
from archid.sync.recording import record
from protocol.errors import FormatError
from protocol.facts import ReleaseHeader
from protocol.ids import ReleaseId

log = get_logger(__name__)

ACTIVATED: Final = "release_activated"
WITHDRAWN: Final = "release_withdrawn"
ROLLED_BACK: Final = "release_rolled_back"
ROLLBACK_ENDED: Final = "release_rollback_ended"
_KINDS: Final = frozenset({ACTIVATED, WITHDRAWN, ROLLED_BACK, ROLLBACK_ENDED})


@dataclass(frozen=True)
class Activation:
    """The generation of a release that was switched to last, and when (seconds UTC)."""

    name: str
    generation: int
    at_s: int


@dataclass(frozen=True)
class Hold:
    """A release that a person rolled back: `bundle` stays until a generation after `generation`."""

    release: ReleaseId
    name: str
    generation: int
    bundle: BundleId
    at_s: int
    reason: str

    def concerns(self, header: ReleaseHeader) -> bool:
        """Whether it keeps this generation of its release from being switched to."""
        return header.release == self.release and header.generation <= self.generation


class Activations:
    """What was switched to and not withdrawn since, by release; and what is held back."""

    def __init__(
        self,
        journal: Journal,
        *,
        clock: Callable[[], float] = time.time,
        insist: Callable[[Callable[[], Entry]], Entry] = lambda write: write(),
    ) -> None:
        """`insist` is asked to make an entry, which it may do twice; a full disk calls for it."""
        self._journal = journal
        self._insist = insist
        self._clock = clock
        self.loaded = False
        """Whether the journal was read, or could not be."""
        self._of: dict[ReleaseId, Activation] = {}
        self._holds: dict[ReleaseId, Hold] = {}

    async def load(self) -> None:
        """Read the journal, after a start; what it does not tell is not known."""
        try:
            self._of, self._holds = await trio.to_thread.run_sync(self._read)
        except ArchidError as error:
            log.error("activations_unknown", why=error.sentence)
        self.loaded = True

    def of(self, release: ReleaseId) -> Activation | None:
        """What is known of one release."""
        return self._of.get(release)

    def owner(self, name: str) -> ReleaseId | None:
        """The release that the name was switched to last, as far as is known."""
        named = [(one.at_s, release) for release, one in self._of.items() if one.name == name]
        return max(named)[1] if named else None

    def hold(self, release: ReleaseId) -> Hold | None:
        """The rollback of a release that still holds."""
        return self._holds.get(release)

    def holds(self) -> list[Hold]:
        """Every rollback that still holds."""
        return list(self._holds.values())

    def seen(self, header: ReleaseHeader) -> None:
        """It is active, whoever switched to it and whenever that was."""
        self._note(header)

    async def activated(self, header: ReleaseHeader) -> None:
        """It has just been switched to."""
        self._note(header)
        self._holds.pop(header.release, None)
        await self._record(ACTIVATED, header)

    async def withdrawn(self, header: ReleaseHeader) -> None:
        """It has just been taken away."""
        self._of.pop(header.release, None)
        self._holds.pop(header.release, None)
        await self._record(WITHDRAWN, header)

    def hold_back(self, hold: Hold) -> None:
        """Remember a rollback, on disk when this returns; blocks. Raises StorageError."""
        fields: dict[str, Scalar] = {
            "release": hold.release.hex(),
            "name": hold.name,
            "generation": hold.generation,
            "bundle": hold.bundle.hex(),
            "reason": hold.reason,
        }
        self._insist(partial(self._journal.append, ROLLED_BACK, fields))
        self._holds[hold.release] = hold

    def let_go(self, hold: Hold) -> None:
        """A rollback holds no more, on disk when this returns; blocks. Raises StorageError."""
        fields: dict[str, Scalar] = {
            "release": hold.release.hex(),
            "name": hold.name,
            "generation": hold.generation,
        }
        self._insist(partial(self._journal.append, ROLLBACK_ENDED, fields))
        self._holds.pop(hold.release, None)

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
            self._insist,
            release=header.release.hex(),
            name=header.name,
            generation=header.generation,
        )

    def _read(self) -> tuple[dict[ReleaseId, Activation], dict[ReleaseId, Hold]]:
        found: dict[ReleaseId, Activation] = {}
        holds: dict[ReleaseId, Hold] = {}
        for entry in self._journal.entries():
            if entry.kind not in _KINDS:
                continue
            release = _release(entry.fields.get("release"))
            name, generation = entry.fields.get("name"), entry.fields.get("generation")
            if release is None or not isinstance(name, str) or not isinstance(generation, int):
                continue
            holds.pop(release, None)
            if entry.kind == ROLLED_BACK:
                if hold := _hold(entry, release, name, generation):
                    holds[release] = hold
            elif entry.kind == ACTIVATED:
                found = {one: was for one, was in found.items() if was.name != name}
                found[release] = Activation(name, generation, entry.at_s)
            elif entry.kind == WITHDRAWN:
                found.pop(release, None)
        return found, holds


def _hold(entry: Entry, release: ReleaseId, name: str, generation: int) -> Hold | None:
    bundle, reason = entry.fields.get("bundle"), entry.fields.get("reason")
    try:
        bundle_id = BundleId.from_hex(bundle) if isinstance(bundle, str) else None
    except FormatError:
        return None
    if bundle_id is None:
        return None
    shown = reason if isinstance(reason, str) else ""
    return Hold(release, name, generation, bundle_id, entry.at_s, shown)


def _release(text: Scalar) -> ReleaseId | None:
    try:
        return ReleaseId(bytes.fromhex(text)) if isinstance(text, str) else None
    except (ValueError, FormatError):
        return None
