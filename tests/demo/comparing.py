"""Compares what is at the room with the source: every file, folder, link and exec bit.

Contents are compared by `sha256sum`, the program, which shares no code with archid; where it is
missing, by Python's hashlib. The room's side is read through the paths that the player uses.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.demo.summary import Compared

MAX_TOLD: Final = 3
"""Differences that are spelt out."""


@dataclass(frozen=True)
class Contents:
    """What a folder holds, by paths relative to it."""

    files: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """SHA-256 and whether its owner may execute it."""
    folders: frozenset[str] = frozenset()
    links: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0

    @classmethod
    def of(cls, folder: Path, hashed: Callable[[int], None] = lambda _files: None) -> Contents:
        """Read it all; `hashed` is told the number of files as they are done. Raises OSError."""
        folders, links, sizes, executable = set(), {}, {}, {}
        for path, status in _walk(folder):
            name = str(path.relative_to(folder))
            if stat.S_ISDIR(status.st_mode):
                folders.add(name)
            elif stat.S_ISLNK(status.st_mode):
                links[name] = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                sizes[name] = status.st_size
                executable[name] = bool(status.st_mode & stat.S_IXUSR)
            else:
                raise OSError(f"{path} is neither a file, a folder nor a link")
        digests = sha256_of(folder, sorted(sizes), hashed)
        files = {name: (digest, executable[name]) for name, digest in digests.items()}
        return cls(files, frozenset(folders), links, sum(sizes.values()))


def differences(source: Contents, found: Contents) -> list[str]:
    """One sentence each for how `found` is not what `source` is."""
    said = []
    for name in sorted(source.files.keys() | found.files.keys()):
        here, there = source.files.get(name), found.files.get(name)
        if there is None:
            said.append(f"the file {name} is missing")
        elif here is None:
            said.append(f"the file {name} is not in the source")
        elif here[0] != there[0]:
            said.append(
                f"the file {name} has other bytes (sha256 {there[0][:12]}, the source"
                f" {here[0][:12]})"
            )
        elif here[1] != there[1]:
            said.append(f"the file {name} is {'not ' if here[1] else ''}executable there")
    said += [f"the folder {name} is missing" for name in sorted(source.folders - found.folders)]
    said += [
        f"the folder {name} is not in the source" for name in sorted(found.folders - source.folders)
    ]
    for name in sorted(source.links.keys() | found.links.keys()):
        if source.links.get(name) != found.links.get(name):
            said.append(
                f"the link {name} points to {found.links.get(name, 'nothing')} and not to"
                f" {source.links.get(name, 'nothing')}"
            )
    return said


def compare_at(
    node: str,
    paths: Mapping[str, Path],
    sources: Mapping[str, Contents],
    hashed: Callable[[int], None],
) -> Compared:
    """Read a node's copy of each script and say how it differs. Raises OSError."""
    began = time.monotonic()
    said: list[str] = []
    held = []
    for kind, source in sources.items():
        found = Contents.of(paths[kind], hashed)
        held.append(found)
        said += [f"{what} ({kind})" for what in differences(source, found)]
    return Compared(
        node,
        hashing_program(),
        files=sum(len(one.files) for one in held),
        folders=sum(len(one.folders) for one in held),
        links=sum(len(one.links) for one in held),
        bytes=sum(one.size_bytes for one in held),
        differences=tuple(said),
        seconds=time.monotonic() - began,
    )


def shortened(sentences: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    told = "; ".join(sentences[:MAX_TOLD])
    more = len(sentences) - MAX_TOLD
    return f"{told}; and {more} more" if more > 0 else told


def hashing_program() -> str:
    """What the files are hashed with, for people."""
    return "sha256sum" if shutil.which("sha256sum") else "hashlib"


def sha256_of(folder: Path, names: Sequence[str], hashed: Callable[[int], None]) -> dict[str, str]:
    """The SHA-256 of each file, in hexadecimal. Raises OSError."""
    if not names:
        return {}
    if shutil.which("sha256sum") is None:
        return _sha256_here(folder, names, hashed)
    digests: dict[str, str] = {}
    for start in range(0, len(names), 1000):
        some = names[start : start + 1000]
        command = ["sha256sum", "--zero", "--", *(f"./{name}" for name in some)]
        with subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            waiting = b""
            while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
                *lines, waiting = (waiting + data).split(b"\0")
                for line in lines:
                    digest, name = line.split(b"  ", 1)
                    digests[os.fsdecode(name[2:])] = digest.decode()
                hashed(len(lines))
            complaint = process.stderr.read().decode(errors="replace").strip()
        if process.returncode or digests.keys() < set(some):
            raise OSError(f"sha256sum could not read {folder}: {complaint}")
    return digests


def _sha256_here(
    folder: Path, names: Sequence[str], hashed: Callable[[int], None]
) -> dict[str, str]:
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        hashed(1)
    return digests


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below, links not followed. Raises OSError, also for what cannot be listed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            status = entry.stat(follow_symlinks=False)
            yield Path(entry.path), status
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(Path(entry.path))
