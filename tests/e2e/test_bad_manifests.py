"""Manifests that describe what no disk may hold, signed with the fleet's real key.

Central's own key signs them, central's own release grants them, and a real central's network code
offers them, as if somebody had taken over central. A room and a REPO refuse each, name what is
wrong, and write nothing of it, inside or outside their folders.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from archid.central.service import CentralService
from protocol.ids import ChunkId, FleetId, ManifestId, PieceId
from protocol.manifest import ManifestRoot
from protocol.pieces import FileStart, Folder, Link, PieceRef, Record, chunk_table, encode_piece
from tests.expected_errors import ErrorWatch
from tests.fleet.actor import acting
from tests.fleet.desk import at_the_desk
from tests.fleet.events import EventTap
from tests.fleet.local import FleetNode, LocalFleet
from tests.fleet.watched import watched_fleet

CONTENT = b"not what you want to have there\n"
TABLE = chunk_table([(ChunkId.of(CONTENT), len(CONTENT))])
NFC, NFD = (unicodedata.normalize(form, "reel-é") for form in ("NFC", "NFD"))
GOOD = ("sas", "loop")
REFUSED_ERRORS = ("fetch_failed",)


def file(path: str, size: int = len(CONTENT)) -> FileStart:
    """A file whose one chunk is CONTENT, whatever size is claimed."""
    return FileStart(path, False, 0, size, 1, False)


def empty(path: str) -> FileStart:
    return FileStart(path, False, 0, 0, 0, False)


@dataclass(frozen=True)
class Bad:
    """What the manifest's one piece says, what its root claims instead, what must be said of it."""

    records: Sequence[Record]
    says: str
    claims: dict[str, int] = dataclasses.field(default_factory=dict)


MANIFESTS = {
    "parent": Bad([file("../escape")], "'../escape'"),
    "parent inside": Bad([Folder("a"), file("a/../../escape")], "'a/../../escape'"),
    "absolute": Bad([file("/tmp/archid-escape")], "'/tmp/archid-escape' is absolute"),
    "dot": Bad([file("./reel")], "'./reel'"),
    "empty part": Bad([Folder("a"), file("a//reel")], "'a//reel'"),
    "empty path": Bad([file("")], "is empty"),
    "control character": Bad([file("reel\x1b[2J")], "control character"),
    "zero byte": Bad([file("reel\0.led")], "control character"),
    "name too long": Bad([file("x" * 256)], "more than 255 bytes"),
    "no folder": Bad([file("a/reel")], "'a', which is not a folder"),
    "below a file": Bad([file("a"), empty("a/reel")], "'a', which is not a folder"),
    "below a link": Bad([Link("a", "."), file("a/reel")], "'a', which is not a folder"),
    "case": Bad([empty("REEL"), file("reel")], "'reel' and 'REEL' differ only by case"),
    "normalisation": Bad([empty(NFD), file(NFC)], "Unicode normalisation"),
    "twice": Bad([empty("reel"), file("reel")], "appears twice"),
    "out of order": Bad([empty("b"), file("a")], "comes after 'b'"),
    "link outside": Bad([Link("a", "../../../escape"), file("b")], "'../../../escape'"),
    "absolute link": Bad([Link("a", "/etc"), file("b")], "'/etc', which is absolute"),
    "link through links": Bad(
        [Folder("a"), Link("a/b", ".."), Link("a/out", "b/../escape"), file("c")], "'a/out'"
    ),
    "huge file": Bad([file("reel", 2**60)], "size"),
    "huge tree": Bad([file("reel")], "size", {"size_bytes": 2**60}),
    "wrong size": Bad([file("reel", 2**40)], "'reel' do not make up its size"),
    "wrong count": Bad([file("reel")], "entries that it claims", {"files": 3_999_999}),
    "endless chunks": Bad([file("reel")], "chunk", {"chunk_count": 2**60}),
}  # fmt: skip


def crafted(fleet: FleetId, name: str, bad: Bad) -> tuple[ManifestRoot, bytes]:
    """The root with its piece; nothing is checked on the way."""
    has_chunk = any(isinstance(one, FileStart) and one.chunks for one in bad.records)
    table = TABLE if has_chunk else b""
    piece = encode_piece(list(bad.records), table)
    count, size = (1, len(CONTENT)) if has_chunk else (0, 0)
    root = object.__new__(ManifestRoot)
    fields: dict[str, Any] = {
        "fleet": fleet,
        "kind": "feature",
        "name": name,
        "version": 1,
        "profile": 1,
        "encoding": 0,
        "files": sum(isinstance(one, FileStart) for one in bad.records),
        "folders": sum(isinstance(one, Folder) for one in bad.records),
        "links": sum(isinstance(one, Link) for one in bad.records),
        "size_bytes": size,
        "chunk_count": count,
        "pieces": (PieceRef(PieceId.of(piece), len(piece), count, size),),
        **bad.claims,
    }
    for key, value in fields.items():
        object.__setattr__(root, key, value)
    object.__setattr__(root, "payload", root._encode())
    return root, piece


