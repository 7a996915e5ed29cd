"""Working below one folder: links are never followed, whatever stands in the way goes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from archid.store.tree_folder import TreeFolder, open_folder, remove_tree
from tests.unit.store.disks import AS_OWNER


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "precious").write_bytes(b"precious")
    return outside


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


def untouched(outside: Path) -> bool:
    names = sorted(entry.name for entry in outside.iterdir())
    return names == ["inner", "precious"] and (outside / "precious").read_bytes() == b"precious"


def test_nothing_goes_through_a_link(tree: Path, outside: Path) -> None:
    (tree / "away").symlink_to(outside)
    (tree / "file").symlink_to(outside / "precious")
    with TreeFolder.at(tree) as folder:
        for path in ("file", "away/precious"):
            with pytest.raises((FileNotFoundError, NotADirectoryError)):
                folder.open_file(path)
        assert folder.reopen_file("file") is None
        assert folder.link_target("away/inner") is None
        os.close(folder.create_file("file", 0o600))
        os.close(folder.create_file("away/precious", 0o600))
        folder.make_link("away/inner", "elsewhere")
        folder.remove("away")
    assert untouched(outside)
    assert [entry.name for entry in tree.iterdir()] == ["file"]


def test_the_folder_itself_is_no_link(tree: Path, outside: Path) -> None:
    tree.rmdir()
    tree.symlink_to(outside)
    with pytest.raises(OSError, match=r"tree"):
        TreeFolder.at(tree)
    with pytest.raises(OSError, match=r"tree"):
        open_folder(tree, create=True)


def test_pipes_and_sockets_are_no_files_and_nobody_waits_for_them(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with TreeFolder.at(tree) as folder:
        with pytest.raises(FileNotFoundError):
            folder.open_file("pipe")
        assert folder.reopen_file("pipe") is None
        os.close(folder.create_file("pipe", 0o600))
    assert (tree / "pipe").is_file()


def test_a_file_with_other_links_is_not_written_through(tree: Path, outside: Path) -> None:
    os.link(outside / "precious", tree / "file")
    with TreeFolder.at(tree) as folder:
        assert folder.reopen_file("file") is None
        fd = folder.create_file("file", 0o600)
        os.write(fd, b"new")
        os.close(fd)
    assert untouched(outside)


@pytest.mark.parametrize(("names", "written"), [(1, "new"), (2, "old")])
def test_an_owner_writes_again_what_was_sealed_unless_it_has_more_names(
    tmp_path: Path, names: int, written: str
) -> None:
    reel = tmp_path / "reel"
    reel.write_text("old")
    for number in range(1, names):
        (tmp_path / f"reel-{number}").hardlink_to(reel)
    reel.chmod(0o444)
    write = """
import os, pathlib, sys
from archid.store.tree_folder import TreeFolder
fd = TreeFolder.at(pathlib.Path(sys.argv[1])).reopen_file("reel")
if fd is not None:
    os.pwrite(fd, b"new", 0)
"""
    # Root would be let through whatever the mode says.
    command = [*AS_OWNER, sys.executable, "-c", write, str(tmp_path)]
    subprocess.run(command, check=True)
    assert reel.read_text() == written


def test_few_folders_stay_open_however_many_there_are(tree: Path) -> None:
    with TreeFolder.at(tree) as folder:
        before = len(os.listdir("/proc/self/fd"))
        for n in range(300):
            os.close(folder.create_file(f"{n}/a/b/file", 0o600))
        assert len(os.listdir("/proc/self/fd")) - before <= 64
        assert len([path for path, _ in folder.walk() if path.endswith("file")]) == 300
    assert len(os.listdir("/proc/self/fd")) < before


def test_walking_shows_links_as_links(tree: Path, outside: Path) -> None:
    (tree / "away").symlink_to(outside)
    (tree / "a").mkdir()
    (tree / "a" / "b").write_bytes(b"")
    with TreeFolder.at(tree) as folder:
        walked = {path: stat.S_IFMT(info.st_mode) for path, info in folder.walk()}
    assert walked == {"a": stat.S_IFDIR, "a/b": stat.S_IFREG, "away": stat.S_IFLNK}


def test_a_read_only_tree_is_removed_and_nothing_else(tree: Path, outside: Path) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_bytes(b"")
    (tree / "a" / "away").symlink_to(outside)
    for folder in (tree / "a" / "b", tree / "a", tree):
        folder.chmod(0o500)
    remove_tree(tree)
    remove_tree(tree)
    assert not tree.exists()
    assert untouched(outside)
    (tree.parent / "link").symlink_to(outside)
    remove_tree(tree.parent / "link")
    assert untouched(outside)
