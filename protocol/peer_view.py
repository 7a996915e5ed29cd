"""Whom to be connected to: a pure machine that says whom to dial, leave and turn away.

After HyParView (Leitão, Pereira, Rodrigues, DSN 2007): a small active view, which is the
connections, and a larger passive view of nodes that could take their place. An ICE server keeps
two *holders* (central and REPOs, which hold everything) and the servers of its site, its
*neighbours*; holders keep one another, all while they are few. Who is lost is replaced at once by
somebody who has not failed; from time to time one holder is changed for another, so that load
spreads to newcomers and halves that were cut apart find one another again. Connections that come
in count as well. Addresses come from hints and states, which the caller reads; time and
randomness are arguments. Addresses that a person has configured are dialled beside all this.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from protocol.ids import NodeId

HOLDERS: Final = 2
"""Central and REPOs that an ICE server is connected to."""
MESHED: Final = 8
"""Other holders that a holder is connected to."""
NEIGHBOURS: Final = 16
FELLOWS: Final = 12
"""Nodes of other sites that an ICE server is connected to while it fetches what they have."""
SPARE: Final = 2
"""So many more than wanted are kept, so that one that comes back does not end another."""
MAX_KNOWN: Final = 64
"""The passive view, of each kind."""
RETRY_S: Final = 60.0
"""Who was given up for another is not tried again for about this long."""
CHANGE_SOON_S: Final = 300.0
CHANGE_LATE_S: Final = 3600.0
"""One holder is changed for another this long after a loss, and ever later, up to this long."""


class Randomness(Protocol):
    """What is needed of a `random.Random`; the caller brings it, so that a run can be repeated."""

    def uniform(self, a: float, b: float, /) -> float: ...

    def choice(self, seq: Sequence[NodeId], /) -> NodeId: ...


class Kind(enum.Enum):
    """What a node is to this one."""

    HOLDER = "holder"
    NEIGHBOUR = "neighbour"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Dial:
    """Keep trying to connect to a node, until told to leave it."""

    node: NodeId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Stop dialling a node, and end a connection that came of it."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class TurnAway:
    """End a connection that came in: there is no room; others are told of, then `busy` said."""

    node: NodeId


ViewEffect: TypeAlias = Dial | Leave | TurnAway


@dataclass(frozen=True, slots=True)
class _Standing:
    kind: Kind
    dialled: bool


@dataclass
class _Known:
    kind: Kind
    addresses: tuple[str, ...]
    dialled: bool
    """This node keeps trying to be connected to it."""
    failures: int = 0
    """Since it was last connected."""
    not_before: float = 0.0


class PeerView:
    """The two views of one node."""

    def __init__(self, own: NodeId, *, holder: bool, most: int, random: Randomness) -> None:
        """`most` bounds the connections; holders and neighbours may go over it."""
        self._own = own
        self._wanted = (
            {Kind.HOLDER: MESHED} if holder else {Kind.HOLDER: HOLDERS, Kind.NEIGHBOUR: NEIGHBOURS}
        )
        self._most = most
        self._random = random
        self._connected: dict[NodeId, _Standing] = {}
        self._counts = dict.fromkeys(Kind, 0)
        self._known: dict[NodeId, _Known] = {}
        self._changing: NodeId | None = None
        """The holder that is being tried in another's place."""
        self._change_wait_s = CHANGE_SOON_S
        self._change_at: float | None = None
        self._crowd: list[NodeId] = []
        self._told: frozenset[NodeId] = frozenset()

    @property
    def connected(self) -> frozenset[NodeId]:
        """The active view."""
        return frozenset(self._connected)

    @property
    def known(self) -> frozenset[NodeId]:
        """The passive view, and those of the active one whose addresses are known."""
        return frozenset(self._known)

    @property
    def dialled(self) -> dict[NodeId, tuple[str, ...]]:
        """Whom this node dials or has dialled, and where."""
        return {node: one.addresses for node, one in self._known.items() if one.dialled}

    def short_of(self, kind: Kind) -> int:
        """How many more of a kind there should be; their addresses may not be known."""
        return max(0, self._wanted.get(kind, 0) - self._counts[kind])

    # What happened

    def want_others(self, wanted: bool) -> None:
        """Whether nodes that are neither holders nor neighbours are of use now."""
        if wanted:
            self._wanted[Kind.OTHER] = FELLOWS
        else:
            self._wanted.pop(Kind.OTHER, None)

    def learnt(self, node: NodeId, kind: Kind, addresses: tuple[str, ...]) -> None:
        """A node of a kind that is dialled can be reached there, it is said."""
        if node == self._own or kind not in self._wanted or not addresses:
            return
        held = self._known.get(node)
        if held is None and self._make_room(kind):
            standing = self._connected.get(node)
            dialled = standing is not None and standing.dialled
            self._known[node] = _Known(kind, addresses, dialled)
        elif held is not None and (held.addresses, held.kind) != (addresses, kind):
            held.kind, held.failures, held.not_before = kind, 0, 0.0
            held.addresses = addresses

    def forgotten(self, nodes: Iterable[NodeId]) -> None:
        """These are no longer to be dialled: they left, or nobody has reached them for long."""
        for node in nodes:
            self._known.pop(node, None)

    def peer_joined(self, node: NodeId, kind: Kind, *, dialled: bool) -> None:
        """A connection stands; `dialled` if this node made it."""
        self._part(node)
        self._connected[node] = _Standing(kind, dialled)
        self._counts[kind] += 1
        known = self._known.get(node)
        if known is not None:
            known.failures, known.not_before = 0, 0.0
            known.dialled = known.dialled or dialled
        if len(self._connected) > self._most:
            self._crowd.append(node)

    def peer_lost(self, node: NodeId, *, now: float) -> None:
        """It has ended: who was dialled is dialled on, and others beside it."""
        standing = self._part(node)
        known = self._known.get(node)
        if known is not None:
            known.failures = max(known.failures, 1)
        if standing is not None and standing.kind is Kind.HOLDER:
            self._change_soon(now)

    def dial_failed(self, node: NodeId, *, busy: bool, now: float) -> None:
        """An attempt came to nothing; `busy` when the node itself has sent this one away."""
        known = self._known.get(node)
        if known is None or node in self._connected:
            return
        known.failures += 1
        if busy or node == self._changing:
            known.dialled = False
            self._later(known, now)
        if node == self._changing:
            self._changing = None

    # What to do

    def tick(self, *, now: float) -> list[ViewEffect]:
        """Look at everything again; call it after what happened, and at `wake_at`."""
        before = self._told
        effects: list[ViewEffect] = list(self._turn_away())
        for kind, wanted in self._wanted.items():
            self._fill(kind, wanted, now)
        self._change(now)
        after = self.dialled
        self._told = frozenset(after)
        effects += [Leave(node) for node in sorted(before) if node not in after]
        effects += [Dial(node, after[node]) for node in sorted(after) if node not in before]
        return effects

    def wake_at(self, *, now: float) -> float | None:
        """When `tick` has something to do if nothing happens before; None while never."""
        times = [
            known.not_before
            for node, known in self._known.items()
            if known.not_before > now and node not in self._connected and self.short_of(known.kind)
        ]
        if self._change_at is not None:
            times.append(self._change_at)
        return min(times, default=None)

    # Choosing

    def _fill(self, kind: Kind, wanted: int, now: float) -> None:
        have = self._counts[kind]
        waiting = [
            known
            for node, known in self._known.items()
            if known.kind is kind and known.dialled and node not in self._connected
        ]
        if have >= wanted:
            changing = self._known.get(self._changing) if self._changing is not None else None
            for known in waiting:
                known.dialled = known is changing
            self._thin(kind, have - wanted - SPARE)
            return
        hopeful = sum(not known.failures for known in waiting)
        for _ in range(wanted - have - hopeful):
            chosen = self._candidate(kind, now)
            if chosen is None:
                return
            if len(waiting) >= max(wanted, MESHED):
                worst = max(waiting, key=lambda known: known.failures)
                waiting.remove(worst)
                worst.dialled = False
                self._later(worst, now)
            known = self._known[chosen]
            known.dialled = True
            waiting.append(known)

    def _candidate(self, kind: Kind, now: float, *, failing: bool = False) -> NodeId | None:
        """By chance, one of those who failed least, or of all."""
        ready = [
            (known.failures, node)
            for node, known in self._known.items()
            if known.kind is kind
            and not known.dialled
            and node not in self._connected
            and known.not_before <= now
        ]
        least = min((failures for failures, _ in ready), default=0)
        among = sorted(node for failures, node in ready if failing or failures == least)
        return self._random.choice(among) if among else None

    def _thin(self, kind: Kind, surplus: int) -> None:
        """Leave some that this node has dialled: the other end may need its place."""
        for _ in range(surplus):
            chosen = self._removable(kind, keep=None)
            if chosen is None:
                return
            self._known[chosen].dialled = False

    def _removable(self, kind: Kind, *, keep: NodeId | None) -> NodeId | None:
        among = sorted(
            node
            for node, standing in self._connected.items()
            if standing.kind is kind
            and node != keep
            and (known := self._known.get(node)) is not None
            and known.dialled
        )
        return self._random.choice(among) if among else None

    def _change(self, now: float) -> None:
        """Try another holder, and leave one when it has come: never the other way round."""
        if self._changing is not None and self._changing in self._connected:
            if self._counts[Kind.HOLDER] > self._wanted[Kind.HOLDER]:
                leaving = self._removable(Kind.HOLDER, keep=self._changing)
                if leaving is not None:
                    self._known[leaving].dialled = False
            self._changing = None
        if self._change_at is None:
            self._change_soon(now)
        if self._change_at is None or now < self._change_at:
            return
        self._change_wait_s = min(2 * self._change_wait_s, CHANGE_LATE_S)
        self._change_at = now + self._random.uniform(0.5, 1.0) * self._change_wait_s
        if self.short_of(Kind.HOLDER):
            return
        # By chance among all: those that fail may be the other half of a fleet that was cut.
        self._changing = self._candidate(Kind.HOLDER, now, failing=True)
        if self._changing is not None:
            self._known[self._changing].dialled = True

    def _change_soon(self, now: float) -> None:
        self._change_wait_s = CHANGE_SOON_S
        at = now + self._random.uniform(0.5, 1.0) * CHANGE_SOON_S
        self._change_at = at if self._change_at is None else min(at, self._change_at)

    def _turn_away(self) -> Iterator[TurnAway]:
        """Those who came over the bound; a holder or neighbour takes the place of another."""
        crowd, self._crowd = self._crowd, []
        for node in crowd:
            if node not in self._connected or len(self._connected) <= self._most:
                continue
            leaving = node
            if self._connected[node].kind is not Kind.OTHER:
                others = sorted(
                    one for one, standing in self._connected.items() if standing.kind is Kind.OTHER
                )
                if not others:
                    continue
                leaving = self._random.choice(others)
            self._part(leaving)
            yield TurnAway(leaving)

    def _part(self, node: NodeId) -> _Standing | None:
        standing = self._connected.pop(node, None)
        if standing is not None:
            self._counts[standing.kind] -= 1
        return standing

    def _later(self, known: _Known, now: float) -> None:
        known.not_before = now + self._random.uniform(0.5, 1.5) * RETRY_S

    def _make_room(self, kind: Kind) -> bool:
        """Whether one more has a place in the passive view, if need be that of a failing one."""
        alike = [node for node, known in self._known.items() if known.kind is kind]
        if len(alike) < MAX_KNOWN:
            return True
        idle = [node for node in alike if node not in self._connected]
        worst = max(idle, key=lambda node: self._known[node].failures, default=None)
        if worst is None or not self._known[worst].failures:
            return False
        del self._known[worst]
        return True