@dataclass(frozen=True)
class Setting:
    """A fleet whose central has signed all of them; only the room and the REPO run."""

    fleet: LocalFleet
    bad: dict[str, ManifestId]

    @property
    def room(self) -> FleetNode:
        return self.fleet.nodes["lyon-1-salle"]

    @property
    def repo(self) -> FleetNode:
        return self.fleet.nodes["repo-1"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    base = tmp_path_factory.mktemp("fleet")
    with watched_fleet(base, expect=REFUSED_ERRORS) as fleet:
        central = fleet.found()
        fleet.join("repo-1", "repo", site="paris", start=False)
        fleet.join("lyon-1-salle", "ice", site="lyon", room="1", kind="salle", start=False)
        for kind in GOOD:
            (base / kind).mkdir()
            (base / kind / "index").write_text(kind)
            fleet.publish(base / kind, f"good-{kind}", kind)
        central.process.stop()
        yield Setting(fleet, at_the_desk(fleet, sign_all))


async def sign_all(service: CentralService) -> dict[str, ManifestId]:
    """Publish each, and a release with it for the room."""
    signed = {}
    for name, bad in MANIFESTS.items():
        root, piece = crafted(service.state.root.fleet, name, bad)
        service._ledger.documents.put_pieces([piece])
        await service.commit_publication(root, by="whoever took over central")
        await service.apply_release(
            f'name = "{name}"\nfeature = "{name}"\nsas = "good-sas"\nloop = "good-loop"\n'
            "prefetch = 2026-01-01T00:00:00Z\nstart = 2026-01-02T00:00:00Z\n"
            'end = 2099-01-02T00:00:00Z\n[targets]\nsites = ["lyon"]\n',
            source="release.toml",
            by="whoever took over central",
        )
        signed[name] = root.id
    return signed


def everything_below(folder: Path) -> set[str]:
    """Every path, without following links; what belongs to a running daemon's databases is not."""
    done = subprocess.run(
        ["find", ".", "-path", "*/state/documents", "-prune", "-o", "-print0"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return {
        os.fsdecode(path)
        for path in done.stdout.split(b"\0")
        if not path.endswith((b"-wal", b"-shm", b".sock", b"addresses.json"))
    }


async def offer(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play central, which says that it holds every one of them, until both have refused all."""

    async with acting(setting.fleet.central, lambda _peer, _request, answer: answer) as actor:
        library = actor._state.library
        documents, holds, piece_of = library.documents, library.holds, library.seeding.piece
        bad = set(setting.bad.values())

        def piece(manifest: ManifestId, wanted: PieceId) -> bytes:
            if manifest in bad:
                return documents.get_piece(wanted)
            return piece_of(manifest, wanted)

        monkeypatch.setattr(library, "holds", lambda one: one in bad or holds(one))
        monkeypatch.setattr(library.seeding, "piece", piece)

        def refuse_all() -> None:
            for node in (setting.repo, setting.room):
                node.process.start()
            with EventTap(setting.repo) as tap:
                left = {one.hex() for one in bad}
                while left:  # each is tried again and again
                    left.discard(tap.wait("fetch.failed")["manifest"])
            setting.room.wait(
                lambda status: (
                    len(status["deliveries"]) == len(bad)
                    and all(one["state"] == "failed" for one in status["deliveries"])
                ),
                what="refusing every release",
            )

        await trio.to_thread.run_sync(refuse_all)


def test_each_is_refused_named_and_nothing_of_it_written(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, expected_errors: ErrorWatch
) -> None:
    # The played central finds no trees of what it says it holds.
    expected_errors.expect("script_not_linked")
    room, repo = setting.room, setting.repo
    before = everything_below(setting.fleet.base.parent)
    trio.run(offer, setting, monkeypatch)
    status = room.status()
    reasons = {one["name"]: one["reason"] for one in status["deliveries"]}
    assert reasons.keys() == MANIFESTS.keys()
    for name, bad in MANIFESTS.items():
        reason = reasons[name]
        assert bad.says in reason, f"{name}: {reason}"
        assert f"'{name}'" in reason or setting.bad[name].short in reason, f"{name}: {reason}"
        assert "Nothing of it was fetched" in reason
        assert reason.isprintable()
    assert status["health"]["level"] == "alarm"
    # Central passed on what was signed: that is no lie of whoever did it.
    assert "peer_sent_wrong_bytes" not in room.log.read_text()
    for node in (room, repo):
        node.process.stop()
        held = {str(path.resolve().name) for path in (node.scripts / "scripts").iterdir()}
        assert set(os.listdir(node.state / "trees")) == held
        assert len(held) == len(GOOD)
        assert os.listdir(node.state / "staging") == []
        assert not list((node.scripts / "releases").iterdir())
    added = everything_below(setting.fleet.base.parent) - before
    allowed = [f"{node.name}/" for node in (room, repo, setting.fleet.central)]
    strangers = [path for path in added if not any(f"/{one}" in path for one in allowed)]
    assert strangers == []
    assert not [path for path in added if "escape" in path or "\x1b" in path]
    assert not Path("/tmp/archid-escape").exists()
