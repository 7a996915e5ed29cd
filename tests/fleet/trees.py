"""A source folder with everything that a script may hold, and how it must look where it arrived.

Content is compared with the programs that a person would use, sha256sum and find, so that no code
of archid judges itself.
"""

from __future__ import annotations

import os
import stat
import subprocess
import unicodedata
from pathlib import Path
from typing import Final

from tests.fleet.scripts import noise

NFC: Final = unicodedata.normalize("NFC", "générique été")
NFD: Final = unicodedata.normalize("NFD", "générique été")


def write_varied(folder: Path, seed: str) -> None:
    """About 9 MB: large and small files, empty ones, empty folders, links, exec bits, names."""
    folder.mkdir(parents=True)
    _write(folder / "reels" / "01" / "panel-left.led", seed + "/1", 5_000_000)
    _write(folder / "reels" / "02" / "panel-left.led", seed + "/2", 3_000_001)
    _write(folder / "reels" / "02" / "one byte", seed + "/3", 1)
    for number in range(60):
        _write(folder / "cues" / f"cue-{number:03}.json", f"{seed}/cue/{number}", 700 + number)
    (folder / "cues" / "none.json").touch()
    (folder / "media" / "empty" / "emptier").mkdir(parents=True)
    _write(folder / "composed" / NFC / f"{NFC}.txt", seed + "/nfc", 900)
    _write(folder / "decomposed" / NFD / f"{NFD}.txt", seed + "/nfd", 900)
    _write(folder / "名前" / "🎬 take -1 %s $(x) 'q'.bin", seed + "/name", 4096)
    _write(folder / "bin" / "check", seed + "/exec", 300)
    (folder / "bin" / "check").chmod(0o755)
    (folder / "bin" / "empty-tool").touch(mode=0o700)
    _write(folder / "bin" / "data", seed + "/plain", 300)
    (folder / "bin" / "data").chmod(0o600)
    (folder / "current").symlink_to("reels/01")
    (folder / "media" / "index").symlink_to("../cues/cue-000.json")
    (folder / "media" / "dangling").symlink_to("not-there-yet")
    os.utime(folder / "cues" / "cue-001.json", ns=(1, 1_111_111_111_123_456_789))


def _write(path: Path, seed: str, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in noise(seed, size):
            file.write(block)


def sha256_sums(folder: Path) -> dict[str, str]:
    """What `sha256sum` says of every file below, by relative path."""
    done = subprocess.run(
        ["find", ".", "-type", "f", "-exec", "sha256sum", "-z", "-b", "--", "{}", "+"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    rows = os.fsdecode(done.stdout).split("\0")
    return {row[66:]: row[:64] for row in rows if row}


def listing(folder: Path) -> list[str]:
    """Type, path and target of everything below, as `find` prints them."""
    done = subprocess.run(
        ["find", ".", "-printf", r"%y %p -> %l\0"], cwd=folder, capture_output=True, check=True
    )
    return sorted(os.fsdecode(done.stdout).split("\0"))


def check_arrived(source: Path, placed: Path) -> None:
    """Raise AssertionError unless all of `source` is at `placed`, byte by byte, and nothing else.

    Modes are the normalised ones: readable by all, writable by nobody, executable as before.
    """
    placed = placed.resolve()
    assert listing(placed) == listing(source)
    sums = sha256_sums(source)
    assert sums
    assert sha256_sums(placed) == sums
    for name in sums:
        before, after = (source / name).lstat(), (placed / name).lstat()
        executable = bool(before.st_mode & stat.S_IXUSR)
        assert stat.S_IMODE(after.st_mode) == (0o555 if executable else 0o444), name
        assert after.st_mtime_ns == before.st_mtime_ns, name
    for parent, _, _ in os.walk(placed):
        assert stat.S_IMODE(os.lstat(parent).st_mode) == 0o555, parent
