"""A fetch plan's eye on silence: who has stalled, who is given up, and when to look again."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.fetch_board import Board
from protocol.fetch_events import CancelOffer, DropPeer, DropReason, FetchEffect
from protocol.fetch_habits import OFFER_S
from protocol.fetch_peer import FetchPeer


def watch(board: Board, now: float) -> list[FetchEffect]:
    """Mark who has stalled, give up who is silent for too long, end offers that are too old."""
    effects: list[FetchEffect] = []
    for name, peer in sorted(board.peers.items()):
        if peer.owes and now >= peer.give_up_at:
            board.remove(name)
            effects.append(DropPeer(name, DropReason.SILENT))
            continue
        if peer.owes and now >= _stall_at(board, peer):
            peer.stalled = True
        for number, offer in list(peer.offers.items()):
            if now >= offer.asked_at + OFFER_S:
                peer.silent = True
                peer.end_offer(number)
                effects.append(CancelOffer(name, number))
    board.site.watch(board.wanted, now)
    return effects


def wake_times(board: Board, now: float) -> Iterable[float]:
    """When something is due though nothing happens."""
    for peer in board.peers.values():
        if peer.offers:
            yield min(offer.asked_at for offer in peer.offers.values()) + OFFER_S
        if peer.owes:
            stall_at = _stall_at(board, peer)
            # One that was silent before may be past it as soon as it is asked again.
            yield stall_at if now < stall_at and not peer.stalled else peer.give_up_at
        if peer.busy_until > now and board.wanted & peer.mask:
            yield peer.busy_until
    yield from board.site.wakes(board.wanted)


def _stall_at(board: Board, peer: FetchPeer) -> float:
    return peer.stall_at(board.sizes[next(iter(peer.asked))] if peer.asked else board.largest)
