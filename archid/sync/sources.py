"""Which admitted peers can be asked for one manifest now.

Each admitted peer is shown what entitles this node and asked what it holds. One that refuses,
does not hold the manifest yet, is behind with its head, or has failed since, is asked again with
growing waits for as long as it is connected, and at once when it turns out to fetch the same; waits
for a peer that sent wrong bytes are longer and outlive the connection (`archid.sync.distrust`). One
that is gone leaves by itself. The fetch job reads `ready` and waits on `changed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from archid.errors import ArchidError
from archid.log import get_logger
from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.peer import Peer
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal
from protocol.fetch_events import COMPLETE, Have, SpanKey
from protocol.ids import ManifestId, PieceId
from protocol.layout import Span
from protocol.messages import Answer, Entitle, GetHave, HaveAnswer

log = get_logger(__name__)

FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 15.0
LONGEST_NEAR_RETRY_S: Final = 2.0
"""For nodes of the same site: soon after one begins to fetch the same, the others are to know."""
MOST_HURRIES: Final = 3
"""How often a peer is asked before its time, in a row: two that refuse each other would not end."""
MAX_TOLD: Final = 16_384
"""Announcements kept of one peer before a fetch makes use of them; it is asked again anyway."""


@dataclass(frozen=True, eq=False)
class HaveMap:
    """What one peer said it holds, as it came: it may name spans that do not exist."""

    complete: bool
    bitmaps: Mapping[int, bytes]
    told: set[tuple[PieceId, int]] = field(default_factory=set)
    """What it has announced since, until somebody makes use of it."""

    def of(self, spans: Mapping[SpanKey, Span]) -> Have:
        """Those of `spans` that it holds."""
        if self.complete:
            return COMPLETE
        told = self.told
        return {
            key
            for key, span in spans.items()
            if self._has(key) or (told and (span.piece, span.n) in told)
        }

    def _has(self, span: SpanKey) -> bool:
        bitmap = self.bitmaps.get(span.piece_index, b"")
        return span.n // 8 < len(bitmap) and bool(bitmap[span.n // 8] >> span.n % 8 & 1)


@dataclass(eq=False)
class _Followed:
    """A peer that is connected: `failed` is set when it was ready and is not any more."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    failed: trio.Event = field(default_factory=trio.Event)
    hurried: trio.Event = field(default_factory=trio.Event)
    """Set when it may hold by now what it did not hold when it was asked."""
    hurries: int = 0
    reminds: trio.Event = field(default_factory=trio.Event)
    """Set when it may have been refused what it can be given now."""
    told: set[tuple[PieceId, int]] = field(default_factory=set)


