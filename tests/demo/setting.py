"""The first acts: the fleet is started, the scripts are written and published."""

from __future__ import annotations

import time

from archid.cli import figures
from tests.demo.cast import KINDS, LATE, MEMBERS, TITLE, script_name
from tests.demo.stage import Stage, published
from tests.fleet.scripts import write_script


def start(stage: Stage) -> None:
    """Every process of its own; one server is enrolled and stays off."""
    began = time.monotonic()
    with stage.story.step("central is founded") as notes:
        central = stage.fleet.found()
        stage.watcher.follow(central)
        servers = [f"{stage.fleet.subnet}.{host}:4777" for host in (2, 3, 4)]
        for member in MEMBERS:
            notes.say(f"{member.name} joins by token")
            node = stage.fleet.join(
                member.name,
                member.role,
                site=stage.site(member),
                room=member.room,
                kind=member.kind,
                peers=servers if member.role == "ice" else (),
                start=False,
                advertise=stage.advertised(member),
            )
            if member is not LATE:
                node.process.launch()  # it gets ready while the next one joins
        for member in MEMBERS:
            if member is not LATE:
                notes.say(f"{member.name} gets ready")
                stage.node(member).process.wait_ready()
                stage.watcher.follow(stage.node(member))
        notes.say("central, 2 REPOs, 6 servers of 3 cinemas, one of them off")
    stage.summary.joining_seconds = time.monotonic() - began


def write(stage: Stage) -> None:
    """The scripts of a film."""
    with stage.story.step() as notes:
        total = 0
        for kind in KINDS:
            notes.say(f"{kind} of the film {TITLE}")
            shape = stage.options.shapes[kind]
            total += write_script(stage.sources / TITLE / kind, TITLE, kind, shape)
        notes.say(f"a Feature, a SAS and a loop, {figures.size(total)}")


def publish(stage: Stage) -> None:
    """All three, on central."""
    with stage.story.step() as notes:
        stage.published_at = time.monotonic()
        for kind in KINDS:
            notes.say(script_name(kind))
            began = time.monotonic()
            result = stage.publish(kind)
            stage.summary.scripts.append(published(result, time.monotonic() - began))
        took = sum(one.seconds for one in stage.summary.scripts)
        size = stage.film_bytes
        notes.say(f"3 scripts, {figures.size(size)}, {figures.rate(size / took)}")
