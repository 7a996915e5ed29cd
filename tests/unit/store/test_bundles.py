"""Bundles and the links to them: one rename switches, nothing dangles, readers keep theirs."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import threading
from collections.abc import Collection
from pathlib import Path

import pytest

from archid.errors import Conflict, NotFound, UsageError
from archid.store.bundles import KEEP_S, BundleId, Bundles
from archid.store.errors import StoreReadOnly
from archid.store.layout import StatePaths
from protocol.ids import ManifestId, ReleaseId

RELEASE = ReleaseId(b"R" * 16)
NOW = 2_000_000_000.0


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    paths = StatePaths(tmp_path / "state", tmp_path / "scripts")
    paths.prepare()
    return paths


@pytest.fixture
def bundles(paths: StatePaths) -> Bundles:
    return Bundles(paths)


def add_tree(paths: StatePaths, content: str) -> ManifestId:
    manifest = ManifestId.of(content.encode())
    paths.tree(manifest).mkdir()
    (paths.tree(manifest) / "file").write_text(content)
    return manifest


def add_bundle(paths: StatePaths, bundles: Bundles, generation: int) -> BundleId:
    trees = {kind: add_tree(paths, f"{kind} {generation}") for kind in ("feature", "sas", "loop")}
    bundle = BundleId.of_release(RELEASE, generation, trees)
    bundles.make(bundle, trees)
    return bundle


def collect(bundles: Bundles, now: float, pinned: Collection[BundleId] = ()) -> list[BundleId]:
    """Remove what can be removed; returns what was."""
    return [one for one in bundles.collectable(now, pinned=pinned) if bundles.remove(one)]


def test_a_bundle_leads_to_its_trees_by_relative_links(paths: StatePaths, bundles: Bundles) -> None:
    bundle = add_bundle(paths, bundles, 1)
    path = bundles.path(bundle)
    for kind in ("feature", "sas", "loop"):
        assert (path / kind / "file").read_text() == f"{kind} 1"
        assert os.readlink(path / kind).startswith("../../trees/")
    assert bundles.inspect(bundle).trees["sas"] == ManifestId.of(b"sas 1")
    assert [found.id for found in bundles.bundles()] == [bundle]


def test_a_bundles_id_depends_on_all_that_it_stands_for() -> None:
    one, two = ManifestId.of(b"1"), ManifestId.of(b"2")
    ids = {
        BundleId.of_release(RELEASE, 1, {"sas": one, "loop": two}),
        BundleId.of_release(RELEASE, 1, {"sas": two, "loop": one}),
        BundleId.of_release(RELEASE, 2, {"sas": one, "loop": two}),
        BundleId.of_release(ReleaseId(b"S" * 16), 1, {"sas": one, "loop": two}),
        BundleId.of_release(RELEASE, 1, {"sas": one}),
    }
    assert len(ids) == 5
    assert BundleId.of_release(RELEASE, 1, {"loop": two, "sas": one}) in ids


def test_making_a_bundle_again_keeps_it_and_mends_a_damaged_one(
    paths: StatePaths, bundles: Bundles
) -> None:
    bundle = add_bundle(paths, bundles, 1)
    path, trees = bundles.path(bundle), bundles.inspect(bundle).trees
    inode = path.stat().st_ino
    bundles.make(bundle, trees)
    assert path.stat().st_ino == inode
    (path / "sas").unlink()
    (path / "sas").symlink_to("/etc")
    bundles.make(bundle, trees)
    assert bundles.inspect(bundle).trees == trees
    assert (path / "sas" / "file").read_text() == "sas 1"
    assert [entry.name for entry in paths.bundles.iterdir()] == [bundle.hex()]


def test_a_bundle_of_a_tree_that_is_not_here_is_refused(bundles: Bundles) -> None:
    with pytest.raises(Conflict, match="not here"):
        bundles.make(BundleId(bytes(32)), {"feature": ManifestId(bytes(32))})


def test_activation_switches_and_remembers_the_one_before(
    paths: StatePaths, bundles: Bundles
) -> None:
    one, two = add_bundle(paths, bundles, 1), add_bundle(paths, bundles, 2)
    assert bundles.active("Film") is None
    bundles.activate("Film", one)
    link = paths.release_links / "Film"
    assert (link / "feature" / "file").read_text() == "feature 1"
    assert not os.readlink(link).startswith("/")
    bundles.activate("Film", two)
    bundles.activate("Film", two)
    assert (link / "feature" / "file").read_text() == "feature 2"
    assert bundles.releases() == {"Film": two}
    assert bundles.previous("Film") == one
    bundles.deactivate("Film")
    bundles.deactivate("Film")
    assert not os.path.lexists(link)
    assert bundles.previous("Film") == two
    assert [entry.name for entry in paths.release_links.iterdir()] == []


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", ".hidden", "line\nbreak", "x" * 300, " space", "nul\0"]
)
def test_a_name_that_is_no_name_is_refused(bundles: Bundles, name: str) -> None:
    for ask in (bundles.active, bundles.deactivate, bundles.linked_script, bundles.unlink_script):
        with pytest.raises(UsageError):
            ask(name)
    with pytest.raises(UsageError):
        bundles.activate(name, BundleId(bytes(32)))
    with pytest.raises(UsageError):
        bundles.link_script(name, ManifestId(bytes(32)))


def test_a_release_never_switches_to_what_is_not_whole(paths: StatePaths, bundles: Bundles) -> None:
    one, two = add_bundle(paths, bundles, 1), add_bundle(paths, bundles, 2)
    bundles.activate("Film", one)
    with pytest.raises(NotFound):
        bundles.activate("Film", BundleId(bytes(32)))
    paths.tree(ManifestId.of(b"loop 2")).rename(paths.state / "elsewhere")
    with pytest.raises(Conflict, match="gone"):
        bundles.activate("Film", two)
    assert bundles.active("Film") == one


def test_a_link_of_somebody_else_is_not_ours_and_a_folder_is_not_replaced(
    paths: StatePaths, bundles: Bundles, tmp_path: Path
) -> None:
    one = add_bundle(paths, bundles, 1)
    foreign = tmp_path / one.hex()
    foreign.mkdir()
    (paths.release_links / "Film").symlink_to(foreign)
    assert bundles.active("Film") is None
    bundles.activate("Film", one)
    assert bundles.active("Film") == one
    (paths.release_links / "Other").mkdir()
    (paths.release_links / "Other" / "precious").write_bytes(b"")
    with pytest.raises(Conflict) as refused:
        bundles.activate("Other", one)
    assert refused.value.code == "name_taken"
    with pytest.raises(Conflict) as refused:
        bundles.deactivate("Other")
    assert refused.value.code == "name_taken"
    assert (paths.release_links / "Other" / "precious").exists()


def test_scripts_are_links_to_trees(paths: StatePaths, bundles: Bundles) -> None:
    one, two = add_tree(paths, "one"), add_tree(paths, "two")
    bundles.link_script("A film", one)
    bundles.link_script("A film", two)
    bundles.link_script("Ünïcode 日本", one)
    assert (paths.script_links / "A film" / "file").read_text() == "two"
    assert bundles.scripts() == {"A film": two, "Ünïcode 日本": one}
    assert not os.readlink(paths.script_links / "A film").startswith("/")
    bundles.unlink_script("A film")
    assert bundles.linked_script("A film") is None
    with pytest.raises(Conflict):
        bundles.link_script("A film", ManifestId(bytes(32)))


def test_links_hold_when_a_folder_above_is_itself_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep" / "srv").mkdir(parents=True)
    (tmp_path / "srv").symlink_to(tmp_path / "disk" / "deep" / "srv")
    paths = StatePaths(tmp_path / "state", tmp_path / "srv" / "scripts")
    paths.prepare()
    bundles = Bundles(paths)
    bundle = add_bundle(paths, bundles, 1)
    bundles.activate("Film", bundle)
    assert bundles.active("Film") == bundle
    assert (paths.release_links / "Film" / "loop" / "file").read_text() == "loop 1"


def test_a_reader_sees_one_whole_bundle_through_many_switches(
    paths: StatePaths, bundles: Bundles
) -> None:
    both = [add_bundle(paths, bundles, 1), add_bundle(paths, bundles, 2)]
    bundles.activate("Film", both[0])
    done = threading.Event()
    mixed: list[tuple[str, ...]] = []
    rounds = 0

    def read() -> None:
        nonlocal rounds
        while not done.is_set():
            fd = os.open(paths.release_links / "Film", os.O_RDONLY | os.O_DIRECTORY)
            seen = []
            for kind in ("feature", "sas", "loop"):
                file = os.open(f"{kind}/file", os.O_RDONLY, dir_fd=fd)
                seen.append(os.read(file, 100).decode().split()[1])
                os.close(file)
            os.close(fd)
            rounds += 1
            if len(set(seen)) != 1:
                mixed.append(tuple(seen))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(200):
            bundles.activate("Film", both[turn % 2])
    finally:
        done.set()
        reader.join()
    assert mixed == []
    assert rounds > 10


def test_collecting_keeps_what_is_active_previous_pinned_young_or_locked(
    paths: StatePaths, bundles: Bundles
) -> None:
    made = [add_bundle(paths, bundles, generation) for generation in range(1, 7)]
    pinned, locked, young, old, previous, active = made
    for bundle in (previous, active):
        bundles.activate("Film", bundle)
    for bundle in made:
        os.utime(bundles.path(bundle), (NOW - KEEP_S - 1, NOW - KEEP_S - 1))
    os.utime(bundles.path(young), (NOW - KEEP_S + 1, NOW - KEEP_S + 1))
    player = os.open(bundles.path(locked), os.O_RDONLY)
    fcntl.flock(player, fcntl.LOCK_SH)
    assert collect(bundles, NOW, pinned={pinned}) == [old]
    os.close(player)
    assert collect(bundles, NOW) == sorted([pinned, locked])
    assert {found.id for found in bundles.bundles()} == {young, previous, active}
    assert paths.tree(ManifestId.of(b"feature 4")).is_dir()


def test_a_withdrawn_bundle_goes_when_its_time_is_over(paths: StatePaths, bundles: Bundles) -> None:
    bundle = add_bundle(paths, bundles, 1)
    bundles.activate("Film", bundle)
    bundles.deactivate("Film")
    left = bundles.path(bundle).stat().st_mtime
    assert collect(bundles, left + KEEP_S - 10) == []
    assert collect(bundles, left + KEEP_S) == [bundle]


def test_leftovers_of_a_killed_process_are_removed(paths: StatePaths, bundles: Bundles) -> None:
    bundle = add_bundle(paths, bundles, 1)
    bundles.activate("Film", bundle)
    (paths.bundles / ".new-abc").mkdir()
    (paths.bundles / ".new-abc" / "sas").symlink_to("/etc")
    (paths.release_links / ".new-xyz").symlink_to("nowhere")
    bundles.remove_leftovers()
    assert bundles.active("Film") == bundle
    assert sorted(entry.name for entry in paths.release_links.iterdir()) == ["Film"]
    assert ".new-abc" not in {entry.name for entry in paths.bundles.iterdir()}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_scripts_folder_is_named(paths: StatePaths, bundles: Bundles) -> None:
    bundle = add_bundle(paths, bundles, 1)
    mounted = str(paths.scripts)
    subprocess.run(["mount", "--bind", mounted, mounted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        with pytest.raises(StoreReadOnly):
            bundles.activate("Film", bundle)
    finally:
        subprocess.run(["umount", mounted], check=True)


def _read_as_player(start: Path, gid: int, queue: multiprocessing.SimpleQueue[str]) -> None:
    os.chdir(start)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(65533)
    try:
        text = Path("scripts/releases/Film/feature/file").read_text()
    except OSError as error:
        text = repr(error)
    try:
        os.listdir("state/identity")
        text += " and the identity"
    except PermissionError:
        pass
    queue.put(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize(("gid", "may"), [(65532, True), (65531, False)])
def test_the_players_group_reads_and_others_do_not(tmp_path: Path, gid: int, may: bool) -> None:
    paths = StatePaths(tmp_path / "state", tmp_path / "scripts")
    paths.prepare(player_gid=65532)
    bundles = Bundles(paths)
    bundles.activate("Film", add_bundle(paths, bundles, 1))
    tmp_path.chmod(0o755)
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    player = context.Process(target=_read_as_player, args=(tmp_path, gid, queue))
    player.start()
    said = queue.get()
    player.join()
    assert (said == "feature 1") is may, said
