"""Keys of the fleet are replaced while it runs; the old ones sign nothing any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import trio

from archid.control.schema import document
from protocol.limits import MAX_SERIAL
from tests.e2e.test_away import leaves
from tests.e2e.test_central_comes_back import apply, publish, serial
from tests.fleet.desk import node_id, wait_until_open
from tests.fleet.events import EventTap
from tests.fleet.forger import Forger, Pretence, StolenKeys, announce, trusted_head
from tests.fleet.local import CommandFailed, FleetNode, LocalFleet
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path, allow=("head_forked",)) as fleet:
        yield fleet


def with_root_keys(fleet: LocalFleet, *command: str) -> list[str]:
    """The words of a command that signs with the root keys."""
    secret = fleet.central.folder / "passphrase"
    keys = ["--root-keys", str(fleet.base / "root-keys"), "--passphrase-file", str(secret)]
    return [*command, *keys, "--yes"]


def follow(*nodes: FleetNode, order: tuple[int, int], root: int) -> None:
    """Return when all of them believe this head and this Root."""
    for node in nodes:
        node.wait(
            lambda status: (
                (status["trust"]["epoch"], status["trust"]["serial"]) >= order
                and status["trust"]["root_version"] == root
            ),
            what=f"head {order} under Root {root}",
        )


def show(forger: Forger, victim: FleetNode, *heads: bytes, fork: bytes = b"") -> None:
    """Announce heads to a node; with `fork`, return when it has raised the alarm for that one."""

    async def run(tap: EventTap) -> None:
        async with forger.pretending(victim.address, Pretence()) as peer:
            for head in heads:
                await announce(peer, head)
            if fork:
                await announce(peer, fork)
                await trio.to_thread.run_sync(alarm, tap)
            else:
                await trio.to_thread.run_sync(tap.wait, "head.accepted")

    def alarm(tap: EventTap) -> None:
        tap.wait("alarm", lambda event: event["code"] == "head_forked")

    with EventTap(victim) as tap:
        trio.run(run, tap)


@pytest.mark.long
def test_the_fleet_runs_on_while_every_online_key_is_replaced(fleet: LocalFleet) -> None:
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris")
    room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    away = fleet.join("lyon-2-salle", "ice", site="lyon", room="2", kind="salle", start=False)
    fleet.join("nice-1-salle", "ice", site="nice", room="1", kind="salle", start=False)
    folders = publish(fleet, "film", "first")
    apply(fleet, "film")
    room.wait_active("film")
    pids = {node.name: node.process.pid for node in (central, repo, room)}
    stolen = StolenKeys(central)
    passphrase = (central.folder / "passphrase").read_text().strip()

    wrong = with_root_keys(fleet, "root", "rotate", "--keys", "root")
    with pytest.raises(CommandFailed) as refusal:
        central.run(*wrong)
    assert "no online key" in refusal.value.err
    made = central.json(*with_root_keys(fleet, "root", "rotate"))
    jsonschema.validate(made, document("root.install"))
    assert (made["version"], made["epoch"]) == (2, 1)
    assert "head" in made["replaced"]
    assert "ca" not in made["replaced"]
    assert "root install version 2 epoch 1" in central.run("log").stdout
    follow(central, repo, room, order=(1, made["head"]["serial"]), root=2)
    assert {node.name: node.process.pid for node in (central, repo, room)} == pids

    # The old key's signature counts for nothing, the new one's does: it raises the alarm.
    renewed = StolenKeys(central)
    head, head_bytes, _ = trusted_head(central.state)
    forged = stolen.head(head, serial=head.serial + 1)
    forger = Forger(fleet.nodes["nice-1-salle"].state)
    for victim in (repo, room):
        show(forger, victim, forged, fork=renewed.fork(head))
        assert trusted_head(victim.state)[1] == head_bytes

    # What was published before is still good, what comes now is signed anew.
    latest = publish(fleet, "film", "second")
    after = publish(fleet, "after", "first")
    apply(fleet, "after")
    away.process.start()
    away.wait_active("film")
    away.wait_active("after")
    follow(away, order=head.order, root=2)
    apply(fleet, "film")
    room.wait_active("film", generation=2)
    central.process.kill()
    central.process.start()
    wait_until_open(central)
    publish(fleet, "after", "second")
    for film, sources in (("film", latest), ("after", after)):
        for kind in ("feature", "sas"):
            assert (room.scripts / "releases" / film / kind / "index").exists(), sources
    check_arrived(latest["loop"], room.scripts / "releases" / "film" / "loop")
    assert folders == latest
    for node in (central, repo, room, away):
        text = node.log.read_text()
        assert passphrase not in text
        assert "PRIVATE" not in text


@pytest.mark.long
def test_a_new_epoch_beats_the_greatest_serial_that_a_thief_can_sign(fleet: LocalFleet) -> None:
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris")
    room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    away = fleet.join("lyon-2-salle", "ice", site="lyon", room="2", kind="salle", start=False)
    fleet.join("nice-1-salle", "ice", site="nice", room="1", kind="salle", start=False)
    folders = publish(fleet, "film", "first")
    apply(fleet, "film")
    room.wait_active("film")
    last = serial(central)
    repo.wait(lambda status: status["trust"]["serial"] == last, what="the newest head")

    stolen = StolenKeys(central)
    head, _, _ = trusted_head(central.state)
    greatest = stolen.head(head, serial=MAX_SERIAL)
    forger = Forger(fleet.nodes["nice-1-salle"].state)
    show(forger, room, greatest)
    follow(repo, room, central, order=(1, MAX_SERIAL), root=1)
    central.wait(lambda status: status["health"]["level"] == "ok", what="taking it over")
    with pytest.raises(CommandFailed) as refusal:
        publish(fleet, "film", "second")
    assert "serials of this epoch have run out" in refusal.value.out

    made = central.json(*with_root_keys(fleet, "epoch", "new"))
    assert made["epoch"] == 2
    follow(central, repo, room, order=(2, made["head"]["serial"]), root=2)
    assert made["head"]["serial"] < MAX_SERIAL
    # The thief has nothing any more, neither under the old epoch nor under the new one.
    newest, newest_bytes, _ = trusted_head(central.state)
    worthless = (
        greatest,
        stolen.head(head, serial=MAX_SERIAL, expires_s=head.expires_s + 1),
        stolen.head(newest, serial=newest.serial + 1),
        stolen.head(newest, serial=MAX_SERIAL),
    )
    renewed = StolenKeys(central)
    # The thief's own node is a member still, and needs a leaf of the new epoch to be let in.
    insider = fleet.nodes["nice-1-salle"]
    insider.process.start()
    leaf = f"{node_id(insider).hex()}-{newest.grants_roots[0].hex()}"
    insider.wait(lambda _: leaf in leaves(insider.state), what="its leaf of the new epoch")
    insider.process.stop()
    forger = Forger(insider.state)
    for victim in (repo, room):
        show(forger, victim, *worthless, fork=renewed.fork(newest))
        assert trusted_head(victim.state)[1] == newest_bytes

    away.process.start()
    away.wait_active("film")
    latest = publish(fleet, "film", "second")
    apply(fleet, "film")
    for node in (room, away):
        node.wait_active("film", generation=2)
        check_arrived(latest["feature"], node.scripts / "releases" / "film" / "feature")
    assert folders == latest
    central.process.stop()
    central.process.start()
    wait_until_open(central)
    publish(fleet, "film", "third")


@pytest.mark.long
def test_nodes_get_certificates_by_a_new_ca_and_one_that_missed_it_comes_back(
    fleet: LocalFleet,
) -> None:
    central = fleet.found()
    repo = fleet.join("repo-1", "repo", site="paris")
    room = fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle")
    away = fleet.join("lyon-2-salle", "ice", site="lyon", room="2", kind="salle", start=False)
    late = fleet.join("lyon-3-salle", "ice", site="lyon", room="3", kind="salle", start=False)
    publish(fleet, "film", "first")
    apply(fleet, "film")
    room.wait_active("film")

    with EventTap(repo) as one, EventTap(room) as two:
        made = central.json(*with_root_keys(fleet, "root", "rotate", "--ca"))
        assert (made["cas"], made["replaced"]) == (2, ["ca"])
        for tap in (one, two):
            assert tap.wait("certificate.renewed")["root_version"] == 2
    # While both count, one that knows the old CA only is let in as ever, and a new one too.
    late.process.start()
    late.wait_active("film")
    fresh = fleet.join("lyon-1-sas", "ice", site="lyon", room="1", kind="sas")
    apply(fleet, "film")
    fresh.wait_active("film")

    with EventTap(late) as tap:
        made = central.json(*with_root_keys(fleet, "root", "rotate", "--drop-old-ca"))
        assert made["cas"] == 1
        tap.wait("root.accepted", lambda event: event["version"] == 3)
    follow(central, repo, room, late, order=(1, made["head"]["serial"]), root=3)
    latest = publish(fleet, "film", "second")
    apply(fleet, "film")
    for node in (repo, room, late):  # every connection is made anew
        node.process.stop()
        node.process.start()
    central.process.stop()
    central.process.start()
    wait_until_open(central)
    for node in (room, late, fresh):
        node.wait_active("film", generation=3)

    away.process.start()  # it shares no CA with anybody
    away.wait_active("film", generation=3)
    follow(away, order=(1, made["head"]["serial"]), root=3)
    check_arrived(latest["sas"], away.scripts / "releases" / "film" / "sas")
