"""What nodes tell one another about spans while they fetch: who has verified which, as it comes.

A fetch says here what it has verified; each session that was asked for a have-map passes it on.
What peers announce is given to the fetch that listens. News of a version is one growing list that
every session reads at its own pace: a slow peer costs a position in it, no queue of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from random import Random
from typing import Final, TypeAlias

from archid.net.peer import Peer
from archid.sync.signal import Signal
from archid.sync.upload_slots import UploadSlots
from archid.sync.upload_turns import UploadTurns
from protocol.ids import ManifestId, PieceId
from protocol.messages import GetAny, HaveUpdate, Request, Unwant
from protocol.serve_choice import ServeChoice

Listener: TypeAlias = Callable[[Peer, PieceId, int], None]
Seeker: TypeAlias = Callable[[Peer], None]

_BITS_OF: Final = tuple(tuple(n for n in range(8) if byte >> n & 1) for byte in range(256))


_REMEMBERED_BYTES: Final = 32
"""Longer bitmaps are not remembered, which bounds what is: 2 MB."""


def _named(piece_index: int, bitmap: bytes) -> tuple[tuple[int, int], ...]:
    """The spans of a bitmap, named (piece index, n)."""
    return tuple(
        (piece_index, start | n)
        for start, byte in zip(range(0, 8 * len(bitmap), 8), bitmap, strict=True)
        for n in _BITS_OF[byte]
    )


_named_again: Final = lru_cache(maxsize=128)(_named)


class SpanNews:
    """The spans of one version that were verified here since its fetch began, in order."""

    def __init__(self) -> None:
        self.came: list[tuple[PieceId, int]] = []
        self.ended = False
        self.held_by: Callable[[Peer, PieceId, int], bool] = lambda *_: False
        """Whether a peer is known to hold a span itself, so that this is no news to it: in a swarm
        that is half of all."""


class SpanExchange:
    """Both directions, for all versions; `changed` fires when there is news to pass on."""

    def __init__(self) -> None:
        self.changed = Signal()
        self._news: dict[ManifestId, SpanNews] = {}
        self._listeners: dict[ManifestId, tuple[Listener, Seeker]] = {}
        self.slots = UploadSlots()
        self.turns = UploadTurns()
        # No secret: asking the kernel for each span would cost a wait for the interpreter's lock.
        self._choice = ServeChoice(randrange=Random().randrange)  # noqa: S311 - see above

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

    def spare(self, manifest: ManifestId, held_by: Callable[[Peer, PieceId, int], bool]) -> None:
        """From now on peers are not told of what they hold themselves."""
        if news := self._news.get(manifest):
            news.held_by = held_by

    def news(self, manifest: ManifestId) -> SpanNews | None:
        """The news of a version that is being fetched."""
        return self._news.get(manifest)

    def under_way(self) -> tuple[ManifestId, ...]:
        """The versions that there may be news of."""
        return tuple(self._news)

    # What is sent to whoever leaves the choice to this node

    def still_wanted(self, peer: Peer, request: GetAny) -> Sequence[tuple[int, int]]:
        """The spans of a request, (piece index, n), that the peer has not taken out since."""
        wanted: list[tuple[int, int]] = []
        for piece_index, bitmap in request.wanted:
            # An offer differs little from the one before.
            named = _named_again if len(bitmap) <= _REMEMBERED_BYTES else _named
            wanted += named(piece_index, bitmap)
        return self._choice.still_wanted(peer, request.manifest, wanted, request=request.request)

    def done_before(self, peer: Peer, request: Request) -> None:
        """This is the oldest request of the peer that waits."""
        self._choice.done_before(peer, request.request)

    def unwanted(self, peer: Peer, unwant: Unwant) -> None:
        """A peer has taken a span out of what it asked."""
        span = unwant.piece_index, unwant.n
        self._choice.unwanted(peer, unwant.manifest, span, up_to=unwant.up_to)

    def pick(
        self, peer: Peer, manifest: ManifestId, among: Sequence[int], *, span_count: int
    ) -> int | None:
        """The index of the span to send to a peer, None when there is none."""
        return self._choice.pick(manifest, among, span_count=span_count, peer=peer)

    def not_sent(self, peer: Peer, manifest: ManifestId, span: int, *, told: bool) -> None:
        """What was picked could not be sent after all; whether the peer knows what it was."""
        self._choice.not_sent(manifest, span, peer=None if told else peer)

    def peer_lost(self, peer: Peer) -> None:
        """Forget what a connection has said."""
        self._choice.peer_lost(peer)

    # What others have

    @contextmanager
    def listening(self, manifest: ManifestId, listener: Listener, sought: Seeker) -> Iterator[None]:
        """Have `listener` called with what peers announce of a version, one at a time, and `sought`
        with each peer that shows that it may read it: it fetches the same."""
        both = self._listeners[manifest] = listener, sought
        try:
            yield
        finally:
            if self._listeners.get(manifest) is both:
                del self._listeners[manifest]

    def announced(self, peer: Peer, update: HaveUpdate) -> None:
        """A peer holds one more span; nobody may be interested."""
        if found := self._listeners.get(update.manifest):
            found[0](peer, update.piece, update.n)

    def sought(self, peer: Peer, manifest: ManifestId) -> None:
        """A peer asks for a version; nobody may be interested."""
        if found := self._listeners.get(manifest):
            found[1](peer)
