"""Which span to send to a peer that takes any of several, as a pure machine.

Whoever serves a version keeps count of how often it has sent each span, to anybody, and picks one
that it has sent least: so a swarm gets a first copy of everything soonest, and its members have
different things to give to one another. Whether a peer may read anything is not judged here.

Counts are hints and kept for a few versions only; what is forgotten starts anew. Among equals one
is taken at random, so that two servers rarely pick the same; the randomness is given, so a run
can be repeated.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Final, TypeVar

from protocol.ids import ManifestId
from protocol.limits import MAX_OUTSTANDING_REQUESTS

MAX_VERSIONS: Final = 16
"""Versions whose counts are kept: two bytes a span."""
MAX_UNWANTED: Final = 2048
"""Spans of one peer that are not to be picked for it; older ones are forgotten."""
GIVEN: Final = 2 * MAX_OUTSTANDING_REQUESTS
"""Spans that were picked for a peer lately: it had no more requests under way that still name one
when it was told of it."""
_MOST: Final = 65535
_Span = TypeVar("_Span", bound=Hashable)


class ServeChoice:
    """The counts of one node and what its peers no longer want.

    What is sent is named by its index in the layout, what is wanted as the owner likes. `randrange`
    is that of a `random.Random`.
    """

    def __init__(
        self, *, randrange: Callable[[int], int], max_versions: int = MAX_VERSIONS
    ) -> None:
        self._randrange = randrange
        self._max_versions = max_versions
        self._sent: OrderedDict[ManifestId, array[int]] = OrderedDict()
        self._given: dict[Hashable, OrderedDict[tuple[ManifestId, int], None]] = {}
        self._unwanted: dict[Hashable, OrderedDict[tuple[ManifestId, Hashable], int]] = {}

    def unwanted(self, peer: Hashable, manifest: ManifestId, span: Hashable, *, up_to: int) -> None:
        """The peer's requests up to this number are not to get this span."""
        spans = self._unwanted.setdefault(peer, OrderedDict())
        spans.pop((manifest, span), None)
        spans[manifest, span] = up_to
        if len(spans) > MAX_UNWANTED:
            spans.popitem(last=False)

    def peer_lost(self, peer: Hashable) -> None:
        """Forget a connection."""
        self._unwanted.pop(peer, None)
        self._given.pop(peer, None)

    def still_wanted(
        self, peer: Hashable, manifest: ManifestId, wanted: Sequence[_Span], *, request: int
    ) -> Sequence[_Span]:
        """`wanted` without what the peer has taken out of the request with this number."""
        spans = self._unwanted.get(peer)
        if not spans:
            return wanted
        out = {span for (of, span), up_to in spans.items() if of == manifest and up_to >= request}
        return [span for span in wanted if span not in out]

    def done_before(self, peer: Hashable, request: int) -> None:
        """The peer's requests before this one are done with; what they were not to get is moot."""
        spans = self._unwanted.get(peer)
        if spans:
            for key in [key for key, up_to in spans.items() if up_to < request]:
                del spans[key]

    def pick(
        self,
        manifest: ManifestId,
        among: Sequence[int],
        *,
        span_count: int,
        peer: Hashable | None = None,
    ) -> int | None:
        """One of the spans that was sent least, counted as sent; None when there is none.

        None that was picked for this peer lately, as long as there is another: the request may have
        been under way when the peer was told of it.
        """
        if not among:
            return None
        if given := self._given.get(peer):
            gave = {span for of, span in given if of == manifest}
            among = [span for span in among if span not in gave] or among
        sent = self._counts(manifest, span_count)
        least = min(map(sent.__getitem__, among))
        rarest = [span for span in among if sent[span] == least]
        span = rarest[self._randrange(len(rarest))]
        sent[span] = min(least + 1, _MOST)
        if peer is not None:
            self._give(peer, (manifest, span))
        return span

    def _give(self, peer: Hashable, named: tuple[ManifestId, int]) -> None:
        given = self._given.setdefault(peer, OrderedDict())
        given[named] = None
        given.move_to_end(named)
        if len(given) > GIVEN:
            given.popitem(last=False)

    def not_sent(self, manifest: ManifestId, span: int, *, peer: Hashable | None = None) -> None:
        """What was picked could not be sent after all.

        `peer` is who was not told either: it may be picked for it at once. Who was told has not
        taken the span out of its later requests, and has mostly cancelled what came elsewhere.
        """
        if given := self._given.get(peer):
            given.pop((manifest, span), None)
        counts = self._sent.get(manifest)
        if counts is not None and counts[span]:
            counts[span] -= 1

    def _counts(self, manifest: ManifestId, span_count: int) -> array[int]:
        counts = self._sent.get(manifest)
        if counts is None:
            counts = self._sent[manifest] = array("H", bytes(2 * span_count))
            if len(self._sent) > self._max_versions:
                self._sent.popitem(last=False)
        self._sent.move_to_end(manifest)
        return counts
