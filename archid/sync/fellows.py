"""Nodes of other sites that fetch or hold the same: found through central and REPOs, then dialled.

A fetch asks the holders of everything that it is connected to who else has the version. Who is
told of here is dialled by `archid.sync.peer_choice` and then proves who it is and says what it
holds, as every peer; what is kept of it goes a while after the fetch. Where nodes of this node's
own site have the version too nobody is sought: they share one line, which is to carry each byte
once, and nothing for others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import SystemRandom
from typing import Final

import trio

from archid.addresses import parse_address
from archid.log import get_logger
from archid.net.errors import PeerLost, PeerRefused, PeerTooSlow
from archid.net.peer import Peer
from archid.sync.signal import Signal
from archid.sync.sources import Sources
from protocol.features import HOLDERS
from protocol.ids import NodeId
from protocol.limits import MAX_ADDRESSES
from protocol.messages import GetHolders, Holder, HoldersAnswer

log = get_logger(__name__)

NEAR_S: Final = 3.0
"""How long it is waited whether nodes of the own site that are connected fetch the same."""
FIRST_ASK_S: Final = 0.5
LONGEST_ASK_S: Final = 30.0
"""Between questions: those who begin together are to meet soon, who comes later dials them."""
LINGER_S: Final = 30.0
"""How long who was found is kept after the fetch: it may still take something from here."""
MAX_FELLOWS: Final = 48
"""Nodes kept at a time, of all fetches; more than are dialled."""


class Fellows:
    """Who was found, for all fetches; `changed` fires when that is others."""

    def __init__(
        self, own: NodeId, *, shuffle: Callable[[list[Holder]], None] | None = None
    ) -> None:
        self.changed = Signal()
        self._own = own
        self._shuffle = shuffle or SystemRandom().shuffle
        self._found: dict[NodeId, tuple[str, ...]] = {}
        self._until: dict[NodeId, float] = {}
        self._seeking = 0

    def places(self, *, now: float) -> Mapping[NodeId, tuple[str, ...]]:
        """Whom to dial, and where."""
        for node in [node for node, until in self._until.items() if until <= now]:
            del self._found[node], self._until[node]
        return self._found

    def wake_at(self) -> float | None:
        """When somebody is to be forgotten; None while nobody is."""
        at = min(self._until.values(), default=math.inf)
        return None if at == math.inf else at

    async def seek(self, sources: Sources) -> None:
        """Ask for a version until cancelled, again and again in growing intervals."""
        found: set[NodeId] = set()
        wait_s = FIRST_ASK_S
        try:
            await self._until_near(sources)
            while True:
                if not sources.has_near and not sources.paused:
                    for peer in tuple(sources.ready):
                        if HOLDERS in peer.features and peer.facts.reads_everything:
                            found |= self._take(await self._ask(peer, sources))
                seen = sources.changed.version
                with trio.move_on_after(wait_s) as timer:
                    await self._worth_asking(sources, seen)
                if timer.cancelled_caught:
                    wait_s = min(2 * wait_s, LONGEST_ASK_S)
        finally:
            until = trio.current_time() + LINGER_S
            for node in found & self._until.keys():
                if self._until[node] == math.inf:
                    self._until[node] = until
            if found:
                self.changed.fire()

    @staticmethod
    async def _until_near(sources: Sources) -> None:
        """Leave the nodes of the own site the time to begin: who was found cannot be unknown."""
        with trio.move_on_after(NEAR_S):
            seen = -1
            while not sources.has_near:
                seen = await sources.changed.wait(seen)
                if sources.ready and not sources.may_have_near:
                    return

    @staticmethod
    async def _worth_asking(sources: Sources, seen: int) -> None:
        """Return when somebody has come who can be asked, and was not there before."""
        asked = {peer for peer in sources.ready if peer.facts.reads_everything}
        while True:
            seen = await sources.changed.wait(seen)
            if any(p.facts.reads_everything and p not in asked for p in sources.ready):
                return

    async def _ask(self, peer: Peer, sources: Sources) -> tuple[Holder, ...]:
        try:
            answer = await peer.request(GetHolders(0, sources.manifest), HoldersAnswer)
        except (PeerLost, PeerRefused, PeerTooSlow) as error:
            log.debug("holders_not_told", node=peer.node.short, why=str(error))
            return ()
        return answer.holders

    def _take(self, holders: tuple[Holder, ...]) -> set[NodeId]:
        """Keep who can be dialled; returns the nodes."""
        told = list(holders)
        self._shuffle(told)
        found: set[NodeId] = set()
        news = False
        for holder in told:
            addresses = tuple(one for one in holder.addresses if _is_address(one))[:MAX_ADDRESSES]
            if holder.node == self._own or not addresses:
                continue
            if holder.node not in self._found and len(self._found) >= MAX_FELLOWS:
                continue
            news = news or self._found.get(holder.node) != addresses
            self._found[holder.node] = addresses
            self._until[holder.node] = math.inf
            found.add(holder.node)
        if news:
            self.changed.fire()
        return found


def _is_address(text: str) -> bool:
    try:
        return not parse_address(text).is_wildcard
    except ValueError:
        return False
