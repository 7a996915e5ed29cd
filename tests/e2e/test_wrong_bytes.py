"""Bytes that are not what was published are never placed, wherever they come from.

Liars are an enrolled REPO with the real key and the real network code that answers falsely; the
rotten one is a REPO whose disk has changed a byte. Each room first meets only them, then central.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from archid.net.peer import Peer
from archid.store.documents import DocumentStore
from protocol.ids import ManifestId
from protocol.messages import (
    Answer,
    GetAny,
    GetHave,
    GetManifest,
    GetPieces,
    GetSpan,
    HaveAnswer,
    HoldersAnswer,
    ManifestAnswer,
    PieceAnswer,
    Request,
    SpanAnswer,
)
from tests.expected_errors import ErrorWatch
from tests.fleet.actor import acting
from tests.fleet.desk import node_id
from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.scripts import noise
from tests.fleet.trees import check_arrived
from tests.fleet.watched import watched_fleet

KINDS = ("feature", "sas", "loop")


def flipped(data: bytes) -> bytes:
    """One bit of it is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


class Lies:
    """Each method is one way not to tell the truth."""

    def __init__(self, documents: DocumentStore) -> None:
        self._documents = documents
        self._pieces: list[PieceAnswer] = []
        self._spans: list[SpanAnswer] = []

    def spans_flipped(self, answer: Answer) -> Answer:
        if isinstance(answer, SpanAnswer):
            return replace(answer, data=flipped(bytes(answer.data)))
        return answer

    def spans_cut_short(self, answer: Answer) -> Answer:
        if isinstance(answer, SpanAnswer):
            return replace(answer, data=bytes(answer.data)[:-1])
        return answer

    def spans_too_long(self, answer: Answer) -> Answer:
        if isinstance(answer, SpanAnswer):
            return replace(answer, data=bytes(answer.data) + b"\0")
        return answer

    def spans_swapped(self, answer: Answer) -> Answer:
        """The right bytes of the span that was asked for before."""
        if isinstance(answer, SpanAnswer):
            self._spans.append(answer)
            return replace(answer, data=self._spans[len(self._spans) - 2].data)
        return answer

    def spans_empty(self, answer: Answer) -> Answer:
        return replace(answer, data=b"") if isinstance(answer, SpanAnswer) else answer

    def pieces_flipped(self, answer: Answer) -> Answer:
        if isinstance(answer, PieceAnswer):
            return replace(answer, data=flipped(answer.data))
        return answer

    def manifests_flipped(self, answer: Answer) -> Answer:
        if isinstance(answer, ManifestAnswer):
            return replace(answer, envelope=flipped(answer.envelope))
        return answer

    def manifests_swapped(self, answer: Answer) -> Answer:
        """Another manifest of the same fleet, with good signatures."""
        if isinstance(answer, ManifestAnswer):
            others = (self._documents.get_manifest(one) for one in self._documents.manifests())
            return replace(answer, envelope=next(one for one in others if one != answer.envelope))
        return answer

    def holdings_invented(self, answer: Answer) -> Answer:
        """Claims spans that do not exist, and sends wrong bytes for those that do."""
        if isinstance(answer, HaveAnswer):
            bitmaps = tuple((index, b"\xff" * 64) for index in (0, 1, 2, 3, 4000, 32767))
            return replace(answer, complete=False, bitmaps=bitmaps)
        return self.spans_flipped(answer)


