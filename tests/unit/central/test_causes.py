"""Every cause has its sentence, and is told by the words that nodes really use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from archid.central.causes import ALONE, CLOCK, NO_SOURCE, WRONG_BYTES, Situation, cause_of
from archid.store.errors import DiskFull

START_S = 1_790_000_000
ONE = Situation(
    node="lyon-1-salle",
    release="film",
    generation=2,
    prefetch_s=START_S - 86_400,
    start_s=START_S,
    end_s=START_S + 86_400,
    state="fetching",
    reason="",
    health_reasons=(),
    held_percent=40.0,
    holders=("nice-1-salle",),
    now_s=START_S - 3_600,
)
CLOCK_OFF = ("This machine's clock is at least 90 minutes behind",)
FULL = DiskFull(Path("/srv"), needed_bytes=2_000_000_000, available_bytes=1_000_000_000).message


@pytest.mark.parametrize(
    ("changes", "words", "solved"),
    [
        ({"state": "planned", "now_s": START_S - 90_000}, "fetches film from 2026-09-20", True),
        ({}, "is fetching film: 40 % is there", False),
        ({"reason": NO_SOURCE}, "waits for a source: none of the nodes that it reaches", False),
        ({"reason": NO_SOURCE}, "nice-1-salle hold it", False),
        ({"reason": NO_SOURCE, "holders": ()}, "no node says that it holds all of it", False),
        (
            {"reason": NO_SOURCE, "health_reasons": (f"{ALONE}: nothing listens on repo-1:4777",)},
            "reaches no other node, so it cannot fetch film: 40 % is there; nothing listens",
            False,
        ),
        (
            {"reason": "repo-1 does not give it: it sent wrong bytes"},
            "got wrong bytes of film from repo-1",
            False,
        ),
        ({"reason": "repo-1 does not give it: it is busy"}, "; repo-1 does not give it", False),
        ({"state": "failed", "reason": FULL}, "has no space for film", False),
        ({"reason": FULL}, "has no space for film", False),
        ({"state": "failed", "reason": "the disk broke"}, "film failed on lyon-1-salle", False),
        ({"state": "ready"}, "holds all of film and switches at", True),
        ({"state": "ready", "now_s": START_S + 600}, "should have switched at", False),
        (
            {"state": "ready", "now_s": START_S + 600, "health_reasons": CLOCK_OFF},
            "has not switched to film yet, since its clock is wrong: this machine's clock",
            False,
        ),
        (
            {"state": "planned", "health_reasons": CLOCK_OFF},
            "does not fetch film yet, since its clock is wrong",
            False,
        ),
        ({"state": "active", "now_s": START_S + 5, "health_reasons": CLOCK_OFF}, "plays", True),
        ({"state": "active", "now_s": START_S + 5}, "plays generation 2", True),
        (
            {"state": "rolled_back", "reason": "by hand, from generation 2"},
            "was rolled back by hand, from generation 2",
            False,
        ),
        ({"state": "ended"}, "film ended at", True),
        ({"state": "withdrawn"}, "film was withdrawn from lyon-1-salle", True),
    ],
)
def test_each_cause_has_its_sentence(changes: dict[str, object], words: str, solved: bool) -> None:
    cause = cause_of(replace(ONE, **changes))  # type: ignore[arg-type]
    assert words in cause.sentence
    assert cause.solved == solved
    assert solved or cause.remedy or cause.sentence.endswith("40 % is there")


def test_the_words_by_which_causes_are_told_are_those_that_nodes_use() -> None:
    archid = Path(__file__).parents[3] / "archid"
    said = "".join(
        (archid / path).read_text()
        for path in ("control/node_status.py", "sync/sources.py", "sync/fetch_job.py")
    )
    for words in (ALONE, CLOCK, NO_SOURCE, WRONG_BYTES):
        assert words in said
