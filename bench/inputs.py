"""Makes what is to be moved: bytes that do not compress and are the same on every run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fleet.scripts import noise, write_small_files

FOLDERS: Final = 200
LARGE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class InputShape:
    """`files` files of `file_bytes` bytes each."""

    files: int
    file_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.files * self.file_bytes


def write_input(folder: Path, shape: InputShape) -> None:
    """Fill `folder`, which must not exist: a single file lies in it, many in FOLDERS folders."""
    folder.mkdir()
    if shape.files > 1:
        folders = min(FOLDERS, shape.files)
        write_small_files(folder, shape.files, shape.file_bytes, folders=folders, seed="small")
        return
    with (folder / "film.led").open("wb") as file:
        for block in noise("pair", shape.file_bytes):
            file.write(block)


def discard(folder: Path) -> None:
    """Give back the space of what a round made; its small files stay until the benchmark ends.

    Deleting thousands of files makes creating the next ones on ext4 two to four times slower for a
    while, which would be counted to whichever program comes next.
    """
    for parent, _, names in os.walk(folder):
        os.chmod(parent, 0o700)
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink() and path.stat().st_size > LARGE_BYTES:
                path.unlink()
