"""A second version with a small change: few bytes travel, and each bundle switches at once.

Readers at every server do what a player does, many times a second: resolve the release once, then
open the Feature and the SAS relative to that folder. Both say which take they are; a look that sees
two different takes has seen a mix.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from archid.cli import figures
from tests.demo.cast import ROOMS, TITLE, Fault, Member
from tests.demo.stage import Stage, published
from tests.demo.summary import Renewed
from tests.fleet.local import FleetNode
from tests.fleet.scripts import noise

CHANGED: Final = ("feature", "sas")
CHANGED_BYTES: Final = 64 << 10
LEAD_S: Final = 6
"""How long before they switch the servers hear of it, on top of what the command takes."""
LOOK_EVERY_S: Final = 0.002
FEW: Final = 10
"""The part of the film's size that may travel at most: one of so many."""


def renew(stage: Stage) -> None:
    """Change, publish, release, and watch the switch."""
    with stage.story.step("a small change to the Feature and the SAS") as notes:
        for kind in CHANGED:
            _change(stage, kind)
        before = {member.name: stage.received_bytes(member) for member in ROOMS}
        for kind in CHANGED:
            began = time.monotonic()
            result = stage.publish(kind)
            stage.summary.scripts.append(published(result, time.monotonic() - began))
        start_s = int(time.time()) + LEAD_S
        readers = [Reader(stage.node(member)) for member in ROOMS]
        for reader in readers:
            reader.start()
        try:
            stage.apply(start=datetime.fromtimestamp(start_s, UTC).isoformat())
            notes.say("every server fetches it and waits for the set second")
            if stage.has(Fault.MIX):
                _mix(stage, ROOMS[1])
            stage.wait(
                lambda views: all(views[member.name].generation >= 2 for member in ROOMS),
                what="the second version did not become active",
                alive=[stage.node(member) for member in ROOMS],
            )
            for reader in readers:
                reader.see_second()
        finally:
            for reader in readers:
                reader.close()
        for member, reader in zip(ROOMS, readers, strict=True):
            moved = stage.received_bytes(member) - before[member.name]
            renewed = Renewed(
                member.name, moved, reader.switched_s - start_s, reader.looks, reader.mixed
            )
            stage.summary.renewals.append(renewed)
            if reader.mixed:
                notes.fail(f"{member.name} was seen to play a mix")
                stage.summary.failures.append(
                    f"{member.name} played a mix of two versions at {reader.mixed} of"
                    f" {reader.looks:,} looks"
                )
            if moved > stage.film_bytes / FEW:
                notes.fail(f"{figures.size(moved)} travelled to {member.name} for a small change")
                stage.summary.failures.append(
                    f"{figures.size(moved)} of {figures.size(stage.film_bytes)} travelled to"
                    f" {member.name} for a change of {figures.size(CHANGED_BYTES)}"
                )
        if not notes.failed:
            most = max(one.received_bytes for one in stage.summary.renewals)
            looks = sum(one.looks for one in stage.summary.renewals)
            notes.say(
                f"{figures.size(most)} to a server; {len(ROOMS)} bundles switched within"
                f" {_spread_ms(stage):.0f} ms; {looks:,} looks saw no mix"
            )


def _spread_ms(stage: Stage) -> float:
    moments = [one.after_start_s for one in stage.summary.renewals]
    return 1000 * (max(moments) - min(moments))


def _change(stage: Stage, kind: str) -> None:
    folder = stage.sources / TITLE / kind
    index = folder / "script.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "take": 2}, indent=2) + "\n")
    if kind != "feature":
        return
    panels = sorted(folder.glob("reels/*/*.led"))
    for panel in panels if stage.has(Fault.DELTA) else panels[:1]:
        size = panel.stat().st_size
        changed = size if stage.has(Fault.DELTA) else CHANGED_BYTES
        with panel.open("r+b") as file:
            file.seek((size - changed) // 2)
            for block in noise(f"take 2 of {panel.name} in {panel.parent.name}", changed):
                file.write(block)


class Reader:
    """One player's view of a release, looked at again and again."""

    def __init__(self, node: FleetNode) -> None:
        self.looks = 0
        self.switched_s = 0.0
        """When it first saw the second take whole, seconds UTC."""
        self._seen: Counter[tuple[int, int]] = Counter()
        self._path = node.scripts / "releases" / TITLE
        self._closing = threading.Event()
        self._second = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    @property
    def mixed(self) -> int:
        """How many looks saw two different takes."""
        return sum(count for (feature, sas), count in self._seen.items() if feature != sas)

    def start(self) -> Self:
        self._thread.start()
        return self

    def see_second(self) -> None:
        """Return when it has seen the second version itself."""
        self._second.wait(5)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._closing.wait(LOOK_EVERY_S):
            takes = takes_of(self._path)
            self._seen[takes] += 1
            self.looks += 1
            if takes == (2, 2) and not self._second.is_set():
                self.switched_s = time.time()
                self._second.set()


def takes_of(release: Path) -> tuple[int, int]:
    """Which take of the Feature and of the SAS a player gets that resolves the release once."""
    folder = os.open(release, os.O_PATH | os.O_DIRECTORY)
    try:
        return _take(folder, "feature"), _take(folder, "sas")
    finally:
        os.close(folder)


def _take(folder: int, kind: str) -> int:
    descriptor = os.open(f"{kind}/script.json", os.O_RDONLY, dir_fd=folder)
    with open(descriptor, encoding="utf-8") as file:
        index: Mapping[str, int] = json.load(file)
    return index.get("take", 1)


def _mix(stage: Stage, member: Member) -> None:
    """Switch one server by hand as it must never be done: the Feature first."""
    node = stage.node(member)
    node.wait(
        lambda status: any(
            one["name"] == TITLE and one["generation"] == 2 and one["state"] in ("ready", "active")
            for one in status["deliveries"]
        ),
        what="the second version did not arrive",
    )
    feature = next(
        one for one in stage.summary.scripts if one.kind == "feature" and one.version == 2
    )
    release = node.scripts / "releases" / TITLE
    was = os.readlink(release)
    mixed = node.folder / "mixed"
    shutil.copytree(release.resolve(), mixed, symlinks=True)
    for kind in ("feature", "sas", "loop"):
        tree = (release / kind).resolve()
        mixed.chmod(0o755)
        (mixed / kind).unlink()
        (mixed / kind).symlink_to(tree.parent / feature.manifest if kind == "feature" else tree)
    _point(release, str(mixed))
    threading.Event().wait(50 * LOOK_EVERY_S)
    if os.readlink(release) == str(mixed):
        _point(release, was)


def _point(link: Path, target: str) -> None:
    new = link.with_name(".by-hand")
    new.symlink_to(target)
    new.rename(link)
