"""Which admitted peers can be asked for one manifest now.

Each admitted peer is shown what entitles this node and asked what it holds. One that does not
hold the manifest yet, or is behind with its head, is asked again after a while; one that is gone
leaves by itself. The fetch job reads `ready` and waits on `changed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from archid.log import get_logger
from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.peer import Peer
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal
from protocol.fetch import COMPLETE, SpanKey
from protocol.fetch_events import Have
from protocol.ids import ManifestId
from protocol.messages import Entitle, ErrorCode, GetHave, HaveAnswer

log = get_logger(__name__)

FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 15.0
FINAL_CODES: Final = frozenset({ErrorCode.DENIED})
"""Refusals that asking again over the same connection cannot change."""


class Sources:
    """The peers that hold (part of) one manifest and let this node read it."""

    def __init__(
        self,
        manifest: ManifestId,
        directory: PeerDirectory,
        proof: Callable[[], bytes],
    ) -> None:
        self.manifest = manifest
        self.ready: dict[Peer, Have] = {}
        self.refusals: dict[str, str] = {}
        """Why peers, by name, do not serve this: for people."""
        self.changed = Signal()
        self._directory = directory
        self._proof = proof
        self._known: set[Peer] = set()
        self._banned: set[Peer] = set()

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        async with trio.open_nursery() as nursery:
            seen = -1
            while True:
                seen = await self._directory.changed.wait(seen)
                present = set(self._directory.one_per_node())
                for peer in self._known - present:
                    self._known.discard(peer)
                    if self.ready.pop(peer, None) is not None:
                        self.changed.fire()
                for peer in present - self._known:
                    self._known.add(peer)
                    nursery.start_soon(self._qualify, peer)

    def names(self) -> tuple[str, ...]:
        """Who is ready, for people."""
        return tuple(peer.facts.name for peer in self.ready)

    def why_none(self) -> str:
        """Why nobody is ready, in words."""
        if not self.refusals:
            return "no peer that holds it is connected"
        name, why = next(iter(self.refusals.items()))
        return f"{name} does not give it: {why}"

    def ban(self, peer: Peer) -> None:
        """Never ask this connection again."""
        self._banned.add(peer)
        self.remove(peer)

    def remove(self, peer: Peer) -> None:
        """It failed: it is asked again only over a new connection."""
        if self.ready.pop(peer, None) is not None:
            self.changed.fire()

    async def _qualify(self, peer: Peer) -> None:
        wait_s = FIRST_RETRY_S
        while peer in self._known and peer not in self._banned:
            try:
                have = await self._ask(peer)
            except PeerRefused as refused:
                self.refusals[peer.facts.name] = refused.text
                log.debug(
                    "source_refused", node=peer.facts.node.short, code=refused.reason.name_text
                )
                if refused.reason in FINAL_CODES:
                    return
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 2, LONGEST_RETRY_S)
            except PeerTooSlow as slow:
                self.refusals[peer.facts.name] = str(slow)
            except PeerLost:
                return
            else:
                if peer in self._known:
                    self.refusals.pop(peer.facts.name, None)
                    self.ready[peer] = have
                    self.changed.fire()
                return

    async def _ask(self, peer: Peer) -> Have:
        await peer.request(Entitle(0, self.manifest, self._proof()))
        answer = await peer.request(GetHave(0, self.manifest), HaveAnswer)
        if answer.complete:
            return COMPLETE
        return {
            SpanKey(piece_index, n)
            for piece_index, bitmap in answer.bitmaps
            for n in range(len(bitmap) * 8)
            if bitmap[n // 8] >> n % 8 & 1
        }
