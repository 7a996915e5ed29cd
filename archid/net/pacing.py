"""Keeps what goes to and comes from every peer within the limits of this node.

Every connection to a peer has two pacers, `pacer_out` and `pacer_in`. Whoever moves bytes to the
peer, over TLS or over a bulk lane, does so in parts of at most `slice_bytes` and waits before
each::

    if not peer.pacer_out.unlimited:        # a plain attribute; nothing else costs anything
        await peer.pacer_out.take(size_bytes)   # bytes on the wire, headers and tags included

A receiver reads at most `slice_bytes` at once and takes what it has read before it reads more;
TCP then slows the sender down. `unlimited` may change at any moment, in mid-transfer too: look at
it again for each part. `take` cuts larger sizes into slices by itself, but whoever takes 1 MiB and
sends it in one go makes a slow line jerk.

All pacers of a node share the buckets of the limits that they fall under: one for everything, one
for what leaves the site, one for each other site, one for each node. A peer has one place in
their queues however many connections it has, so peers get equal shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from archid.net.token_bucket import TokenBucket
from archid.rates import NO_LIMITS, Rates
from protocol.facts import NodeFacts
from protocol.ids import NodeId

SLICE_S: Final = 0.01
"""Of the lowest limit: what is moved at once, so that it flows and those in turn wait briefly."""
MIN_SLICE_BYTES: Final = 4096
MAX_SLICE_BYTES: Final = 256 * 1024
QUEUE_S: Final = 0.25
MIN_QUEUE_BYTES: Final = 64 * 1024


class Pacer:
    """One direction of the traffic with one peer. Made by `Pacing`."""

    def __init__(self, buckets: Sequence[TokenBucket] = ()) -> None:
        self._buckets = tuple(buckets)
        self._turn = trio.StrictFIFOLock()
        self._changed = trio.Event()
        self.unlimited = True
        """Whether nothing need be taken now."""
        self.slice_bytes = MAX_SLICE_BYTES
        """The most that should be moved between two waits."""
        self.queue_bytes: int | None = None
        """More need not wait to be sent for the line to stay busy; None without a limit."""
        self.waiting = 0
        """How many wait here: then silence does not mean that the peer is gone."""

    async def take(self, size_bytes: int) -> None:
        """Return when so many more bytes may go. Those who wait for one peer go in turn."""
        while size_bytes > 0 and not self.unlimited:
            part = min(size_bytes, self.slice_bytes)
            self.waiting += 1
            try:
                async with self._turn:
                    await self._take(part)
            finally:
                self.waiting -= 1
            size_bytes -= part

    async def _take(self, size_bytes: int) -> None:
        now = trio.current_time()
        places = [(one, one.reserve(size_bytes, now=now)) for one in self._buckets]
        try:
            while (due := max(one.due_at(at, now=now) for one, at in places)) > now:
                changed = self._changed
                with trio.move_on_at(due):
                    await changed.wait()
                now = trio.current_time()
        except BaseException:
            for one, _ in places:
                one.give_back(size_bytes)
            raise

    def limits_changed(self, slice_bytes: int) -> None:
        """The rates of the buckets are others now: look again."""
        rates = [one.rate for one in self._buckets if one.rate is not None]
        self.unlimited = not rates
        self.slice_bytes = slice_bytes
        self.queue_bytes = max(MIN_QUEUE_BYTES, int(min(rates) * QUEUE_S)) if rates else None
        self._changed.set()
        self._changed = trio.Event()


class _Direction:
    """All that goes one way: the buckets of every limit, and a pacer for each node."""

    def __init__(self) -> None:
        self._everything = TokenBucket()
        self._outside = TokenBucket()
        self._per_site: int | None = None
        self._per_peer: int | None = None
        self._slice_bytes = MAX_SLICE_BYTES
        self._sites: dict[str, _Site] = {}
        self._nodes: dict[NodeId, _Node] = {}

    def enter(self, facts: NodeFacts, own_site: str, *, now: float) -> Pacer:
        """The pacer of a node that is connected, once more perhaps."""
        node = self._nodes.get(facts.node)
        if node is None:
            bucket = TokenBucket(self._per_peer, now=now)
            buckets = [bucket, self._everything]
            site = None
            if facts.site != own_site or not own_site:
                site = self._sites.get(facts.site)
                if site is None:
                    site = self._sites[facts.site] = _Site(TokenBucket(self._per_site, now=now))
                site.nodes += 1
                buckets += [site.bucket, self._outside]
            node = self._nodes[facts.node] = _Node(bucket, Pacer(buckets), facts.site, site)
            node.pacer.limits_changed(self._slice_bytes)
        node.connections += 1
        return node.pacer

    def leave(self, node: NodeId) -> None:
        """One of its connections has ended."""
        left = self._nodes[node]
        left.connections -= 1
        if left.connections:
            return
        del self._nodes[node]
        if left.site is not None:
            left.site.nodes -= 1
            if not left.site.nodes:
                del self._sites[left.site_name]

    def set_rates(
        self,
        everything: int | None,
        outside: int | None,
        per_site: int | None,
        per_peer: int | None,
        *,
        now: float,
    ) -> None:
        self._everything.set_rate(everything, now=now)
        self._outside.set_rate(outside, now=now)
        self._per_site, self._per_peer = per_site, per_peer
        for site in self._sites.values():
            site.bucket.set_rate(per_site, now=now)
        for node in self._nodes.values():
            node.bucket.set_rate(per_peer, now=now)
        lowest = min((one for one in (everything, outside, per_site, per_peer) if one), default=0)
        slice_bytes = min(int(lowest * SLICE_S), MAX_SLICE_BYTES) if lowest else MAX_SLICE_BYTES
        # The same for all peers: they take turns, and so get equal shares.
        self._slice_bytes = max(MIN_SLICE_BYTES, slice_bytes)
        for node in self._nodes.values():
            node.pacer.limits_changed(self._slice_bytes)


@dataclass
class _Site:
    bucket: TokenBucket
    nodes: int = 0


@dataclass
class _Node:
    bucket: TokenBucket
    pacer: Pacer
    site_name: str
    site: _Site | None
    connections: int = 0


class Pacing:
    """The limits of one node at work."""

    def __init__(self, own_site: Callable[[], str] = lambda: "") -> None:
        """`own_site` names this node's site; what stays within it is not `outside`."""
        self._own_site = own_site
        self._rates = NO_LIMITS
        self._out, self._in = _Direction(), _Direction()

    @property
    def rates(self) -> Rates:
        """In force now."""
        return self._rates

    def set_rates(self, rates: Rates) -> None:
        """Limit to these from now on; transfers that run follow at once."""
        self._rates = rates
        now = trio.current_time()
        self._out.set_rates(
            rates.up, rates.outside_up, rates.per_site_up, rates.per_peer_up, now=now
        )
        self._in.set_rates(
            rates.down, rates.outside_down, rates.per_site_down, rates.per_peer_down, now=now
        )

    @contextmanager
    def peer(self, facts: NodeFacts) -> Iterator[tuple[Pacer, Pacer]]:
        """The pacers of a connected peer, out and in, while the connection lasts."""
        site, now = self._own_site(), trio.current_time()
        pacers = self._out.enter(facts, site, now=now), self._in.enter(facts, site, now=now)
        try:
            yield pacers
        finally:
            self._out.leave(facts.node)
            self._in.leave(facts.node)
