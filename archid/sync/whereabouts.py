"""Who holds or fetches a version, as central and REPOs know it, for whoever may read it.

Two things tell: the states of nodes, which name what each holds, and who shows an entry for the
version over a connection, which is sooner. Where a node is it has said in its state, signed. That
the asker may read the version is judged by the session; here nobody is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import SystemRandom
from typing import Final, Protocol

from archid.net.peer import Peer
from archid.sync.states import NodeStates
from archid.sync.trust_keeper import TrustKeeper
from protocol.facts import NodeFacts
from protocol.ids import ManifestId, NodeId
from protocol.limits import MAX_HOLDERS_TOLD
from protocol.messages import Holder

MAX_SEEKING: Final = 4096
"""Versions that one connection is remembered for; as many as it may have shown entries for."""


class Randomness(Protocol):
    """What is needed of a `random.Random`."""

    def sample(self, population: Sequence[Holder], k: int, /) -> list[Holder]: ...


class Whereabouts:
    """What one node can say; a node that does not hold everything says nothing."""

    def __init__(
        self,
        own: Callable[[], NodeFacts | None],
        keeper: TrustKeeper,
        states: NodeStates,
        *,
        random: Randomness | None = None,
    ) -> None:
        self._own = own
        self._keeper = keeper
        self._states = states
        self._random = random or SystemRandom()
        self._seeking: dict[Peer, set[ManifestId]] = {}

    def seeks(self, peer: Peer, manifest: ManifestId) -> None:
        """A peer has shown that it may read a version."""
        manifests = self._seeking.setdefault(peer, set())
        if len(manifests) < MAX_SEEKING:
            manifests.add(manifest)

    def peer_lost(self, peer: Peer) -> None:
        """Forget a connection."""
        self._seeking.pop(peer, None)

    def others(self, asker: NodeFacts, manifest: ManifestId) -> tuple[Holder, ...]:
        """Some nodes besides the asker that hold or fetch a version, those who said where."""
        own = self._own()
        if own is None or not own.reads_everything or self._keeper.root.same_site_only:
            return ()
        nodes = {
            node
            for node, state in self._states.known.items()
            if any(one.manifest == manifest for one in state.holdings)
            and not self._states.is_silent(state)
        }
        nodes |= {peer.node for peer, sought in self._seeking.items() if manifest in sought}
        nodes -= {own.node, asker.node}
        found = [one for node in sorted(nodes) if (one := self._holder(node)) is not None]
        if len(found) > MAX_HOLDERS_TOLD:
            found = self._random.sample(found, MAX_HOLDERS_TOLD)
        return tuple(found)

    def _holder(self, node: NodeId) -> Holder | None:
        state, facts = self._states.known.get(node), self._states.facts(node)
        if state is None or facts is None or facts.reads_everything or not state.addresses:
            return None
        return None if self._keeper.trust.is_denied(node) else Holder(node, state.addresses)
