"""`archid publish` as a process, against a server that takes what it sends."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio

from archid.control.connection import Exchange
from archid.control.credentials import Caller
from archid.control.schema import OUTPUTS
from archid.control.wire import close_descriptors
from archid.errors import StorageError
from archid.source_listing import facts_of
from tests.unit.cli.conftest import PROJECT, archid_beside, interrupted
from tests.unit.control import samples
from tests.unit.control.conftest import Serving

Json = dict[str, Any]


class Taking:
    """Reads every file through its descriptor and remembers what it was."""

    def __init__(self) -> None:
        self.params: Json = {}
        self.entries: list[Json] = []
        self.digests: dict[str, str] = {}
        self.most_descriptors = 0

    async def __call__(self, _caller: Caller, params: Json, exchange: Exchange) -> Json:
        self.params = params
        await exchange.event({"event": "publish.compare", "known": False})
        while "commit" not in (taken := await exchange.receive()).body:
            entries = taken.body["entries"]
            self.most_descriptors = max(self.most_descriptors, len(taken.descriptors))
            descriptors = iter(taken.descriptors)
            for entry in entries:
                self.entries.append(entry)
                if entry["type"] == "file":
                    with os.fdopen(next(descriptors), "rb") as stream:
                        self.digests[entry["path"]] = hashlib.sha256(stream.read()).hexdigest()
            await exchange.event({"event": "publish.taken", "entries": len(entries)})
            await exchange.event(
                {
                    "event": "publish.progress",
                    "phase": "reading",
                    "files": len(self.digests),
                    "bytes": 0,
                    "new_bytes": 0,
                }
            )
        count = {kind: sum(e["type"] == kind for e in self.entries) for kind in ("file", "folder")}
        return {
            "manifest": samples.HASH,
            "script": params["script"],
            "kind": params["kind"],
            "version": 1,
            "unchanged": False,
            "files": count["file"],
            "folders": count["folder"],
            "links": len(self.entries) - sum(count.values()),
            "size_bytes": sum(e["size"] for e in self.entries),
            "new_bytes": 0,
            "chunks": 0,
            "pieces": 0,
            "duration_s": 0.5,
        }


async def publish(path: Path, folder: Path, *more: str) -> Any:
    return await archid_beside(
        "--socket", path, "publish", folder, "--script", "film", "--kind", "feature", *more
    )


async def test_what_arrives_is_what_lies_in_the_folder(serving: Serving, tmp_path: Path) -> None:
    folder = tmp_path / "film"
    for number in range(700):
        place = folder / f"reel {number % 7}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"é{number}.bin").write_bytes(os.urandom(number))
    (folder / "empty").mkdir()
    (folder / "tool").write_text("#!/bin/sh\n")
    (folder / "tool").chmod(0o755)
    (folder / "link").symlink_to("reel 1")
    taking = Taking()
    async with serving({"publish": taking}) as path:
        outcome = await publish(path, folder, "--json")
    assert outcome.code == 0, outcome.err
    jsonschema.validate(outcome.json(), OUTPUTS["publish"])
    expected = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink()
    }
    assert taking.digests == expected
    paths = [entry["path"] for entry in taking.entries]
    assert paths == sorted(paths, key=str.encode)
    by_path = {entry["path"]: entry for entry in taking.entries}
    assert by_path["link"]["target"] == "reel 1"
    assert by_path["tool"]["executable"]
    assert by_path["empty"]["type"] == "folder"
    assert by_path["tool"]["mtime_ns"] == (folder / "tool").stat().st_mtime_ns
    assert re.fullmatch("[0-9a-f]{64}", taking.params.pop("listing"))
    assert taking.params == {
        "script": "film",
        "kind": "feature",
        "files": 701,
        "size_bytes": sum((folder / name).stat().st_size for name in expected),
    }
    assert taking.most_descriptors <= 128


async def test_a_person_is_told_what_was_published(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("a")
    async with serving({"publish": Taking()}) as path:
        outcome = await publish(path, tmp_path / "f")
    assert outcome.out.startswith("Published film v1 (feature).\n")
    assert "1 file, 1 B" in outcome.out
    assert outcome.err == ""


async def test_twenty_thousand_files_need_few_descriptors(serving: Serving, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for part in range(20):
        (folder / str(part)).mkdir(parents=True)
        for number in range(1000):
            os.close(os.open(folder / str(part) / str(number), os.O_CREAT | os.O_WRONLY))

    def limited(path: Path) -> subprocess.CompletedProcess[str]:
        words = f"publish {folder} --script film --kind loop --json"
        return subprocess.run(
            ["bash", "-c", f"ulimit -n 256; {sys.executable} -m archid --socket {path} {words}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            cwd=PROJECT,
        )

    taking = Taking()
    async with serving({"publish": taking}) as path:
        done = await trio.to_thread.run_sync(limited, path)
    assert done.returncode == 0, done.stderr
    assert len(taking.digests) == 20_000


async def test_a_daemon_that_gives_up_says_why(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for number in range(1000):
        (tmp_path / "f" / f"{number}").write_text("x")

    async def full(_caller: Caller, _params: Json, exchange: Exchange) -> Json:
        await exchange.event({"event": "publish.compare", "known": False})
        close_descriptors((await exchange.receive()).descriptors)
        raise StorageError("The disk is full", remedy="Make room")

    async with serving({"publish": full}) as path:
        outcome = await publish(path, tmp_path / "f")
    assert outcome.code == 7
    assert outcome.err == "The disk is full.\nMake room.\n"


@pytest.mark.parametrize("what", ["pipe", "missing"])
async def test_nothing_is_begun_for_a_folder_that_is_unfit(
    serving: Serving, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "folder"
    if what == "pipe":
        folder.mkdir()
        os.mkfifo(folder / "pipe")
    taking = Taking()
    async with serving({"publish": taking}) as path:
        outcome = await publish(path, folder)
    assert outcome.code == (2 if what == "pipe" else 3)
    assert taking.params == {}


async def test_ctrl_c_publishes_nothing(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for number in range(500):
        (tmp_path / "f" / f"{number}").write_text("x")
    begun, ended = trio.Event(), trio.Event()

    async def stall(_caller: Caller, _params: Json, exchange: Exchange) -> Json:
        await exchange.event({"event": "publish.compare", "known": False})
        close_descriptors((await exchange.receive()).descriptors)
        begun.set()
        try:
            return await trio.sleep_forever()
        finally:
            ended.set()

    async with serving({"publish": stall}) as path:
        words = ["publish", tmp_path / "f", "--script", "film", "--kind", "sas"]
        with trio.fail_after(30):
            code, err = await interrupted(begun, "--socket", path, *words)
            await ended.wait()
    assert code == 130
    assert err == "Interrupted; nothing was published.\nThe same command starts again.\n"


class Asking(Taking):
    """Knows the folder, and asks for some of its files only."""

    def __init__(self, wanted: set[str]) -> None:
        super().__init__()
        self._wanted = wanted
        self.opened: list[str] = []

    async def __call__(self, _caller: Caller, params: Json, exchange: Exchange) -> Json:
        self.params = params
        await exchange.event({"event": "publish.compare", "known": True})
        asked: list[str] = []
        while "commit" not in (taken := await exchange.receive()).body:
            for descriptor in taken.descriptors:
                with os.fdopen(descriptor, "rb") as stream:
                    assert stream.read().decode() == asked[0]
                self.opened.append(asked.pop(0))
            if taken.body.get("brought"):
                count = len(taken.descriptors)
                await exchange.event({"event": "publish.taken", "entries": count})
                continue
            entries = taken.body["announce"]
            self.entries += entries
            assert not asked
            positions = [n for n, one in enumerate(entries) if one["path"] in self._wanted]
            asked = [entries[n]["path"] for n in positions]
            await exchange.event({"event": "publish.wanted", "wanted": positions})
        assert not asked
        return {"script": params["script"], "kind": params["kind"], **RESULT}


RESULT = {
    "manifest": samples.HASH,
    "version": 2,
    "unchanged": False,
    **dict.fromkeys(("files", "folders", "links", "size_bytes", "new_bytes"), 0),
    **dict.fromkeys(("chunks", "pieces"), 0),
    "duration_s": 0.5,
}


async def test_only_those_files_are_opened_that_are_asked_for(
    serving: Serving, tmp_path: Path
) -> None:
    folder = tmp_path / "film"
    folder.mkdir()
    names = [f"{number:04}" for number in range(3000)]
    for name in names:
        (folder / name).write_text(name)
    (folder / "0500").unlink()
    (folder / "0500").symlink_to("0501")
    wanted = set(names[:300]) | set(names[2500:2501])
    asking = Asking(wanted)
    async with serving({"publish": asking}) as path:
        outcome = await publish(path, folder, "--json")
    assert outcome.code == 0, outcome.err
    assert asking.opened == sorted(wanted)
    assert [entry["path"] for entry in asking.entries] == names
    by_path = {entry["path"]: entry for entry in asking.entries}
    assert by_path["0001"]["facts"] == facts_of((folder / "0001").stat()).hex()


async def test_a_folder_that_is_known_as_a_whole_ends_at_once(
    serving: Serving, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("a")

    async def known(_caller: Caller, params: Json, _exchange: Exchange) -> Json:
        unchanged = {"version": 1, "unchanged": True}
        return {"script": params["script"], "kind": params["kind"], **RESULT, **unchanged}

    async with serving({"publish": known}) as path:
        outcome = await publish(path, tmp_path / "f")
    assert outcome.code == 0
    assert outcome.out.startswith("film v1 is published already with exactly this content.\n")


async def test_who_distrusts_the_dates_has_everything_read(
    serving: Serving, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("a")
    taking = Taking()
    async with serving({"publish": taking}) as path:
        outcome = await publish(path, tmp_path / "f", "--rehash")
    assert outcome.code == 0
    assert taking.params["listing"] is None


async def test_a_file_that_changes_between_announcing_and_opening_is_named(
    serving: Serving, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("a")

    async def late(_caller: Caller, _params: Json, exchange: Exchange) -> Json:
        await exchange.event({"event": "publish.compare", "known": True})
        await exchange.receive()
        (tmp_path / "f" / "a").write_text("b")
        await exchange.event({"event": "publish.wanted", "wanted": [0]})
        return await trio.sleep_forever()

    async with serving({"publish": late}) as path:
        outcome = await publish(path, tmp_path / "f")
    assert outcome.code == 6
    assert "a changed while it was being published" in outcome.err
