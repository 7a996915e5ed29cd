"""Makes what is to be moved: bytes that do not compress and are the same on every run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fleet.scripts import noise, write_small_files

FOLDERS: Final = 200


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
