"""Planning a fetch: whom to ask for which span, as a pure machine.

`FetchPlan.step` is given what happened and answers what to do. It knows spans by number, their
sizes and who holds them; it never sees a byte of content, a socket or a clock. Rules: rarest
first among what a peer holds; a small window a peer, so that choices are made late; what a
silent peer owes is asked elsewhere long before the connection is given up; the last few spans
are asked twice where that pays; wrong bytes are counted and end in `DropPeer`. Everything is
deterministic: the same events give the same effects, which `replay` checks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple, TypeAlias

from protocol.fetch_events import (
    COMPLETE,
    AskSpan,
    CancelSpan,
    DropPeer,
    DropReason,
    FetchEffect,
    FetchEvent,
    Finished,
    Have,
    PeerHas,
    PeerJoined,
    PeerLost,
    PeerName,
    SpanCorrupt,
    SpanKey,
    SpanReceived,
    SpanRefused,
    Tick,
    WakeAt,
)
from protocol.fetch_peer import FetchPeer
from protocol.fetch_spans import SpanTable, bits
from protocol.messages.codes import ErrorCode

__all__ = [
    "COMPLETE",
    "AskSpan",
    "CancelSpan",
    "DropPeer",
    "DropReason",
    "FetchEffect",
    "FetchEvent",
    "FetchPlan",
    "Finished",
    "LogEntry",
    "PeerHas",
    "PeerJoined",
    "PeerLost",
    "PeerName",
    "Recipe",
    "SpanCorrupt",
    "SpanKey",
    "SpanReceived",
    "SpanRefused",
    "Tick",
    "WakeAt",
    "replay",
]

WINDOW_SPANS: Final = 4
WINDOW_BYTES: Final = 8 * 1024 * 1024
END_GAME_SPANS: Final = 8
HEDGE_S: Final = 1.0
"""How long the only copy of a last span may take before another is asked, rates unknown."""
MAX_CORRUPT: Final = 3
"""Wrong spans after which a peer is dropped."""

OUT_CODES: Final = frozenset(
    {ErrorCode.NOT_ENTITLED, ErrorCode.DENIED, ErrorCode.UNKNOWN_MANIFEST, ErrorCode.BAD_PROOF}
)
"""Refusals that concern the whole manifest: the peer is out."""
PATIENCE_CODES: Final = frozenset(
    {ErrorCode.BUSY, ErrorCode.NOT_READY, ErrorCode.LIMIT_EXCEEDED, ErrorCode.INTERNAL}
)
"""Refusals that may be otherwise later: the peer is left alone for a while."""

LogEntry: TypeAlias = tuple[float, FetchEvent, tuple[FetchEffect, ...]]


class Recipe(NamedTuple):
    """All that a plan was made from."""

    spans: tuple[SpanKey, ...]
    sizes: tuple[int, ...]
    held: frozenset[SpanKey]
    window: int
    window_bytes: int
    priorities: tuple[tuple[SpanKey, int], ...]
    seed: bytes


class FetchPlan:
    """The plan for one manifest.

    `spans` and `sizes` (bytes to be moved for each) go together; `held` need no fetching. Lower
    `priorities` come first, 0 where nothing is said. With a `seed` (the node's id, say) equally
    rare spans are taken in an order of this node's own, so that a swarm does not ask everybody
    for the same; without one they are taken in the order given. `log` keeps the last
    `log_limit` steps, or all of them for None.
    """

    def __init__(
        self,
        spans: Sequence[SpanKey],
        sizes: Sequence[int],
        held: AbstractSet[SpanKey] = frozenset(),
        *,
        window: int = WINDOW_SPANS,
        window_bytes: int = WINDOW_BYTES,
        priorities: Mapping[SpanKey, int] | None = None,
        seed: bytes = b"",
        log_limit: int | None = 4096,
    ) -> None:
        ranks = priorities or {}
        self.recipe = Recipe(
            tuple(spans),
            tuple(sizes),
            frozenset(held),
            window,
            window_bytes,
            tuple(sorted(ranks.items())),
            seed,
        )
        self.log: deque[LogEntry] = deque(maxlen=log_limit)
        self.finished = False
        self._table = SpanTable(spans, sizes, ranks, seed)
        self._sizes = self._table.sizes
        self._wanted = self._table.all & ~self._table.mask_of(held)
        self._missing_bytes = sum(
            size for span, size in zip(spans, sizes, strict=True) if span not in held
        )
        self._peers: dict[PeerName, FetchPeer] = {}
        self._wake: float | None = None
        self._hedge_at: float | None = None

    # What the owner may want to know

    @property
    def missing_spans(self) -> int:
        return self._wanted.bit_count()

    @property
    def missing_bytes(self) -> int:
        return self._missing_bytes

    @property
    def unobtainable_spans(self) -> int:
        """How many missing spans no peer at hand holds."""
        offered = 0
        for peer in self._peers.values():
            offered |= peer.mask
        return (self._wanted & ~offered).bit_count()

    @property
    def peers(self) -> Mapping[PeerName, FetchPeer]:
        """Every peer and its state; to look at only."""
        return self._peers

    # The machine

    def step(self, event: FetchEvent, *, now: float) -> list[FetchEffect]:
        """Take one event and say what to do. Events about unknown peers or spans, and ones that
        crossed a cancellation, are harmless."""
        effects: list[FetchEffect] = []
        if not self.finished:
            effects += self._handle(event, now)
            if self._wanted:
                effects += self._watch(now)
                effects += self._fill(now)
                effects += self._wake_effect(now)
            else:
                self.finished = True
                self._peers.clear()
                effects.append(Finished())
        self.log.append((now, event, tuple(effects)))
        return effects

    def _handle(self, event: FetchEvent, now: float) -> Iterable[FetchEffect]:
        if isinstance(event, Tick):
            return ()
        if isinstance(event, PeerJoined):
            return self._peer_joined(event.peer, event.have)
        if isinstance(event, PeerLost):
            self._remove(event.peer)
            return ()
        peer = self._peers.get(event.peer) if event.peer is not None else None
        bit = self._table.bit_of.get(event.span)
        if bit is None:
            return ()
        if isinstance(event, SpanReceived):
            return self._span_received(peer, bit, now)
        if peer is None or event.peer is None:
            return ()
        if isinstance(event, PeerHas):
            self._set_mask(peer, peer.mask | 1 << bit)
            return ()
        if isinstance(event, SpanCorrupt):
            return self._span_corrupt(event.peer, peer, bit, now)
        return self._span_refused(event.peer, peer, bit, event.code, now)

    def _peer_joined(self, name: PeerName, have: Have) -> Iterable[FetchEffect]:
        counted = have is not COMPLETE
        mask = self._table.all if have is COMPLETE else self._table.mask_of(have)
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = FetchPeer(0, counted)
        else:
            self._set_mask(peer, 0)
            peer.counted = counted
        self._set_mask(peer, mask)
        return ()

    def _span_received(self, peer: FetchPeer | None, bit: int, now: float) -> Iterable[FetchEffect]:
        size = self._sizes[bit]
        if peer is not None and peer.forget(bit, size):
            peer.progressed(size, now)
        if not self._wanted >> bit & 1:
            return ()
        self._wanted &= ~(1 << bit)
        self._missing_bytes -= size
        return [
            CancelSpan(name, self._table.spans[bit])
            for name, other in sorted(self._peers.items())
            if other.forget(bit, size)
        ]

    def _span_corrupt(
        self, name: PeerName, peer: FetchPeer, bit: int, now: float
    ) -> Iterable[FetchEffect]:
        if peer.forget(bit, self._sizes[bit]):
            peer.last_progress = now
            peer.stalled = False
        self._set_mask(peer, peer.mask & ~(1 << bit))
        peer.corrupt_count += 1
        if peer.corrupt_count < MAX_CORRUPT:
            return ()
        self._remove(name)
        return [DropPeer(name, DropReason.CORRUPTS)]

    def _span_refused(
        self, name: PeerName, peer: FetchPeer, bit: int, code: ErrorCode, now: float
    ) -> Iterable[FetchEffect]:
        if code in OUT_CODES:
            self._remove(name)
            return [DropPeer(name, DropReason.REFUSES)]
        if peer.forget(bit, self._sizes[bit]):
            peer.last_progress = now
            peer.stalled = False
            if code in PATIENCE_CODES:
                peer.refused_busy(now)
            elif code is not ErrorCode.CANCELLED:
                self._set_mask(peer, peer.mask & ~(1 << bit))
        return ()

    def _remove(self, name: PeerName) -> None:
        peer = self._peers.pop(name, None)
        if peer is not None:
            self._set_mask(peer, 0)

    def _set_mask(self, peer: FetchPeer, mask: int) -> None:
        if peer.counted:
            self._table.count(before=peer.mask, after=mask)
        peer.mask = mask

    # Silence

    def _watch(self, now: float) -> Iterable[FetchEffect]:
        effects: list[FetchEffect] = []
        for name, peer in sorted(self._peers.items()):
            if peer.asked and now >= peer.give_up_at:
                self._remove(name)
                effects.append(DropPeer(name, DropReason.SILENT))
            elif peer.asked and now >= self._stall_at(peer):
                peer.stalled = True
        return effects

    def _stall_at(self, peer: FetchPeer) -> float:
        return peer.stall_at(self._sizes[next(iter(peer.asked))])

    def _wake_effect(self, now: float) -> Iterable[FetchEffect]:
        times = [] if self._hedge_at is None else [self._hedge_at]
        for peer in self._peers.values():
            if peer.asked:
                times.append(peer.give_up_at if peer.stalled else self._stall_at(peer))
            if peer.busy_until > now and self._wanted & peer.mask:
                times.append(peer.busy_until)
        if not times:
            return ()
        at = min(times)
        if self._wake is not None and now < self._wake <= at:
            return ()  # an earlier wake is due; it will look again
        self._wake = at
        return (WakeAt(at),)

    # Choosing

    def _fill(self, now: float) -> Iterable[FetchEffect]:
        """Ask every peer with room, one span each in turn, partial holders first."""
        effects: list[FetchEffect] = []
        self._hedge_at = None
        covered = stalled = 0
        for peer in self._peers.values():
            if peer.stalled:
                stalled |= peer.asked_mask
            else:
                covered |= peer.asked_mask
        turn = sorted(self._peers.items(), key=lambda item: (not item[1].counted, item[0]))
        while turn:
            again = []
            for name, peer in turn:
                if not self._has_room(peer, now):
                    continue
                free = self._wanted & ~covered & peer.mask & ~peer.asked_mask
                bit = self._table.rarest(free & ~stalled)
                if bit is None:
                    bit = self._table.rarest(free)
                if bit is None and not self._wanted & ~covered & ~stalled:
                    bit = self._hedge(peer, now)
                if bit is None:
                    continue
                peer.ask(bit, self._sizes[bit], now)
                covered |= 1 << bit
                effects.append(AskSpan(name, self._table.spans[bit]))
                again.append((name, peer))
            turn = again
        return effects

    def _has_room(self, peer: FetchPeer, now: float) -> bool:
        return (
            not peer.stalled
            and peer.busy_until <= now
            and len(peer.asked) < self.recipe.window
            and (not peer.asked or peer.outstanding_bytes < self.recipe.window_bytes)
        )

    def _hedge(self, peer: FetchPeer, now: float) -> int | None:
        """In the end game: a span that another peer was asked, if this one would be faster."""
        if self.missing_spans > END_GAME_SPANS:
            return None
        best: tuple[float, int] | None = None
        for bit in bits(self._wanted & peer.mask & ~peer.asked_mask):
            holders = [other for other in self._peers.values() if bit in other.asked]
            if len(holders) != 1:
                continue
            holder = holders[0]
            if holder.rate is None or peer.rate is None:
                due = holder.asked[bit] + HEDGE_S
                if now < due:
                    self._hedge_at = min(due, self._hedge_at or due)
                    continue
                gain = now - holder.asked[bit]
            else:
                theirs = self._owed_before(holder, bit) / holder.rate
                theirs -= now - holder.last_progress
                mine = (peer.outstanding_bytes + self._sizes[bit]) / peer.rate
                gain = theirs - 1.5 * mine
                if gain <= 0:
                    continue
            if best is None or gain > best[0]:
                best = (gain, bit)
        return None if best is None else best[1]

    def _owed_before(self, holder: FetchPeer, bit: int) -> int:
        """The bytes that a peer sends until it has sent this span, this one included."""
        total = 0
        for asked in holder.asked:
            total += self._sizes[asked]
            if asked == bit:
                break
        return total


def replay(recipe: Recipe, log: Iterable[LogEntry]) -> int | None:
    """Run a whole log again; the index of the first step that differs, None when none does."""
    plan = FetchPlan(
        recipe.spans,
        recipe.sizes,
        recipe.held,
        window=recipe.window,
        window_bytes=recipe.window_bytes,
        priorities=dict(recipe.priorities),
        seed=recipe.seed,
        log_limit=0,
    )
    for index, (now, event, effects) in enumerate(log):
        if tuple(plan.step(event, now=now)) != effects:
            return index
    return None
