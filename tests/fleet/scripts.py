"""Makes light scripts that look like real ones: a few large files and many small ones.

The bytes come from BLAKE3's output stream over a seed, so that they are the same on every run,
do not compress, and cost next to nothing to make.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

BLOCK: Final = 4 << 20
PANELS: Final = ("left-1", "left-2", "left-3", "right-1", "right-2", "right-3")


@dataclass(frozen=True)
class ScriptShape:
    """How large a script is: `panel_bytes` for each reel and panel, `cues` small files a reel."""

    reels: int
    panel_bytes: int
    cues: int


FEATURE: Final = ScriptShape(reels=6, panel_bytes=8_000_000, cues=60)  # about 290 MB
SAS: Final = ScriptShape(reels=1, panel_bytes=2_000_000, cues=20)
LOOP: Final = ScriptShape(reels=1, panel_bytes=700_000, cues=8)


def noise(seed: str, size: int) -> Iterator[bytes]:
    """`size` bytes that depend on `seed` alone, in blocks."""
    stream = blake3(seed.encode())
    for start in range(0, size, BLOCK):
        yield stream.digest(length=min(BLOCK, size - start), seek=start)


def write_script(folder: Path, title: str, kind: str, shape: ScriptShape) -> int:
    """Write one script into `folder` (created); return its size in bytes."""
    total = 0
    for reel in range(1, shape.reels + 1):
        panels = folder / "reels" / f"{reel:02}"
        cues = folder / "cues" / f"{reel:02}"
        panels.mkdir(parents=True)
        cues.mkdir(parents=True)
        for panel in PANELS:
            with (panels / f"panel-{panel}.led").open("wb") as file:
                for block in noise(f"{title}/{kind}/{reel}/{panel}", shape.panel_bytes):
                    total += file.write(block)
        for cue in range(1, shape.cues + 1):
            text = json.dumps(
                {
                    "cue": cue,
                    "reel": reel,
                    "edit_unit": cue * 480,
                    "levels": list(next(noise(f"{title}/{kind}/{reel}/cue/{cue}", 512))),
                }
            )
            total += (cues / f"cue-{cue:04}.json").write_text(text)
    index = {"title": title, "kind": kind, "reels": shape.reels, "panels": list(PANELS)}
    total += (folder / "script.json").write_text(json.dumps(index, indent=2) + "\n")
    player = folder / "bin" / "check-panels.sh"
    player.parent.mkdir()
    total += player.write_text('#!/bin/sh\nexec ls "$(dirname "$0")/../reels"\n')
    player.chmod(0o755)
    (folder / "stills").mkdir()  # empty folders are part of a script too
    (folder / "media").mkdir()
    os.symlink("../script.json", folder / "media" / "index.json")
    (folder / "media" / "NOTES").touch()
    return total


def write_small_files(folder: Path, count: int, size: int, *, folders: int, seed: str) -> None:
    """`count` files of `size` bytes spread over `folders` folders."""
    for number in range(count):
        parent = folder / f"{number % folders:04}"
        if number < folders:
            parent.mkdir(parents=True)
        with (parent / f"{number:06}.bin").open("wb") as file:
            for block in noise(f"{seed}/{number}", size):
                file.write(block)
