"""Peer choice: few connections, replaced when lost, and one graph whatever vanishes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from random import Random

import pytest

from protocol.ids import NodeId
from protocol.peer_view import (
    CHANGE_LATE_S,
    HOLDERS,
    MAX_KNOWN,
    MESHED,
    RETRY_S,
    Dial,
    Kind,
    Leave,
    PeerView,
    TurnAway,
)


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def view(*, holder: bool = False, most: int = 64, known: Iterable[int] = ()) -> PeerView:
    made = PeerView(node(0), holder=holder, most=most, random=Random(1))
    for number in known:
        made.learnt(node(number), Kind.HOLDER, (f"repo{number}:1",))
    return made


def dialled(effects: Iterable[object]) -> list[NodeId]:
    return [one.node for one in effects if isinstance(one, Dial)]


def joined(one: PeerView, *numbers: NodeId) -> None:
    for number in numbers:
        one.peer_joined(number, Kind.HOLDER, dialled=True)


def test_an_ice_server_dials_two_holders_and_its_neighbours() -> None:
    one = view(known=range(1, 10))
    one.learnt(node(20), Kind.NEIGHBOUR, ("sas:1",))
    chosen = dialled(one.tick(now=0.0))
    assert node(20) in chosen
    assert len(chosen) == HOLDERS + 1
    assert one.tick(now=0.0) == []


def test_itself_and_nodes_without_addresses_are_not_dialled() -> None:
    one = view(known=[0])
    one.learnt(node(1), Kind.HOLDER, ())
    one.learnt(node(2), Kind.OTHER, ("far:1",))
    assert one.tick(now=0.0) == []


def test_a_lost_holder_is_replaced_at_once_and_still_tried() -> None:
    one = view(known=range(1, 6))
    first = dialled(one.tick(now=0.0))
    joined(one, *first)
    assert one.tick(now=1.0) == []
    one.peer_lost(first[0], now=2.0)
    instead = dialled(one.tick(now=2.0))
    assert len(instead) == 1
    assert not {*instead} & {*first}
    assert first[0] in one.dialled
    joined(one, instead[0])
    assert one.tick(now=3.0) == [Leave(first[0])]


def test_who_cannot_be_reached_is_passed_over_for_others_and_never_given_up_for_good() -> None:
    one = view(known=range(1, 30))
    tried: set[NodeId] = set()
    now = 0.0
    while len(tried) < 29:
        effects = one.tick(now=now)
        tried.update(dialled(effects))
        assert len(one.dialled) <= MESHED
        for failing in one.dialled:
            one.dial_failed(failing, busy=False, now=now)
        now += 1.0
    again: set[NodeId] = set()
    while len(again) < 29:
        wake_at = one.wake_at(now=now)
        assert wake_at is not None
        assert wake_at <= now + 1.5 * RETRY_S + 1
        now = max(now + 1.0, wake_at)
        again.update(dialled(one.tick(now=now)))
        for failing in one.dialled:
            one.dial_failed(failing, busy=False, now=now)


def test_a_lone_holder_that_fails_is_dialled_on() -> None:
    one = view(known=[1])
    assert dialled(one.tick(now=0.0)) == [node(1)]
    for second in range(1, 50):
        one.dial_failed(node(1), busy=False, now=float(second))
        assert one.tick(now=float(second)) == []
    assert one.dialled == {node(1): ("repo1:1",)}


def test_a_busy_holder_is_left_for_another_and_asked_again_later() -> None:
    one = view(known=[1, 2, 3])
    first = dialled(one.tick(now=0.0))
    one.dial_failed(first[0], busy=True, now=1.0)
    effects = one.tick(now=1.0)
    assert Leave(first[0]) in effects
    assert len(dialled(effects)) == 1
    for other in one.dialled:
        one.dial_failed(other, busy=True, now=2.0)
    one.tick(now=2.0)
    assert one.dialled == {}
    assert len(dialled(one.tick(now=2.0 + 1.5 * RETRY_S))) == HOLDERS


def test_a_holder_takes_in_no_more_than_its_bound_but_makes_room_for_holders() -> None:
    one = view(holder=True, most=3)
    for number in range(1, 5):
        one.peer_joined(node(number), Kind.OTHER, dialled=False)
    assert one.tick(now=0.0) == [TurnAway(node(4))]
    joined(one, node(9))
    (away,) = one.tick(now=0.0)
    assert isinstance(away, TurnAway)
    assert away.node != node(9)
    assert len(one.connected) == 3
    one.peer_lost(away.node, now=1.0)
    assert len(one.connected) == 3


def test_holders_mesh_in_full_while_they_are_few_and_stay_bounded_when_many() -> None:
    assert len(dialled(view(holder=True, known=range(1, 6)).tick(now=0.0))) == 5
    assert len(dialled(view(holder=True, known=range(1, 60)).tick(now=0.0))) == MESHED


def test_one_holder_is_changed_for_another_now_and_then_and_left_only_after_it_came() -> None:
    one = view(known=range(1, 10))
    first = dialled(one.tick(now=0.0))
    joined(one, *first)
    changes, now = 0, 0.0
    while now < 10 * CHANGE_LATE_S:
        wake_at = one.wake_at(now=now)
        assert wake_at is not None
        assert wake_at > now
        now = wake_at
        (new,) = dialled(one.tick(now=now))
        assert len(one.connected) == HOLDERS
        joined(one, new)
        (left,) = one.tick(now=now)
        assert isinstance(left, Leave)
        assert left.node != new
        one.peer_lost(left.node, now=now)
        changes += 1
        if changes == 3:
            break
    assert changes == 3


def test_the_passive_view_is_bounded_and_those_that_fail_make_room() -> None:
    one = view(known=range(1, 500))
    assert len(one.known) == MAX_KNOWN
    one.tick(now=0.0)
    failing = next(iter(one.dialled))
    one.dial_failed(failing, busy=False, now=0.0)
    one.learnt(node(1000), Kind.HOLDER, ("new:1",))
    assert len(one.known) == MAX_KNOWN
    assert node(1000) in one.known
    assert failing not in one.known
    assert Leave(failing) in one.tick(now=1.0)
    one.forgotten([node(1000)])
    assert node(1000) not in one.known


def test_a_connection_that_this_node_made_before_it_knew_the_address_is_kept() -> None:
    one = view()
    joined(one, node(1))
    one.learnt(node(1), Kind.HOLDER, ("central:1",))
    assert one.dialled == {node(1): ("central:1",)}
    one.learnt(node(1), Kind.HOLDER, ("moved:1",))
    assert one.dialled == {node(1): ("moved:1",)}


class Graph:
    """Views wired together in rounds: a dial reaches whoever is there in the next round."""

    def __init__(self, holders: int, sites: int, seed: int) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.holders = [node(n) for n in range(1, holders + 1)]
        self.site_of = {node(1000 + 2 * site + k): site for site in range(sites) for k in range(2)}
        self.views = {
            one: PeerView(one, holder=one in self.holders, most=400, random=Random(seed + n))
            for n, one in enumerate([*self.holders, *self.site_of])
        }
        for one, its in self.views.items():
            for other in self.holders:
                its.learnt(other, Kind.HOLDER, ("x",))
            for other, site in self.site_of.items():
                if site == self.site_of.get(one):
                    its.learnt(other, Kind.NEIGHBOUR, ("x",))

    def kind(self, one: NodeId, other: NodeId) -> Kind:
        if other in self.holders:
            return Kind.HOLDER
        near = self.site_of[other] == self.site_of.get(one)
        return Kind.NEIGHBOUR if near else Kind.OTHER

    def round(self, *, cut: frozenset[NodeId] = frozenset()) -> None:
        self.now += 1.0
        for one, its in list(self.views.items()):
            for effect in its.tick(now=self.now):
                if not isinstance(effect, Dial) and effect.node in self.views:
                    self.views[effect.node].peer_lost(one, now=self.now)
                    its.peer_lost(effect.node, now=self.now)
            for other in its.dialled.keys() - its.connected:
                if other not in self.views or (one in cut) != (other in cut):
                    its.dial_failed(other, busy=False, now=self.now)
                else:
                    its.peer_joined(other, self.kind(one, other), dialled=True)
                    self.views[other].peer_joined(one, self.kind(other, one), dialled=False)

    def cut(self, some: frozenset[NodeId]) -> None:
        for one, its in self.views.items():
            for other in its.connected:
                if (one in some) != (other in some):
                    its.peer_lost(other, now=self.now)

    def vanish(self, part: float) -> None:
        for gone in self.random.sample(sorted(self.views), round(part * len(self.views))):
            for other in self.views.pop(gone).connected:
                if other in self.views:
                    self.views[other].peer_lost(gone, now=self.now)

    def reached(self) -> int:
        """How many there are in the part of somebody that holds everything."""
        start = next(one for one in self.views if one in self.holders)
        seen, queue = {start}, deque([start])
        while queue:
            for other in self.views[queue.popleft()].connected - seen:
                seen.add(other)
                queue.append(other)
        return len(seen)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("holders", "sites"), [(6, 97), (40, 80)])
def test_the_graph_stays_whole_when_a_third_vanishes_at_once(
    holders: int, sites: int, seed: int
) -> None:
    graph = Graph(holders, sites, seed)
    for _ in range(4):
        graph.round()
    assert graph.reached() == len(graph.views)
    graph.vanish(1 / 3)
    for _ in range(4):
        graph.round()
    assert graph.reached() == len(graph.views)
    for _ in range(12):
        graph.round()
    for one, its in graph.views.items():
        present = [other for other in its.connected if other in graph.views]
        holding = sum(other in graph.holders for other in present)
        if one not in graph.holders:
            assert holding >= min(HOLDERS, sum(other in graph.views for other in graph.holders))
            assert len(present) <= 10


@pytest.mark.parametrize("seed", range(3))
def test_halves_that_were_cut_apart_become_one_again(seed: int) -> None:
    graph = Graph(40, 20, seed)
    half = frozenset(graph.holders[:20]) | frozenset(
        one for one, site in graph.site_of.items() if site < 10
    )
    for _ in range(4):
        graph.round()
    graph.cut(half)
    for _ in range(120):
        graph.round(cut=half)
    assert graph.reached() == len(graph.views) / 2
    for _ in range(600):
        graph.round()
    assert graph.reached() == len(graph.views)
