"""What a folder holds, what of it cannot be published, and in which parts it is sent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir

import pytest

from archid.cli.walk import (
    BATCH_BYTES,
    BATCH_DESCRIPTORS,
    Found,
    Walk,
    check_unchanged,
    open_files,
    walk,
)
from archid.control.wire import close_descriptors
from archid.errors import Conflict, NotFound, UsageError


def test_entries_are_in_the_order_of_their_paths_bytes(tmp_path: Path) -> None:
    for name in ("a/c", "a-b/x", "b", "é/ü", "z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("a/c")
    (tmp_path / "b").chmod(0o755)
    found = walk(tmp_path)
    paths = [entry.path for entry in found.entries]
    assert paths == sorted(paths, key=str.encode)
    assert set(paths) == {"a", "a-b", "a/c", "a-b/x", "b", "empty", "link", "z", "é", "é/ü"}
    by_path = {entry.path: entry for entry in found.entries}
    assert by_path["b"].executable
    assert not by_path["z"].executable
    assert by_path["link"] == by_path["link"]._replace(type="link", target="a/c", size=0)
    assert by_path["empty"].type == "folder"
    assert found.file_count == 5
    assert found.size_bytes == sum(len(name.encode()) for name in ("a/c", "a-b/x", "b", "é/ü", "z"))


def test_everything_that_cannot_be_published_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "fine").write_text("")
    os.mkfifo(tmp_path / "pipe")
    os.mknod(tmp_path / "null", 0o600 | 0o020000, os.makedev(1, 3)) if os.getuid() == 0 else None
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "sock"))
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))).write_text("")
    with pytest.raises(UsageError) as caught:
        walk(tmp_path)
    message = caught.value.message
    assert "'pipe' is a pipe" in message
    assert "'sock' is a socket" in message
    assert "not UTF-8" in message
    if os.getuid() == 0:
        assert "'null' is a device" in message
    message.encode()  # can be shown


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "a/../../outside"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UsageError, match="link"):
        walk(tmp_path)


def test_names_that_differ_by_case_only_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Reel").write_text("")
    (tmp_path / "reel").write_text("")
    with pytest.raises(UsageError, match="differ only by case"):
        walk(tmp_path)


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no folder"):
        walk(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        walk(tmp_path / "file")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_unreadable_file_is_named_as_the_user_sees_it(tmp_path: Path) -> None:
    (tmp_path / "open").write_text("")
    (tmp_path / "closed").write_text("")
    (tmp_path / "closed").chmod(0o600)
    for folder in takewhile(lambda one: one != Path(gettempdir()), (tmp_path, *tmp_path.parents)):
        folder.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from archid.cli.walk import walk\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: walk(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert "'closed' may not be read by this user" in done.stdout
    assert "'open'" not in done.stdout


def test_batches_fit_a_message_and_lose_nothing(tmp_path: Path) -> None:
    entries = [Found(f"{n:05}-{'x' * 200}", "file", 1, False, 0, "") for n in range(1000)]
    entries += [Found(f"d{n:05}-{'é' * 120}", "folder", 0, False, 0, "") for n in range(5000)]
    batches = list(Walk(tmp_path, entries).batches())
    assert [entry for batch in batches for entry in batch] == entries
    for batch in batches:
        assert sum(entry.type == "file" for entry in batch) <= BATCH_DESCRIPTORS
        assert sum(len(entry.path.encode()) for entry in batch) < BATCH_BYTES


def test_a_file_that_became_something_else_is_noticed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    found = walk(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for replace in (
        lambda _path: None,
        lambda path: path.symlink_to("a"),
        os.mkfifo,
        Path.mkdir,
    ):
        (tmp_path / "b").unlink()
        replace(tmp_path / "b")
        with pytest.raises(Conflict, match="changed while it was being published"):
            open_files(found, found.entries)
        with pytest.raises(Conflict, match="changed while it was being published"):
            check_unchanged(found)
        assert len(os.listdir("/proc/self/fd")) == before
        if (tmp_path / "b").is_dir():
            (tmp_path / "b").rmdir()
        (tmp_path / "b").unlink(missing_ok=True)
        (tmp_path / "b").write_text("b")
    (tmp_path / "b").write_text("longer")
    with pytest.raises(Conflict, match="b changed while it was being published"):
        open_files(found, found.entries)
    with pytest.raises(Conflict, match="b changed while it was being published"):
        check_unchanged(found)


def test_a_folder_that_holds_still_is_opened_as_it_was_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    found = walk(tmp_path)
    descriptors = open_files(found, found.entries)
    assert [os.pread(each, 9, 0) for each in descriptors] == [b"a", b"b"]
    close_descriptors(descriptors)
    check_unchanged(found)


def test_what_is_added_meanwhile_is_named(tmp_path: Path) -> None:
    (tmp_path / "cues").mkdir()
    found = walk(tmp_path)
    (tmp_path / "cues" / "late").touch()
    with pytest.raises(Conflict, match="cues/late changed"):
        check_unchanged(found)
