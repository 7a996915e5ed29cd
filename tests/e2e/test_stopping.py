"""A daemon that is asked things until its very end ends without an error in its log."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

from archid.errors import ArchidError
from tests.fleet.local import FleetNode, local_fleet

ASKERS = 4
STOPS = 3


def test_questions_that_come_while_it_stops_are_answered_or_cut_off(tmp_path: Path) -> None:
    with local_fleet(tmp_path) as fleet:
        fleet.found()
        node = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
        for _ in range(STOPS):
            stopped = threading.Event()
            answered = threading.Semaphore(0)
            askers = [
                threading.Thread(target=ask, args=(node, answered, stopped)) for _ in range(ASKERS)
            ]
            for asker in askers:
                asker.start()
            for _ in range(3 * ASKERS):
                assert answered.acquire(timeout=30), "nothing is answered"
            assert node.process.stop() == 0
            stopped.set()
            for asker in askers:
                asker.join()
            assert not errors_of(node)
            node.process.start()


def ask(node: FleetNode, answered: threading.Semaphore, stopped: threading.Event) -> None:
    while not stopped.is_set():
        with suppress(ArchidError):
            node.status()
            answered.release()


def errors_of(node: FleetNode) -> list[str]:
    lines = node.log.read_text().splitlines()
    return [line for line in lines if json.loads(line)["level"] in ("error", "critical")]
