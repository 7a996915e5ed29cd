"""What comes in at a running node's doors and is not what it should be: a typed no, life goes on.

The control socket is spoken to by a client of another make, the network port by peers that never
prove anything. Every log is read at the end: an ERROR would mean that a stranger can make a node
complain about itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archid.control.client import ControlClient
from archid.errors import UsageError
from tests.fleet.local import LocalFleet
from tests.fleet.watched import watched_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A central alone."""
    with watched_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.found()
        yield fleet


FOLDER = {"type": "folder", "path": "reels"}
FILE = {"type": "file", "path": "reel", "size": 1, "executable": False, "mtime_ns": 0}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"commit": "yes"},
        {"entries": "reels"},
        {"entries": [1]},
        {"entries": [[]]},
        {"entries": [{"type": "device", "path": "reels"}]},
        {"entries": [{"type": "folder"}]},
        {"entries": [{"type": "folder", "path": 7}]},
        {"entries": [{"type": "link", "path": "a"}]},
        {"entries": [{**FILE, "executable": "no"}]},
        {"entries": [{**FILE, "mtime_ns": "today"}]},
        {"entries": [{**FILE, "path": None}]},
        {"entries": [FOLDER, FILE]},
    ],
    ids=str,
)
def test_a_publishing_client_that_sends_something_else_is_told_so(
    fleet: LocalFleet, body: dict[str, Any]
) -> None:
    params = {"script": "film", "kind": "feature", "files": 1, "size_bytes": 1}
    with ControlClient(fleet.central.socket).start("publish", params) as conversation:
        conversation.send_input(body)
        with pytest.raises(UsageError):
            conversation.result()


def test_after_all_of_that_the_script_can_be_published(fleet: LocalFleet, tmp_path: Path) -> None:
    folder = tmp_path / "film"
    folder.mkdir()
    (folder / "reel").write_text("a reel")
    assert fleet.publish(folder, "film", "feature")["version"] == 1
    assert list((fleet.central.state / "staging").iterdir()) == []


def test_a_crash_between_trust_file_and_journal_does_not_lower_the_floor(fleet: LocalFleet) -> None:
    node = fleet.central
    head = node.status()["trust"]
    node.process.stop()
    with sqlite3.connect(node.state / "journal.db") as journal:
        journal.execute("UPDATE floor SET serial = 1")
    journal.close()
    node.process.start()
    assert node.status()["trust"]["serial"] >= head["serial"] > 1
    with sqlite3.connect(node.state / "journal.db") as journal:
        [floor] = journal.execute("SELECT epoch, serial FROM floor")
    journal.close()
    assert floor >= (head["epoch"], head["serial"])
