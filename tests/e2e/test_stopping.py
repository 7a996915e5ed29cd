"""A daemon that is asked things until its very end ends without an error in its log."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from archid.errors import ArchidError
from tests.fleet.film import publish_film
from tests.fleet.local import FleetNode, local_fleet

STOPS: Final = 2
NOTHING: Final[dict[str, Any]] = {}
QUESTIONS: Final[dict[str, dict[str, Any]]] = {
    "status": NOTHING,
    "peers": NOTHING,
    "scripts": NOTHING,
    "pins": NOTHING,
    "verify": {"script": None, "manifest": None},
    "log": {"limit": 10, "since_s": None, "kinds": [], "follow": False},
}
OF_CENTRAL: Final = {"fleet": NOTHING, "release.list": NOTHING, "token.list": NOTHING}


@pytest.mark.parametrize("role", ["central", "ice"])
def test_questions_that_come_while_it_stops_are_answered_or_cut_off(
    tmp_path: Path, role: str
) -> None:
    with local_fleet(tmp_path) as fleet:
        node = fleet.found()
        publish_film(fleet)
        questions = {**QUESTIONS, **OF_CENTRAL}
        if role == "ice":
            node = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
            questions = QUESTIONS
        for _ in range(STOPS):
            stopped = threading.Event()
            askers = [Asker(node, *question, stopped) for question in questions.items()]
            for asker in askers:
                asker.start()
            for asker in askers:
                assert asker.answered.wait(timeout=30), f"{asker.method} is not answered"
            assert node.process.stop() == 0
            stopped.set()
            for asker in askers:
                asker.join()
            assert not errors_of(node)
            node.process.start()


class Asker(threading.Thread):
    """Asks the same thing again and again until the node has stopped."""

    def __init__(
        self, node: FleetNode, method: str, params: dict[str, Any], stopped: threading.Event
    ) -> None:
        super().__init__(name=f"ask {method}")
        self.method = method
        self.answered = threading.Event()
        self._node, self._params, self._stopped = node, params, stopped

    def run(self) -> None:
        while not self._stopped.is_set():
            with suppress(ArchidError):
                self._node.call(self.method, **self._params)
                self.answered.set()


def errors_of(node: FleetNode) -> list[str]:
    lines = node.log.read_text().splitlines()
    return [line for line in lines if json.loads(line)["level"] in ("error", "critical")]
