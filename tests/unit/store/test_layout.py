"""The state folder: its places, modes and format, and its one owner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from archid.errors import Conflict, StorageError
from archid.store.errors import StoreReadOnly
from archid.store.layout import StateLock, StatePaths
from protocol.ids import ManifestId
from tests.unit.store.disks import as_root, read_only


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path / "state", tmp_path / "scripts")


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_everything_is_made_private_and_making_it_again_changes_nothing(paths: StatePaths) -> None:
    paths.prepare()
    paths.prepare()
    for folder in (paths.state, paths.identity, paths.documents, paths.staging, paths.trees):
        assert _mode(folder) == 0o700
    assert paths.format_file.read_text() == "archid state 1\n"
    assert paths.script_links == paths.scripts / "scripts"
    assert paths.release_links.is_dir()
    manifest = ManifestId(b"\xab" * 32)
    assert paths.tree(manifest) == paths.trees / ("ab" * 32)
    assert paths.staging_of(manifest) == paths.staging / ("ab" * 32)


def test_a_players_group_may_go_through_and_read_content_but_nothing_else(
    paths: StatePaths,
) -> None:
    group = os.getgid()
    paths.prepare(player_gid=group)
    assert _mode(paths.state) == 0o710
    for folder in (paths.trees, paths.bundles, paths.scripts, paths.release_links):
        assert _mode(folder) == 0o750
        assert folder.stat().st_gid == group
    for folder in (paths.identity, paths.documents, paths.staging):
        assert _mode(folder) == 0o700


def test_modes_that_an_administrator_chose_stay(paths: StatePaths) -> None:
    paths.scripts.mkdir(mode=0o755)
    paths.scripts.chmod(0o755)
    paths.state.mkdir()
    paths.identity.mkdir()
    paths.identity.chmod(0o755)
    paths.prepare()
    assert _mode(paths.scripts) == 0o755
    assert _mode(paths.identity) == 0o700


def test_the_modes_do_not_depend_on_the_umask(paths: StatePaths) -> None:
    before = os.umask(0o077)
    try:
        paths.prepare(player_gid=os.getgid())
    finally:
        os.umask(before)
    assert _mode(paths.trees) == 0o750


def test_a_newer_format_is_refused_and_left_alone(paths: StatePaths) -> None:
    paths.prepare()
    paths.format_file.write_text("archid state 2\n")
    paths.trees.rmdir()
    with pytest.raises(Conflict, match="format 2") as caught:
        paths.prepare()
    assert caught.value.code == "newer_format"
    assert not paths.trees.exists()


@pytest.mark.parametrize("text", ["", "archid state", "archid state x", "nonsense\n", "\0" * 50])
def test_a_damaged_format_file_is_named_with_its_remedy(paths: StatePaths, text: str) -> None:
    paths.prepare()
    paths.format_file.write_text(text)
    with pytest.raises(StorageError, match="damaged") as caught:
        paths.prepare()
    assert caught.value.remedy is not None
    assert "archid state 1" in caught.value.remedy


def test_a_file_in_the_place_of_a_folder_is_named(paths: StatePaths) -> None:
    paths.state.write_text("")
    with pytest.raises(StorageError, match="not a folder"):
        paths.prepare()


@as_root
def test_a_read_only_state_folder_is_named_as_such(paths: StatePaths) -> None:
    paths.prepare()
    with read_only(paths.state):
        with pytest.raises(StoreReadOnly, match="read-only") as caught:
            paths.prepare()
        assert str(paths.state) in caught.value.message
        with pytest.raises(StoreReadOnly):
            StateLock(paths.lock).acquire()


@as_root
def test_a_state_folder_of_somebody_else_is_named_with_its_remedy(paths: StatePaths) -> None:
    paths.prepare()
    for folder in [paths.state, *paths.state.parents]:
        if folder.stat().st_uid == 0 and folder != Path("/") and folder != Path("/tmp"):
            folder.chmod(0o755)
    program = (
        "import os, sys; from pathlib import Path;"
        "from archid.store.layout import StatePaths; from archid.errors import StorageError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: StatePaths(Path(sys.argv[1]), Path(sys.argv[2])).prepare()\n"
        "except StorageError as error: print(error.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(paths.state), str(paths.scripts)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "not_writable\n", done.stderr


def test_a_second_process_on_the_same_state_is_told_which_one_runs(paths: StatePaths) -> None:
    paths.prepare()
    with StateLock(paths.lock):
        with pytest.raises(Conflict, match=f"pid {os.getpid()}") as caught:
            StateLock(paths.lock).acquire()
        assert caught.value.code == "state_in_use"
    StateLock(paths.lock).acquire().release()


def test_the_lock_of_a_process_that_was_killed_is_free(paths: StatePaths) -> None:
    paths.prepare()
    program = (
        "import sys; from pathlib import Path; from archid.store.layout import StateLock\n"
        "lock = StateLock(Path(sys.argv[1])).acquire(); print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(paths.lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match=f"pid {holder.pid}"):
            StateLock(paths.lock).acquire()
        holder.kill()
        holder.wait()
        StateLock(paths.lock).acquire().release()
