"""The pauses of a peer that sent wrong bytes."""

from __future__ import annotations

from archid.sync.distrust import FIRST_S, LONGEST_S, Distrust
from protocol.ids import ManifestId, NodeId

FILM, OTHER = ManifestId.of(b"film"), ManifestId.of(b"other")
LIAR, HONEST = NodeId.of(b"liar"), NodeId.of(b"honest")


def test_each_lie_doubles_the_pause_and_concerns_one_version_and_one_node() -> None:
    distrust = Distrust()
    now = 100.0
    for length_s in (FIRST_S, 2 * FIRST_S, 4 * FIRST_S):
        distrust.lied(FILM, LIAR, now=now)
        assert distrust.wait_s(FILM, LIAR, now=now) == length_s
        now += length_s
        assert distrust.wait_s(FILM, LIAR, now=now) == 0
    assert distrust.wait_s(OTHER, LIAR, now=100) == 0
    assert distrust.wait_s(FILM, HONEST, now=100) == 0


def test_no_pause_is_longer_than_an_hour_and_old_lies_are_forgotten() -> None:
    distrust = Distrust()
    for _ in range(20):
        distrust.lied(FILM, LIAR, now=0)
    assert distrust.wait_s(FILM, LIAR, now=0) == LONGEST_S
    distrust.lied(FILM, LIAR, now=4 * LONGEST_S)
    assert distrust.wait_s(FILM, LIAR, now=4 * LONGEST_S) == FIRST_S
