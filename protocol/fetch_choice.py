"""A fetch plan's choices: whom to ask for what, with what is known now.

Everything follows from the board. Spans that nobody near gives are asked for outside, this node's
share of them; who is to pick is offered several, others are asked by name. The holders of
everything are offered different spans, so that no two of them pick the same; one that has nothing
left of its part takes over from the slowest of the others. So are partial holders, as long as each
has something that it is the first to give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.fetch_board import Board
from protocol.fetch_events import AskAny, AskSpan, CancelOffer, FetchEffect, PeerName, SpanKey
from protocol.fetch_habits import MOST_OPEN, OFFERS
from protocol.fetch_hedge import END_GAME_SPANS, hedge
from protocol.fetch_offers import OfferTable
from protocol.fetch_peer import FetchPeer, window
from protocol.fetch_pipe import FEW_SPANS
from protocol.fetch_spans import lowest

LONG_S: Final = 0.03
"""A partial holder from which spans come sooner than this is asked by name."""
TAKE_OVER_S: Final = 0.1
"""What a holder of everything will have sent sooner than this is left to it."""


class Choice:
    """Fills the peers' windows."""

    def __init__(
        self,
        board: Board,
        spans: Sequence[SpanKey],
        *,
        window: int,
        window_bytes: int,
        offers: int,
        shared_line: bool,
    ) -> None:
        self.look_at: float | None = None
        """When something that is too early now would not be any more."""
        self.paused = False
        """Whether nothing is to be asked."""
        self._board = board
        self._window = window
        self._window_bytes = window_bytes
        self._most_offers = offers
        self._shared_line = shared_line
        self._table = OfferTable(spans, board.table.bit_of)
        self._offer_number = 0
        self._pickers: dict[bool, tuple[PeerName, ...]] = {}
        self._outside = self._here = 0
        self._partial_holders = 0
        """Those that pick and have something to give."""
        self._covered = self._stalled = 0
        self._shortest_s: float | None = None
        self._began: float | None = None
        """When something was asked for the first time."""
        self._mean_bytes = sum(board.sizes) / max(len(board.sizes), 1)

    def divide_anew(self) -> None:
        """Somebody is, or says that it is, another than before."""
        self._pickers.clear()

    def fill(self, now: float) -> list[FetchEffect]:
        """Ask every peer with room, one span each in turn: near ones first, then partial
        holders."""
        if self.paused:
            self.look_at = None
            self._board.site.idle(False, now)  # while it may not ask, it waits for nobody
            return self._withdraw_all()
        effects = self._fill(now)
        while self._board.site.siblings and self._board.site.idle(
            self._could_ask_outside(now), now
        ):
            effects += self._fill(now)
        return effects

    def _fill(self, now: float) -> list[FetchEffect]:
        board = self._board
        self.look_at = None
        self._covered = self._stalled = 0
        delays = (peer.pipe.delay_s for peer in board.peers.values())
        waited_s = None if self._began is None else now - self._began
        self._shortest_s = min((one for one in delays if one is not None), default=waited_s)
        for peer in board.peers.values():
            if peer.stalled:
                self._stalled |= peer.asked_mask
            else:
                self._covered |= peer.asked_mask
        self._partial_holders = sum(
            peer.picks and peer.counted and bool(peer.mask & board.wanted)
            for peer in board.peers.values()
        )
        self._here = board.given_here(now)
        self._outside = board.site.outside(board.wanted, now) & ~self._here
        effects = [*self._divide(), *self._renew_offers()]
        turn = sorted(
            board.peers.items(),
            key=lambda item: (not item[1].near, not item[1].counted, item[1].owes, item[1].rank),
        )
        while turn:
            again = []
            for name, peer in turn:
                if self._has_room(peer, now) and (chosen := self._choose(name, peer, now)):
                    effects += chosen
                    again.append((name, peer))
            turn = again
        if self._began is None and any(peer.owes for peer in board.peers.values()):
            self._began = now
        return effects

    def _withdraw_all(self) -> list[FetchEffect]:
        """Take back what nobody has begun to send."""
        effects: list[FetchEffect] = []
        for name, peer in sorted(self._board.peers.items()):
            if peer.offers:
                effects += self._board.withdraw(name, peer, self._board.table.all)
        return effects

    def _has_room(self, peer: FetchPeer, now: float) -> bool:
        most = self._most(peer)
        if peer.picks and not self._is_only_holder(peer):
            # Holders of everything come one by one: what the first was offered is divided anew.
            most = min(most, 1 + peer.came)
        return (
            not peer.stalled
            and peer.busy_until <= now
            and peer.owes < most
            and (not peer.asked or peer.outstanding_bytes < self._most_bytes(most))
            and (peer.near or not self._shared_line or self._line_has_room(peer))
        )

    def _is_only_holder(self, peer: FetchPeer) -> bool:
        """Whether a peer holds everything and nobody else picks: a long line is full at once."""
        peers = self._board.peers.values()
        return not peer.counted and not any(one.picks for one in peers if one is not peer)

    def _most(self, peer: FetchPeer) -> int:
        """How many requests may be open at a peer: more than the least on a long line, as long
        as those of all peers are few."""
        least = self._most_offers if peer.picks else self._window
        few = FEW_SPANS
        if peer.counted and self._leaves_choice(peer):
            least = -(-least // max(self._partial_holders, 1))
            if least > 1:  # of few, each fills a line of its own, however long
                few = least
        most = peer.pipe.window(least, self._mean_bytes, few=few)
        if most > least and sum(one.owes for one in self._board.peers.values()) >= MOST_OPEN:
            return least
        return most

    def _most_bytes(self, most: int) -> float:
        return (
            max(self._window_bytes, most * self._mean_bytes)
            if most > self._window
            else (self._window_bytes)
        )

    def _line_has_room(self, peer: FetchPeer) -> bool:
        """Whether more may be under way from outside: one at first, one more for each that came,
        and no more than keeps the line full, all peers there taken together or this one alone;
        though everybody may be asked for one."""
        owed, rate = 0, 0.0
        for other in self._board.peers.values():
            if not other.near and not other.stalled:
                owed += other.owes
                rate += other.rate or 0.0
        if owed > self._board.came_from_outside:
            return False
        mean = self._mean_bytes
        return not peer.owes or (
            owed < window(rate, mean) and peer.owes < window(peer.rate or 0.0, mean)
        )

    def _free(self, peer: FetchPeer) -> int:
        """What a peer could be asked that nobody else is."""
        free = self._board.wanted & ~self._covered & peer.mask & ~peer.asked_mask
        return free if peer.near else free & self._outside

    def _choose(self, name: PeerName, peer: FetchPeer, now: float) -> list[FetchEffect]:
        board = self._board
        free = self._free(peer)
        taken_over: list[FetchEffect] = []
        if self._leaves_choice(peer) and (to_pick := free & ~board.by_name):
            if not peer.counted:
                taken_over = self._take_over(peer, to_pick, now)
            own = self._to_give(peer, to_pick & peer.assigned, now)
            # Each open offer is as good as one span picked.
            if own.bit_count() > len(peer.offers):
                return [*taken_over, self._offer(name, peer, own, now)]
            free &= board.by_name
        bit = board.table.rarest(free & ~self._stalled)
        if bit is None:
            bit = board.table.rarest(free)
        if bit is None:
            bit = self._hedge(peer, now)
        if bit is None:
            return taken_over  # whom it was taken from is told, though it is offered later
        peer.ask(bit, board.sizes[bit], now)
        self._covered |= 1 << bit
        return [*taken_over, AskSpan(name, board.table.spans[bit]), *board.unwant(bit)]

    def _leaves_choice(self, peer: FetchPeer) -> bool:
        """Whether a peer is to pick: holders of everything always, others where spans take long.

        Where a span moves about as fast as a message, several would pick the same before they are
        told, and nothing is gained by choosing late. Who has sent nothing yet is taken for as fast
        as the fastest of the others, or as what has been waited for so far.
        """
        if not peer.picks or not peer.counted:
            return peer.picks
        delay_s = peer.pipe.delay_s
        if delay_s is None:
            delay_s = self._shortest_s
        return delay_s is not None and delay_s >= LONG_S

    def _hedge(self, peer: FetchPeer, now: float) -> int | None:
        board = self._board
        to_ask = board.wanted & (self._outside | self._here) & ~self._covered & ~self._stalled
        if to_ask or board.wanted.bit_count() > END_GAME_SPANS:
            return None
        bit, look_at = hedge(board.peers.values(), board.sizes, board.wanted, peer, now)
        if look_at is not None:
            self._look_again(look_at)
        return bit

    def _look_again(self, at: float) -> None:
        self.look_at = at if self.look_at is None else min(at, self.look_at)

    def _could_ask_outside(self, now: float) -> bool:
        """Whether somebody outside has room and holds what siblings are awaited for, while
        nothing of this node's own share is left to ask."""
        board = self._board
        awaited = board.wanted & ~self._covered & ~self._outside & ~self._here
        return any(
            not peer.near
            and peer.mask & awaited
            and not self._free(peer)
            and self._has_room(peer, now)
            for peer in board.peers.values()
        )

    # Offers

    def _divide(self) -> list[FetchEffect]:
        """Give the holders of everything different parts, and take back what is theirs no more."""
        board = self._board
        for near in (True, False):
            names = tuple(
                sorted(
                    name
                    for name, peer in board.peers.items()
                    if peer.picks and not peer.counted and peer.near is near
                )
            )
            if names != self._pickers.get(near):
                self._pickers[near] = names
                for name, share in board.rendezvous.shares(names).items():
                    board.peers[name].assigned = share
        effects: list[FetchEffect] = []
        for name, peer in sorted(board.peers.items()):
            if peer.offers:
                allowed = peer.assigned & (board.wanted if peer.near else self._outside)
                effects += board.withdraw(name, peer, ~allowed)
        return effects

    def _take_over(self, peer: FetchPeer, to_pick: int, now: float) -> list[FetchEffect]:
        """Once nothing of a holder's own part is left, half of what another one has not begun."""
        if (to_pick & peer.assigned).bit_count() > len(peer.offers):
            return []
        board = self._board
        own = board.site.own  # of what siblings fetch too, all have the same division in mind
        effects: list[FetchEffect] = []
        best: tuple[int, PeerName, int] | None = None
        for name in self._pickers[peer.near]:
            other = board.peers[name]
            if other is peer:
                continue
            theirs = to_pick & other.assigned & own
            count = (theirs & other.mask).bit_count()
            # What it does not hold after all is of no use to it.
            spare = theirs.bit_count() - (self._kept(peer, other, count, now) if count else 0)
            if spare > 0 and (best is None or (spare, name) > best[:2]):
                best = spare, name, theirs
        if best is not None:
            spare, name, theirs = best
            other = board.peers[name]
            lost = theirs & ~other.mask
            theirs &= other.mask
            spare -= lost.bit_count()
            unoffered = theirs & ~other.offered
            taken = lost | lowest(unoffered, spare)
            taken |= lowest(theirs & ~unoffered, spare - (taken & ~lost).bit_count())
            other.assigned &= ~taken
            peer.assigned |= taken
            effects += board.withdraw(name, other, taken)
        return effects

    def _kept(self, peer: FetchPeer, other: FetchPeer, count: int, now: float) -> int:
        """How many of the spans of its part `other` keeps when `peer` has nothing left."""
        if not count or other.stalled or other.silent or other.busy_until > now:
            return 0
        if other.rate is None or peer.rate is None:
            if other.offers and now < (due := other.last_progress + TAKE_OVER_S):
                self._look_again(due)
                return count
            return max(count - count // 2, min(count, len(other.offers) or OFFERS))
        board = self._board
        mean = board.missing_bytes / board.wanted.bit_count()
        if (other.outstanding_bytes + count * mean) / other.rate < TAKE_OVER_S:
            return count
        return -int(-count * other.rate // (other.rate + peer.rate))

    def _to_give(self, peer: FetchPeer, free: int, now: float) -> int:
        """Of what a peer may pick what others do not give: two that hold the same would pick it
        at once. If that is nothing, all of it."""
        if not peer.counted:
            return free
        urgent = self._board.table.as_urgent(free, free)
        return urgent & ~self._given_by_others(peer, now) or free

    def _given_by_others(self, peer: FetchPeer, now: float) -> int:
        """What is first offered to other partial holders that may be asked as well as this one."""
        given = 0
        for other in self._board.peers.values():
            if (
                other is not peer
                and other.gives
                and other.near == peer.near
                and not (other.stalled or other.silent or other.busy_until > now)
            ):
                given |= other.gives
        return given

    def _renew_offers(self) -> list[FetchEffect]:
        """An offer of which a partial holder holds nothing any more makes room for another: it
        would only be refused, when its turn comes."""
        effects: list[FetchEffect] = []
        for name, peer in sorted(self._board.peers.items()):
            if not peer.counted or not peer.offers:
                continue
            for number, offer in list(peer.offers.items()):
                if not offer.mask & peer.mask and self._free(peer) & ~self._board.by_name:
                    peer.end_offer(number)
                    effects.append(CancelOffer(name, number))
        return effects

    def _offer(self, name: PeerName, peer: FetchPeer, free: int, now: float) -> AskAny:
        """Let a peer pick from what is free and most urgent; a partial holder, of what such hold,
        from what it gives, and also from what none holds yet, since the choice is made when this
        node's turn has come."""
        board = self._board
        self._offer_number += 1
        more = free
        if peer.counted:
            more = board.wanted & ~self._covered & ~peer.asked_mask & ~board.by_name
            more &= board.table.all if peer.near else self._outside
            if not free & (given := self._given_by_others(peer, now)):
                more &= ~given
        mask, wanted = self._table.offer(board.table.as_urgent(free, more), board.wanted)
        if not mask & free:
            mask, wanted = self._table.offer(board.table.as_urgent(free, free), board.wanted)
        peer.offer(self._offer_number, mask, now)
        return AskAny(name, self._offer_number, wanted)