class Sources:
    """The peers that hold (part of) one manifest and let this node read it."""

    def __init__(
        self,
        manifest: ManifestId,
        directory: PeerDirectory,
        proof: Callable[[], bytes],
        site: str = "",
    ) -> None:
        """`site` is where this node stands, "" for nowhere in particular."""
        self.manifest = manifest
        self.ready: dict[Peer, HaveMap] = {}
        self.refusals: dict[str, str] = {}
        """Why connected peers, by name, do not serve this: for people."""
        self.changed = Signal()
        self.paused = False
        """Whether others are to be asked for another version first."""
        self.heard: Callable[[Peer, PieceId, int], bool] | None = None
        """Called with what a peer announces; False keeps it for who looks at `ready` later."""
        self._directory = directory
        self._proof = proof
        self._site = site
        self._gives = False
        self._followed: dict[Peer, _Followed] = {}

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        listening = self._directory.spans.listening(self.manifest, self._announced, self._sought)
        async with trio.open_nursery() as nursery:
            with listening:
                await self._follow_all(nursery)

    async def _follow_all(self, nursery: trio.Nursery) -> None:
        seen = -1
        while True:
            seen = await self._directory.changed.wait(seen)
            present = set(self._directory.one_per_node())
            for peer in self._followed.keys() - present:
                self._followed.pop(peer).scope.cancel()
                self.refusals.pop(peer.facts.name, None)
                self._unready(peer)
            for peer in present - self._followed.keys():
                followed = self._followed[peer] = _Followed()
                nursery.start_soon(self._follow, peer, followed)

    def _announced(self, peer: Peer, piece: PieceId, n: int) -> None:
        followed = self._followed.get(peer)
        if followed is None or (self.heard is not None and self.heard(peer, piece, n)):
            return
        if len(followed.told) < MAX_TOLD:
            followed.told.add((piece, n))

    def _sought(self, peer: Peer) -> None:
        """A peer fetches the same, and may have begun to share it."""
        if self._gives:
            self._hurry(peer)

    def _hurry(self, peer: Peer) -> None:
        followed = self._followed.get(peer)
        if followed is None or peer in self.ready or followed.hurries >= MOST_HURRIES:
            return
        if not followed.hurried.is_set():
            followed.hurries += 1
            followed.hurried.set()

    def gives(self) -> None:
        """From now on others are given what is here: all who may want it are told by being asked.

        Those who begin together would find one another only after their waits.
        """
        self._gives = True
        for peer, followed in self._followed.items():
            self._hurry(peer)
            if (have := self.ready.get(peer)) is not None and not have.complete:
                followed.reminds.set()

    def is_near(self, peer: Peer) -> bool:
        """Whether a peer stands at this node's site."""
        return bool(self._site) and peer.facts.site == self._site

    @property
    def share_line(self) -> bool:
        """Whether nodes of the same site are connected, which may want the same."""
        return any(self.is_near(peer) for peer in self._followed)

    @property
    def may_have_near(self) -> bool:
        """Whether a node of this node's site is connected that may come to fetch the same."""
        return any(
            self.is_near(peer) and not peer.facts.reads_everything for peer in self._followed
        )

    @property
    def has_near(self) -> bool:
        """Whether a node of this node's site holds or fetches the same."""
        return any(self.is_near(peer) and not peer.facts.reads_everything for peer in self.ready)

    def pause(self, paused: bool) -> None:
        """Ask for nothing more of it for now, or go on."""
        if paused is not self.paused:
            self.paused = paused
            self.changed.fire()

    def names(self) -> tuple[str, ...]:
        """Who is ready, for people."""
        return tuple(peer.facts.name for peer in self.ready)

    def why_none(self) -> str:
        """Why nobody is ready, in words."""
        if not self.refusals:
            return "no peer that holds it is connected"
        name, why = next(iter(self.refusals.items()))
        return f"{name} does not give it: {why}"

    def ban(self, peer: Peer, why: str) -> None:
        """It sent wrong bytes: it is asked again after a pause that grows each time."""
        now = trio.current_time()
        self._directory.distrust.lied(self.manifest, peer.node, now=now)
        self.remove(peer, why)

    def remove(self, peer: Peer, why: str) -> None:
        """It failed: it is asked again after a while what it holds and whether it gives it."""
        if peer in self._followed:
            self.refusals[peer.facts.name] = why
            self._followed[peer].failed.set()
        self._unready(peer)

    def _unready(self, peer: Peer) -> None:
        if self.ready.pop(peer, None) is not None:
            self.changed.fire()

    async def _follow(self, peer: Peer, followed: _Followed) -> None:
        wait_s = FIRST_RETRY_S
        longest_s = LONGEST_NEAR_RETRY_S if self.is_near(peer) else LONGEST_RETRY_S
        with followed.scope:
            while True:
                await self._out_of_distrust(peer)
                followed.failed, followed.hurried = trio.Event(), trio.Event()
                asked_at = trio.current_time()
                try:
                    # Announcements may overtake the answer that they are to be added to.
                    followed.told = set()
                    have = await self._ask(peer, followed.told)
                except PeerRefused as refused:
                    self.refusals[peer.facts.name] = refused.text
                    code = refused.reason.name_text
                    log.debug("source_refused", node=peer.node.short, code=code)
                except PeerTooSlow as slow:
                    self.refusals[peer.facts.name] = str(slow)
                except PeerLost:
                    return
                else:
                    self.refusals.pop(peer.facts.name, None)
                    self.ready[peer] = have
                    followed.hurries = 0
                    self.changed.fire()
                    await self._until_failed(peer, followed)
                if trio.current_time() - asked_at > LONGEST_RETRY_S:
                    wait_s = FIRST_RETRY_S
                with trio.move_on_after(wait_s):
                    await followed.hurried.wait()
                wait_s = min(wait_s * 2, longest_s)

    async def _until_failed(self, peer: Peer, followed: _Followed) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._remind, peer, followed)
            await followed.failed.wait()
            nursery.cancel_scope.cancel()

    async def _remind(self, peer: Peer, followed: _Followed) -> None:
        await followed.reminds.wait()
        with suppress(PeerLost, PeerRefused, PeerTooSlow):
            await peer.request(Entitle(0, self.manifest, self._proof()))

    async def _out_of_distrust(self, peer: Peer) -> None:
        """Return when a peer that sent wrong bytes, here or to an earlier fetch, may be asked."""
        distrust = self._directory.distrust
        while pause_s := distrust.wait_s(self.manifest, peer.node, now=trio.current_time()):
            self.refusals[peer.facts.name] = "it sent wrong bytes"
            await trio.sleep(pause_s)

    async def _ask(self, peer: Peer, told: set[tuple[PieceId, int]]) -> HaveMap:
        """Show the entry and ask for the have-map in one round trip: the entry counts at once."""
        refused: list[ArchidError] = []

        def shown(outcome: Answer | ArchidError) -> None:
            if isinstance(outcome, ArchidError):
                refused.append(outcome)

        limit_s = peer.settings.request_timeout_s
        with trio.move_on_after(limit_s) as timer:
            await peer.wait_for_slot()
        if timer.cancelled_caught:
            raise PeerTooSlow(f"{peer.remote} answered nothing within {limit_s:g} seconds")
        number = peer.begin(Entitle(0, self.manifest, self._proof()), on_end=shown)
        try:
            answer = await peer.request(GetHave(0, self.manifest), HaveAnswer)
        except PeerRefused as error:
            # Why the entry was not taken says more than that there is none.
            raise refused[0] if refused else error from None
        finally:
            peer.give_up(number)
        if refused:
            raise refused[0]
        return HaveMap(answer.complete, dict(answer.bitmaps), told)
