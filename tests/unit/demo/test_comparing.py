"""The demo's comparison notices whatever may differ between two trees."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.demo.breaking import spoil
from tests.demo.cast import Fault
from tests.demo.comparing import Contents, compare_at, differences, sha256_of, shortened
from tests.fleet.scripts import ScriptShape, write_script

SHAPE = ScriptShape(reels=1, panel_bytes=3000, cues=3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    write_script(folder, "film", "feature", SHAPE)
    return folder


@pytest.fixture
def room(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "room", symlinks=True))


def compared(source: Path, room: Path) -> list[str]:
    return differences(Contents.of(source), Contents.of(room))


def test_a_copy_is_equal_and_everything_in_it_was_counted(source: Path, room: Path) -> None:
    counted: list[int] = []
    found = compare_at("node", {"feature": room}, {"feature": Contents.of(source)}, counted.append)
    assert found.differences == ()
    assert found.files == sum(counted) == sum(path.is_file() for path in every(source))
    assert found.links == 1
    assert found.folders == sum(path.is_dir() for path in every(source))
    assert found.bytes == sum(path.stat().st_size for path in every(source) if path.is_file())


def every(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_symlink()]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault.BYTES, "has other bytes"),
        (Fault.FILE, "the file cues/01/cue-0001.json is missing"),
        (Fault.MODE, "the file bin/check-panels.sh is not executable there"),
        (Fault.LINK, "the link media/index.json points to elsewhere and not to ../script.json"),
        (Fault.FOLDER, "the folder stills is missing"),
    ],
)
def test_each_fault_is_one_difference(
    source: Path, room: Path, fault: Fault, sentence: str
) -> None:
    spoil(fault, room)
    [told] = compared(source, room)
    assert sentence in told


def add_file(room: Path) -> None:
    (room / "added").touch()


def add_folder(room: Path) -> None:
    (room / "added").mkdir()


def add_link(room: Path) -> None:
    (room / "added").symlink_to("script.json")


@pytest.mark.parametrize("add", [add_file, add_folder, add_link])
def test_what_was_added_is_noticed(source: Path, room: Path, add: Callable[[Path], None]) -> None:
    add(room)
    [told] = compared(source, room)
    assert "added" in told


def test_an_executable_that_was_none_is_noticed(source: Path, room: Path) -> None:
    (room / "script.json").chmod(0o755)
    assert compared(source, room) == ["the file script.json is executable there"]


def test_a_fifo_is_an_error_and_is_not_waited_for(room: Path) -> None:
    os.mkfifo(room / "pipe")
    with pytest.raises(OSError, match="neither a file, a folder nor a link"):
        Contents.of(room)


def test_a_file_that_goes_while_it_is_hashed_is_an_error(room: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        sha256_of(room, ["script.json", "missing"], lambda _files: None)


def test_the_program_and_python_agree_on_odd_names(tmp_path: Path) -> None:
    names = ["new\nline", "back\\slash", "*star", "-dash", " blank ", "\udcff"]
    for name in names:
        (tmp_path / name).write_bytes(os.fsencode(name))
    expected = {name: hashlib.sha256(os.fsencode(name)).hexdigest() for name in names}
    assert sha256_of(tmp_path, names, lambda _files: None) == expected


def test_many_differences_are_shortened() -> None:
    assert shortened(["a", "b"]) == "a; b"
    assert shortened(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"
