"""What nodes tell one another about spans while they fetch: who has verified which, as it comes.

A fetch says here what it has verified; each session that was asked for a have-map passes it on.
What peers announce is given to the fetch that listens. News of a version is one growing list that
every session reads at its own pace: a slow peer costs a position in it, no queue of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from archid.net.peer import Peer
from archid.sync.signal import Signal
from protocol.ids import ManifestId, PieceId
from protocol.messages import HaveUpdate

Listener: TypeAlias = Callable[[Peer, PieceId, int], None]


class SpanNews:
    """The spans of one version that were verified here since its fetch began, in order."""

    def __init__(self) -> None:
        self.came: list[tuple[PieceId, int]] = []
        self.ended = False


class SpanExchange:
    """Both directions, for all versions; `changed` fires when there is news to pass on."""

    def __init__(self) -> None:
        self.changed = Signal()
        self._news: dict[ManifestId, SpanNews] = {}
        self._listeners: dict[ManifestId, Listener] = {}

    # What this node has

    @contextmanager
    def telling(self, manifest: ManifestId) -> Iterator[Callable[[PieceId, int], None]]:
        """While a version is being fetched; gives what to call for each span verified."""
        news = self._news[manifest] = SpanNews()

        def verified(piece: PieceId, n: int) -> None:
            news.came.append((piece, n))
            self.changed.fire()

        try:
            yield verified
        finally:
            news.ended = True
            if self._news.get(manifest) is news:
                del self._news[manifest]
            self.changed.fire()

    def news(self, manifest: ManifestId) -> SpanNews | None:
        """The news of a version that is being fetched."""
        return self._news.get(manifest)

    # What others have

    @contextmanager
    def listening(self, manifest: ManifestId, listener: Listener) -> Iterator[None]:
        """Have `listener` called with what peers announce of a version; one at a time."""
        self._listeners[manifest] = listener
        try:
            yield
        finally:
            if self._listeners.get(manifest) is listener:
                del self._listeners[manifest]

    def announced(self, peer: Peer, update: HaveUpdate) -> None:
        """A peer holds one more span; nobody may be interested."""
        if listener := self._listeners.get(update.manifest):
            listener(peer, update.piece, update.n)
