"""When a central that was started may sign: after it has asked the REPOs what is newest.

A central that comes back from a backup, or of which there are two, would sign numbers that are
taken. So it asks first. Pure: heads that peers show go in, and the gate is open, asks on, wants
the documents of a newer head, or has stopped with a sentence. Importing documents is in
`archid.central.importing`; whether a shown head is signed has been checked by whoever calls.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from archid.errors import ArchidError, Conflict, Unavailable
from protocol.head import Head
from protocol.ids import DocumentId, NodeId

Order = tuple[int, int]
PATIENCE_S: Final = 60.0
"""After this long the answers of half of the REPOs are enough."""


@dataclass(frozen=True)
class HeadMark:
    """Which head: its numbers and the digest of its bytes."""

    order: Order
    id: DocumentId

    @classmethod
    def of(cls, head: Head) -> HeadMark:
        """The mark of a head."""
        return cls(head.order, head.id)

    def __str__(self) -> str:
        return f"epoch {self.order[0]}, serial {self.order[1]}"


class GateState(enum.Enum):
    """Whether central may sign."""

    ASKING = "asking"
    IMPORTING = "importing"
    STOPPED = "stopped"
    OPEN = "open"


class Finding(enum.Enum):
    """How a shown head compares with what the database holds."""

    SAME_OR_OLDER = "same or older"
    NEWER = "newer"
    NEWER_EPOCH = "newer epoch"
    FORKED = "forked"


def compare(own: HeadMark, shown: HeadMark, signed: DocumentId | None) -> Finding:
    """Compare one shown head with our newest.

    `signed` is what our database holds under the numbers of the shown head, if anything: a head
    of ours with the same numbers and other bytes means that there were two centrals, also when
    it is not the newest.
    """
    if shown.order[0] < own.order[0]:
        return Finding.SAME_OR_OLDER  # whatever happened in an epoch that is over
    if signed is not None and signed != shown.id:
        return Finding.FORKED
    if shown.order[0] > own.order[0]:
        return Finding.NEWER_EPOCH
    if shown.order > own.order:
        return Finding.NEWER
    return Finding.SAME_OR_OLDER


def enough_answers(
    repos: Collection[NodeId], answered: Collection[NodeId], *, waited_s: float
) -> bool:
    """Whether what was heard is enough to begin: all REPOs, or after a while half of them.

    A REPO that is gone for good must not keep central from signing for ever; with fewer than
    half, a person decides (`CentralGate.trust_database`).
    """
    missing = len(set(repos) - set(answered))
    if missing == 0:
        return True
    return waited_s >= PATIENCE_S and missing * 2 <= len(set(repos))


class CentralGate:
    """Keeps central from signing until it knows that nothing newer is about.

    `signed` looks up which head the database holds under given numbers. Methods take the time
    and return the state; nothing here waits or does I/O.
    """

    def __init__(
        self,
        own: HeadMark,
        *,
        repos: Collection[NodeId],
        signed: Callable[[Order], DocumentId | None],
        now: float,
        restored: bool = False,
    ) -> None:
        """`restored`: the database is from a backup, so that what it does not know may exist."""
        self.own = own
        self.wanted: HeadMark | None = None
        """While IMPORTING: the newest head that was shown."""
        self.reason = ""
        self.keys_behind = False
        self._repos = frozenset(repos)
        self._answered: set[NodeId] = set()
        self._signed = signed
        self._since = now
        self._highest_serial = own.order[1]
        self._restored = restored
        self.state = GateState.ASKING if self._repos or restored else GateState.OPEN

    @property
    def is_open(self) -> bool:
        """Whether central may sign."""
        return self.state is GateState.OPEN

    @property
    def unanswered(self) -> frozenset[NodeId]:
        """The REPOs that have not shown their newest head yet."""
        return self._repos - self._answered

    @property
    def highest_serial(self) -> int:
        """The greatest serial of this epoch that anybody has shown."""
        return self._highest_serial

    def head_shown(self, peer: NodeId, shown: HeadMark | None, *, now: float) -> GateState:
        """A peer showed its newest head, None when it holds none; REPOs thereby answer."""
        finding = Finding.SAME_OR_OLDER
        if shown is not None:
            finding = compare(self.own, shown, self._signed(shown.order))
            if shown.order[0] == self.own.order[0]:
                self._highest_serial = max(self._highest_serial, shown.order[1])
        if finding is Finding.FORKED:
            self._stop(
                f"Another central signed a different head with the numbers {shown}: there are two"
                " centrals, or this one comes from a backup and has signed since"
            )
        elif finding is Finding.NEWER_EPOCH:
            self._stop(
                f"The fleet has a head of {shown}, while this central's database ends at"
                f" {self.own}: a new epoch was begun elsewhere"
            )
        elif finding is Finding.NEWER and self.state is not GateState.STOPPED:
            if self.wanted is None or (shown is not None and shown.order > self.wanted.order):
                self.wanted = shown
            self.state = GateState.IMPORTING
            self.reason = (
                f"The fleet has a head of {self.wanted}, newer than this central's database"
                f" ({self.own}); its documents are being imported"
            )
        self._answered.add(peer)
        return self.tick(now=now)

    def tick(self, *, now: float) -> GateState:
        """Time has passed: open if enough was heard."""
        if self._restored and not self._repos:
            return self.state  # nobody whose answer would be enough: a person decides
        if self.state is GateState.ASKING and enough_answers(
            self._repos, self._answered, waited_s=now - self._since
        ):
            self.state = GateState.OPEN
        return self.state

    def signed(self, mark: HeadMark) -> None:
        """Central signed a head; it is the newest now."""
        self.own = mark
        self._highest_serial = max(self._highest_serial, mark.order[1])

    def imported(self, mark: HeadMark, *, repos: Collection[NodeId], now: float) -> GateState:
        """The documents of a newer head are in the database; ask the REPOs that they name."""
        self.signed(mark)
        self._repos = frozenset(repos)
        if self.state is GateState.IMPORTING and (
            self.wanted is None or self.wanted.order <= mark.order
        ):
            self.wanted = None
            self.reason = ""
            self.state = GateState.ASKING
        return self.tick(now=now)

    def began(self, mark: HeadMark) -> None:
        """A head was signed under a Root that a person has just made: that settles everything."""
        self.own = mark
        self.wanted = None
        self.reason = ""
        self._highest_serial = mark.order[1]
        self._restored = False
        self.keys_behind = False
        self.state = GateState.OPEN

    def stop_for_keys(self, reason: str) -> None:
        """Central's keys are not those of the newest Root: it has nothing to sign with."""
        self.keys_behind = True
        self._stop(reason)

    def import_failed(self, reason: str) -> None:
        """The documents do not fit the database: a person must look."""
        self._stop(reason)

    def trust_database(self) -> int:
        """A person says that the database counts, whatever the REPOs say or do not say.

        Returns the serial above which the next head must be signed. Raises Conflict when the
        fleet is in a newer epoch, which no signature of this one can follow.
        """
        if self.keys_behind:
            raise Conflict(
                self.reason,
                remedy="Replace the keys with the root keys: archid root rotate",
                code="keys_behind",
            )
        if self.state is GateState.STOPPED and "new epoch" in self.reason:
            raise Conflict(
                self.reason,
                remedy="Restore the newer central, or begin an epoch above with the root keys",
                code="epoch_behind",
            )
        self.state = GateState.OPEN
        self.wanted = None
        self.reason = ""
        return self._highest_serial

    def require_open(self, *, now: float) -> None:
        """Raise Unavailable while asking or importing, Conflict when stopped."""
        self.tick(now=now)
        if (error := self.refusal()) is not None:
            raise error

    def refusal(self) -> ArchidError | None:
        """Why central may not sign now, None when it may."""
        if self.state is GateState.OPEN:
            return None
        if self.state is GateState.STOPPED and self.keys_behind:
            return Conflict(
                self.reason,
                remedy="Replace the keys with the root keys: archid root rotate",
                code="central_stopped",
            )
        if self.state is GateState.STOPPED:
            return Conflict(
                self.reason,
                remedy="Find out which central is the right one; if it is this one, tell it to"
                " trust its database",
                code="central_stopped",
            )
        if self.state is GateState.IMPORTING:
            return Unavailable(self.reason, remedy="Repeat it in a moment", code="central_asking")
        if not self._repos:
            return Unavailable(
                "Central was restored from a backup that knows of no REPO, so that nobody can say"
                " what was signed since",
                remedy="Wait until a node that knows more has connected; if there is none, tell"
                " central to trust its database: archid trust-database",
                code="central_asking",
            )
        return Unavailable(
            f"Central has just been started and waits for {len(self.unanswered)} of"
            f" {len(self._repos)} REPOs to show their newest head; it signs nothing before",
            remedy="Repeat it in a moment; if those REPOs are lost for good, tell central to trust"
            " its database",
            code="central_asking",
        )

    def _stop(self, reason: str) -> None:
        if self.state is not GateState.STOPPED:
            self.state = GateState.STOPPED
            self.reason = reason
