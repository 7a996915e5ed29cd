"""A revoked node is cut off in the middle of what it reads, also when central lives no longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_central_comes_back import KINDS, accepted_serials, serial
from tests.e2e.test_taking_away import admitted
from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.relay import Relay
from tests.fleet.trees import write_varied
from tests.fleet.watched import watched_fleet

IN_TRANSFER_BYTES = 600_000
LINE_BYTES_PER_S = 150_000.0
TALK_BYTES = 200_000
"""More than what goes over the line in greetings and refusals after it was cut."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    with watched_fleet(tmp_path) as fleet:
        yield fleet


def move(fleet: LocalFleet, node: FleetNode, *, peers: tuple[str, ...] = ()) -> None:
    """Give a stopped node an address that nobody knows, and let it forget everybody else's."""
    node.address = node.advertise = fleet.address()
    node.peers = peers
    node.write_config()
    (node.state / "addresses.json").unlink(missing_ok=True)


@pytest.mark.long
def test_a_revocation_that_one_repo_has_cuts_a_transfer_although_central_died(
    fleet: LocalFleet,
) -> None:
    with Relay(fleet.address()) as relay:
        central = fleet.found()
        first = fleet.join("repo-1", "repo", site="paris")
        second = fleet.join("repo-2", "repo", site="oslo", start=False)
        relay.target = second.address
        second.advertise = relay.address
        second.write_config()
        second.process.start()
        sibling = fleet.join("lyon-1-sas", "ice", site="lyon", room="1", kind="sas")
        revoked = fleet.join(
            "lyon-1-salle", "ice", site="lyon", room="1", kind="salle", start=False
        )
        for kind in KINDS:
            write_varied(fleet.base / "source" / kind, f"revocation {kind}")
            fleet.publish(fleet.base / "source" / kind, f"film-{kind}", kind)
        fleet.apply(
            "film",
            scripts={kind: f"film-{kind}" for kind in KINDS},
            prefetch="2026-01-01T00:00:00Z",
            start="2026-01-02T00:00:00Z",
            end="2126-01-02T00:00:00Z",
            nodes='["lyon-1-salle"]',
        )
        before = serial(central)
        for repo in (first, second):
            repo.wait(
                lambda status: (
                    status["storage"]["trees"] == len(KINDS) and status["trust"]["serial"] == before
                ),
                what="replication",
            )
        sibling.wait(lambda status: status["trust"]["serial"] == before, what="the newest head")
        central.process.stop()
        first.process.stop()

        # The second REPO alone serves it, over a line so slow that it lasts.
        relay.count_again()
        relay.rate_bytes_per_s = LINE_BYTES_PER_S
        flowing = relay.at(IN_TRANSFER_BYTES, lambda: None)
        revoked.peers = (relay.address, sibling.address)
        revoked.write_config()
        revoked.process.start()
        assert flowing.wait(60), f"only {relay.down_bytes} bytes came"
        revoked.wait(
            lambda status: admitted(status) >= {"repo-2", "lyon-1-sas"}, what="being admitted"
        )

        # Central and the first REPO are by themselves; what is signed there nobody else has.
        move(fleet, first)
        first.process.start()
        move(fleet, central, peers=(first.address,))
        central.process.start()
        central.run("trust-database", "--yes")
        told = central.json("revoke", "lyon-1-salle", "--yes")["head"]["serial"]
        first.wait(lambda status: status["trust"]["serial"] == told, what="the revocation")
        central.process.kill()
        assert accepted_serials(second)[-1] == before
        assert "repo-2" in admitted(revoked.status())

        with EventTap(revoked) as tap:
            first.process.stop()
            first.peers = (second.address,)
            first.write_config()
            first.process.start()
            # Cut off in mid-transfer, by the REPO that serves it and by its neighbour.
            tap.wait("peer.lost")
            revoked.wait(lambda status: not admitted(status), what="being cut off")
        relay.count_again()
        for node in (second, sibling):
            node.wait(
                lambda status: (
                    status["trust"]["serial"] == told and "lyon-1-salle" not in admitted(status)
                ),
                what="letting go of the revoked node",
            )
        # It tries again and again, and everybody says no; nothing of the film comes any more.
        refused = revoked.wait(
            lambda status: sum("denied" in (one["reason"] or "") for one in status["peers"]) >= 2,
            what="being refused by the REPO and by its neighbour",
        )
        assert not admitted(refused)
        assert relay.down_bytes < TALK_BYTES
        assert refused["storage"]["trees"] < len(KINDS)
