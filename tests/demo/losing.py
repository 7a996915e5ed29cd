"""Central is killed, and a server that holds nothing gets everything all the same."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress

from archid.addresses import parse_address
from tests.demo.breaking import flip_a_byte, largest_file
from tests.demo.cast import CENTRAL, LATE, REPOS, TITLE, Fault
from tests.demo.delivering import compare_rooms
from tests.demo.stage import NotSeen, Stage
from tests.demo.summary import Orphaned
from tests.demo.telling import shares
from tests.fleet.local import FleetNode


def lose(stage: Stage) -> None:
    """Kill central, see that it is dead, start the server, compare what it gets."""
    with stage.story.step("kill -9") as notes:
        central, late = stage.central, stage.node(LATE)
        pid = central.process.pid
        if not stage.has(Fault.CENTRAL):
            central.process.kill()
        _must_be_dead(central, pid)
        began = time.monotonic()
        late.process.start()
        stage.watcher.follow(late)
        notes.say(f"{late.name} is started and knows nobody but {CENTRAL} and the REPOs")
        views = stage.wait(
            lambda views: late.name in views and views[late.name].generation >= 2,
            what=f"{late.name} did not get the release without central",
            alive=[late, *(stage.node(member) for member in REPOS)],
        )
        took_s = time.monotonic() - began
        _must_be_dead(central, pid)
        sources = dict(views[late.name].sources)
        if CENTRAL in sources or not sources:
            raise NotSeen(f"{late.name} should have had all from others than central: {sources}")
        if stage.has(Fault.LATE):
            flip_a_byte(largest_file(late.release_file(TITLE, "feature").resolve()))
        [compared] = compare_rooms(stage, notes, [LATE])
        if not compared.differences:
            stage.summary.orphaned = Orphaned(late.name, pid, sources, took_s, compared.files)
            notes.say(
                f"{late.name} got all without it: {shares(sources)}; {compared.files:,} files equal"
            )


def _must_be_dead(central: FleetNode, pid: int) -> None:
    """Look for the process and knock at its port. Raises NotSeen."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        raise NotSeen(f"central is still alive: process {pid} is there")
    address = parse_address(central.address)
    with socket.socket() as one:
        if one.connect_ex((address.host, address.port)) == 0:
            raise NotSeen(f"central is still alive: {central.address} answers")
    assert central.process.returncode == -signal.SIGKILL
