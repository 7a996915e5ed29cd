"""A room is ready when both of its machines are; otherwise the one that is not is named."""

from __future__ import annotations

from dataclasses import replace

from archid.central.release_plan import CurrentRelease, Server
from archid.central.rooms import Told, rooms_json
from protocol.ids import NodeId, ReleaseId

READY = Told("ready", None, current=True, silent=False)


def server(room: str, kind: str, site: str = "lyon") -> Server:
    name = f"{site}-{room}-{kind}"
    return Server(name, NodeId(name.encode().ljust(32, b".")), "ice", site, room, kind)


SALLE, SAS = server("1", "salle"), server("1", "sas")


def release(*servers: Server) -> CurrentRelease:
    return CurrentRelease(
        ReleaseId(b"R" * 16), "film", 2, "active", 0, 1, 2, {}, {one.node: one for one in servers}
    )


def shown(told: dict[Server, Told], *, enrolled: tuple[Server, ...] = ()) -> dict[str, object]:
    by_node = {one.node: what for one, what in told.items()}
    [room] = rooms_json(release(*told), by_node.__getitem__, enrolled=enrolled or tuple(told))
    return dict(room)


def test_a_room_is_ready_when_both_machines_are() -> None:
    both = shown({SALLE: READY, SAS: replace(READY, state="active")})
    assert both["ready"]
    assert both["sentence"] == "room 1 of lyon is ready"
    assert both["servers"] == [SALLE.name, SAS.name]


def test_the_machine_that_is_not_ready_is_named_with_its_reason() -> None:
    fetching = Told("fetching", "no peer that holds it is connected", current=True, silent=False)
    room = shown({SALLE: READY, SAS: fetching})
    assert not room["ready"]
    assert room["sentence"] == (
        "room 1 of lyon is not ready: its SAS server lyon-1-sas is fetching"
        " (no peer that holds it is connected)"
    )


def test_what_was_said_of_an_older_generation_or_long_ago_is_no_proof() -> None:
    old = shown({SALLE: replace(READY, state="active", current=False), SAS: READY})
    assert "lyon-1-salle has not heard of the newest generation" in str(old["sentence"])
    silent = shown({SALLE: READY, SAS: replace(READY, silent=True)})
    assert "lyon-1-sas has said nothing for a while" in str(silent["sentence"])
    unknown = shown({SALLE: READY, SAS: Told("unknown", None, current=False, silent=True)})
    assert "lyon-1-sas has not said anything of this release" in str(unknown["sentence"])


def test_a_machine_rolled_back_by_hand_is_not_ready() -> None:
    room = shown({SALLE: replace(READY, state="rolled_back"), SAS: READY})
    assert "lyon-1-salle is rolled back" in str(room["sentence"])


def test_a_room_with_one_machine_says_which_is_lacking() -> None:
    alone = shown({SALLE: READY})
    assert alone["sentence"] == "room 1 of lyon is not ready: it has no SAS server"
    untargeted = shown({SALLE: READY}, enrolled=(SALLE, SAS))
    assert "its SAS server lyon-1-sas is not among the targets" in str(untargeted["sentence"])


def test_rooms_and_sites_are_told_apart() -> None:
    servers = [server(room, kind, site) for site in ("lyon", "nice") for room in "12"
               for kind in ("salle", "sas")]  # fmt: skip
    rooms = rooms_json(release(*servers), lambda _: READY, enrolled=servers)
    assert [(room["site"], room["room"]) for room in rooms] == [
        ("lyon", "1"), ("lyon", "2"), ("nice", "1"), ("nice", "2"),
    ]  # fmt: skip
    assert all(room["ready"] for room in rooms)