LIES = (
    (Lies.spans_flipped, Lies.spans_cut_short, Lies.spans_too_long),
    (Lies.spans_swapped, Lies.spans_empty, Lies.holdings_invented),
    (Lies.pieces_flipped, Lies.manifests_flipped, Lies.manifests_swapped),
)
"""For each room, the lie about its feature, its SAS script and its loop."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("sources")
    for kind in KINDS:
        for number in range(5):  # spans enough for a liar to be sure of it
            path = base / kind / "reels" / f"{number}.led"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(noise(f"wrong bytes {kind} {number}", 1_000_000)))
    return {kind: base / kind for kind in KINDS}


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]
) -> Iterator[LocalFleet]:
    """A central, two REPOs with everything, and rooms that were never switched on."""
    reported = ("peer_sent_wrong_bytes", "chunk_rotten", "tree_damaged")
    with watched_fleet(tmp_path_factory.mktemp("wrong"), expect=reported) as fleet:
        fleet.found()
        liar = fleet.join("liar", "repo", site="paris")
        rotten = fleet.join("rotten", "repo", site="paris")
        names = [*(f"{number}" for number, _ in enumerate(LIES)), "rotten"]
        for name in names:
            peers = [rotten.address] if name == "rotten" else []
            fleet.join(
                f"room-{name}", "ice", site=f"site-{name}", room="1", kind="salle", peers=peers,
                start=False,
            )  # fmt: skip
        for kind in KINDS:
            fleet.publish(sources[kind], f"film-{kind}", kind)
        with EventTap(liar) as first, EventTap(rotten) as second:
            fleet.apply(
                "film",
                scripts={kind: f"film-{kind}" for kind in KINDS},
                prefetch="2026-01-01T00:00:00Z",
                start="2026-01-02T00:00:00Z",
                end="2126-01-02T00:00:00Z",
                sites=json.dumps([f"site-{name}" for name in names]),
            )
            serial = fleet.central.status()["trust"]["serial"]
            for tap in (first, second):
                tap.wait("listings.complete", lambda event: event["serial"] == serial)
        for repo in (liar, rotten):
            repo.wait(lambda status: status["storage"]["trees"] == len(KINDS), what="replication")
        liar.process.stop()
        yield fleet


def check_whole(room: FleetNode, sources: dict[str, Path]) -> None:
    """Everything has come, and nothing else stands where the player looks."""
    room.wait_active("film")
    for kind, folder in sources.items():
        check_arrived(folder, room.scripts / "releases" / "film" / kind)
    assert len(os.listdir(room.state / "trees")) == len(KINDS)
    room.run("verify")


def start_central(fleet: LocalFleet, rooms: Sequence[FleetNode]) -> None:
    """Start it and let it dial these rooms, which have lost heart about dialling it."""
    fleet.central.peers = tuple(room.address for room in rooms)
    fleet.central.write_config()
    fleet.central.process.start()


def test_a_lying_repo_is_dropped_and_reported_and_the_rooms_get_everything_elsewhere(
    fleet: LocalFleet, sources: dict[str, Path]
) -> None:
    rooms = [fleet.nodes[f"room-{number}"] for number, _ in enumerate(LIES)]
    fleet.central.process.stop()
    fleet.nodes["rotten"].process.stop()
    liar = fleet.nodes["liar"]
    liar.peers = tuple(room.address for room in rooms)
    liar.write_config()
    manifests = {
        kind: ManifestId.from_hex((liar.scripts / "scripts" / f"film-{kind}").resolve().name)
        for kind in KINDS
    }
    lies = {
        (node_id(room), manifest): (Lies(DocumentStore(liar.state / "documents")), lie)
        for room, told in zip(rooms, LIES, strict=True)
        for manifest, lie in zip(manifests.values(), told, strict=True)
    }

    def falsify(peer: Peer, request: Request, answer: Answer) -> Answer:
        if isinstance(answer, HoldersAnswer):
            return replace(answer, holders=())  # rooms that met would get the truth of each other
        if not isinstance(request, GetManifest | GetPieces | GetHave | GetSpan | GetAny):
            return answer
        teller, lie = lies[peer.node, request.manifest]
        return lie(teller, answer)

    async def play() -> None:
        async with acting(liar, falsify), trio.open_nursery() as nursery:
            for tap in taps:
                nursery.start_soon(trio.to_thread.run_sync, lied_to, tap)

    def lied_to(tap: EventTap) -> None:
        """Every lie was noticed, and nothing stands of what was lied about."""
        noticed: set[str] = set()
        while noticed != {manifest.hex() for manifest in manifests.values()}:
            alarm = tap.wait("alarm", lambda event: event["code"] == "peer_sent_wrong_bytes")
            assert alarm["sentence"].startswith("liar sent bytes")
            noticed.add(alarm["manifest"])
        assert os.listdir(tap.node.state / "trees") == []
        assert os.listdir(tap.node.scripts / "releases") == []

    for room in rooms:
        room.process.launch()
    for room in rooms:
        room.process.wait_ready()
    with ExitStack() as stack:
        taps = [stack.enter_context(EventTap(room)) for room in rooms]
        trio.run(play)
    start_central(fleet, rooms)
    for room in rooms:
        check_whole(room, sources)
        room.process.stop()
        watch = ErrorWatch()
        watch.expect("peer_sent_wrong_bytes")
        watch.watch(room.log)
        watch.check()


def test_a_repo_whose_disk_rots_says_so_and_the_room_gets_the_rest_elsewhere(
    fleet: LocalFleet, sources: dict[str, Path]
) -> None:
    rotten, room = fleet.nodes["rotten"], fleet.nodes["room-rotten"]
    if not rotten.process.running:
        rotten.process.start()
    if fleet.central.process.running:
        fleet.central.process.stop()
    film = (rotten.scripts / "scripts" / "film-feature").resolve()
    manifest = ManifestId.from_hex(film.name)
    reel = film / "reels" / "2.led"
    before = reel.stat()
    reel.chmod(0o644)
    with reel.open("r+b") as file:
        file.seek(500_000)
        byte = file.read(1)
        file.seek(500_000)
        file.write(bytes([byte[0] ^ 1]))
    reel.chmod(0o444)
    os.utime(reel, ns=(before.st_atime_ns, before.st_mtime_ns))

    with EventTap(rotten) as tap:
        room.process.start()
        alarm = tap.wait("alarm", lambda event: event["code"] == "tree_damaged")
        assert alarm["manifest"] == manifest.hex()
        # All but the damaged span comes from the rotten one: rot is not a lie.
        room.wait(
            lambda status: (
                sorted(script["state"] for one in status["deliveries"] for script in one["scripts"])
                == ["fetching", "held", "held"]
                and {path.name for path in (room.scripts / "scripts").iterdir()}
                == {"film-sas", "film-loop"}
            ),
            what="fetching what is whole",
        )
    assert os.listdir(room.scripts / "releases") == []
    damaged = rotten.run("--json", "verify", check=False)
    assert damaged.returncode != 0
    [tree] = [tree for tree in json.loads(damaged.stdout)["trees"] if not tree["ok"]]
    assert [damage["path"] for damage in tree["damage"]] == ["reels/2.led"]

    with EventTap(rotten) as tap:
        start_central(fleet, [room])
        tap.wait("tree.repaired", lambda event: event["manifest"] == manifest.hex())
    check_whole(room, sources)
    check_arrived(sources["feature"], film)
    assert "peer_sent_wrong_bytes" not in room.log.read_text()
