"""A server is revoked while a film is on its way to it: every peer cuts it off in mid-transfer.

The server is frozen as soon as a part of it is on its way, so that it cannot be faster than a
person who revokes it; its connections and its requests stay open meanwhile.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from archid.cli import figures
from tests.demo.cast import LATE, NEXT, REPOS, REVOKED, Fault, script_name
from tests.demo.stage import NotSeen, Stage
from tests.demo.summary import Revoked
from tests.fleet.desk import wait_until_open
from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode
from tests.fleet.scripts import write_script

SLICE_S: Final = 0.01
SLICES: Final = 500
PART: Final = 10
"""The server is revoked when one of so many parts of the film has been sent to it."""
CUT_TIMEOUT_S: Final = 20.0


def revoke(stage: Stage) -> None:
    """Central comes back, a film sets out, its receiver is revoked."""
    with stage.story.step("central is started again and asks the REPOs") as notes:
        central, victim, neighbour = stage.central, stage.node(REVOKED), stage.node(LATE)
        central.process.start()
        wait_until_open(central)
        notes.say(f"the film {NEXT} is published")
        write_script(stage.sources / NEXT / "feature", NEXT, "feature", stage.options.next_shape)
        result = stage.publish("feature", NEXT)
        manifest, size_bytes = result["manifest"], result["size_bytes"]
        servers = [central, *(stage.node(member) for member in REPOS), neighbour]
        before, received_before = _sent_to(victim.name, servers), stage.received_bytes(REVOKED)
        scripts = {kind: script_name(kind) for kind in ("sas", "loop")}
        with EventTap(victim) as tap:
            stage.apply(
                title=NEXT,
                sites=[REVOKED.site],
                scripts={"feature": script_name("feature", NEXT), **scripts},
            )
            tap.wait("fetch.started", lambda event: event["manifest"] == manifest)
            enough = before + size_bytes // PART
            with _frozen(victim, lambda: _sent_to(victim.name, servers) > enough):
                on_the_way = _sent_to(victim.name, servers) - before
                notes.say(f"{figures.size(on_the_way)} are on their way: revoked")
                began = time.monotonic()
                if not stage.has(Fault.REVOKE):
                    central.run("revoke", victim.name, "--yes")
                _wait_for_cut(victim.name, servers)
                took_s = time.monotonic() - began
        reasons = _lonely(victim)
        received = stage.received_bytes(REVOKED) - received_before
        held = (victim.scripts / "releases" / NEXT).exists()
        neighbour.wait_active(NEXT)
        stage.summary.revoked = Revoked(victim.name, size_bytes, received, took_s, reasons)
        if held or received >= size_bytes:
            raise NotSeen(f"{victim.name} was revoked and got the whole of {NEXT} all the same")
        notes.say(
            f"{victim.name} cut by {len(servers)} peers after"
            f" {figures.part(received, size_bytes)}; {neighbour.name} has it all"
        )


def _sent_to(name: str, servers: Sequence[FleetNode]) -> int:
    """Script content that the servers say is on its way to a node over its present connections."""
    return sum(
        peer["content_sent_bytes"]
        for server in servers
        for peer in _admitted(server.status())
        if peer["name"] == name
    )


def _admitted(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [peer for peer in status["peers"] if peer["state"] == "admitted"]


@contextmanager
def _frozen(node: FleetNode, begun: Callable[[], bool]) -> Iterator[None]:
    """Stop the process, in slices until `begun` holds; it goes on after the block."""
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        for _ in range(SLICES):
            if begun():
                break
            os.kill(node.process.pid, signal.SIGCONT)
            threading.Event().wait(SLICE_S)
            os.kill(node.process.pid, signal.SIGSTOP)
        else:
            raise NotSeen(f"nothing of {NEXT} set out for {node.name}")
        yield
    finally:
        os.kill(node.process.pid, signal.SIGCONT)


def _wait_for_cut(name: str, servers: Sequence[FleetNode]) -> None:
    for server in servers:
        try:
            server.wait(
                lambda status: name not in {peer["name"] for peer in _admitted(status)},
                what="cutting",
                timeout_s=CUT_TIMEOUT_S,
            )
        except AssertionError:
            raise NotSeen(
                f"{server.name} did not cut {name} off within {CUT_TIMEOUT_S:g} s"
            ) from None


def _lonely(victim: FleetNode) -> list[str]:
    """What it is told at every door, once nobody lets it in."""
    status = victim.wait(
        lambda status: not _admitted(status) and any(peer["reason"] for peer in status["peers"]),
        what="being alone",
    )
    return sorted({peer["reason"] for peer in status["peers"] if peer["reason"]})
