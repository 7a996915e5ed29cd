"""Publishing folders: what comes out is what went in, and bad input leaves nothing behind."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archid.errors import ArchidError, Interrupted
from archid.store import ingest as ingest_module
from archid.store import intake
from archid.store.errors import (
    ChangedWhileReading,
    DiskFull,
    FileUnreadable,
    NotPublishable,
    StoreReadOnly,
)
from archid.store.ingest import Ingest, Ingested, remove_leftovers
from archid.store.intake import SourceFile
from archid.store.layout import StatePaths
from archid.store.settling import SettledSources
from protocol.entries import FileEntry
from protocol.ids import ChunkId, FleetId, PieceId
from protocol.layout import Layout
from protocol.manifest import ManifestRoot
from protocol.paths import PathRefused
from tests.unit.store.disks import as_root, read_only, small_disk, with_xfs

FLEET = FleetId(b"f" * 32)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    made = StatePaths(tmp_path / "state", tmp_path / "scripts")
    made.prepare()
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def noise(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat."""
    from blake3 import blake3

    return blake3(seed.to_bytes(4, "big")).digest(length=size_bytes)


def entries(folder: Path) -> list[Path]:
    """Everything below, in path order."""
    return sorted(folder.rglob("*"), key=lambda path: str(path.relative_to(folder)).encode())


def feed(ingest: Ingest, folder: Path, *, batch: int = 128) -> None:
    """What the client does: walk, open, hand over."""
    waiting: list[SourceFile] = []

    def flush() -> None:
        try:
            ingest.add_files(waiting)
        finally:
            for each in waiting:
                os.close(each.descriptor)
            waiting.clear()

    for path in entries(folder):
        name = str(path.relative_to(folder))
        info = path.lstat()
        if path.is_symlink():
            flush()
            ingest.add_link(name, os.readlink(path))
        elif path.is_dir():
            flush()
            ingest.add_folder(name)
        else:
            fd = os.open(path, os.O_RDONLY)
            waiting.append(SourceFile(name, fd, bool(info.st_mode & 0o100), info.st_mtime_ns))
            if len(waiting) >= batch:
                flush()
    flush()


def publish(
    paths: StatePaths,
    folder: Path,
    *,
    previous: Layout | None = None,
    version: int = 1,
    threads: int = 2,
    size_bytes: int = 0,
    settled: SettledSources | None = None,
) -> tuple[Ingested, Layout]:
    """Publish the folder; the layout is the new version's, or the previous one's."""
    with Ingest(
        paths, FLEET, "feature", "Film", version, previous=previous, threads=threads,
        size_bytes=size_bytes, settled=settled,
    ) as ingest:  # fmt: skip
        feed(ingest, folder)
        done = ingest.finish()
    if done.unchanged:
        assert previous is not None
        return done, previous
    return done, Layout.from_pieces(done.root, done.pieces)


def check_tree(paths: StatePaths, folder: Path, layout: Layout) -> None:
    """The tree on disk is the source, read-only, and every byte is what the manifest says."""
    tree = paths.tree(layout.manifest)
    assert (
        [str(path.relative_to(tree)) for path in entries(tree)]
        == [entry.path for entry in layout.entries]
        == [str(path.relative_to(folder)) for path in entries(folder)]
    )
    assert stat.S_IMODE(tree.stat().st_mode) == 0o555
    for entry in layout.entries:
        placed, original = tree / entry.path, folder / entry.path
        if not isinstance(entry, FileEntry):
            if original.is_symlink():
                assert os.readlink(placed) == os.readlink(original)
            else:
                assert stat.S_IMODE(placed.stat().st_mode) == 0o555
            continue
        data = placed.read_bytes()
        assert data == original.read_bytes()
        info = placed.stat()
        assert stat.S_IMODE(info.st_mode) == entry.mode
        assert info.st_mtime_ns == entry.mtime_ns
        for offset, chunk in layout.chunks_of(entry):
            assert ChunkId.of(data[offset : offset + chunk.length]) == chunk.id


def cached_bytes(path: Path) -> int:
    """How much of a file is in the page cache (cachestat, Linux 6.5)."""

    class Range(ctypes.Structure):
        _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))

    libc = ctypes.CDLL(None, use_errno=True)
    found = (ctypes.c_uint64 * 5)()
    with path.open("rb") as file:
        if libc.syscall(451, file.fileno(), ctypes.byref(Range(0, 0)), found, 0):
            pytest.skip("needs cachestat")
    return int(found[0]) * mmap.PAGESIZE


def nothing_is_left(paths: StatePaths) -> bool:
    """Whether neither staging nor trees hold anything."""
    return not list(paths.staging.iterdir()) and not list(paths.trees.iterdir())


def fill(folder: Path) -> None:
    """Every kind of entry."""
    (folder / "empty folder").mkdir()
    (folder / "nested" / "deeper").mkdir(parents=True)
    (folder / "empty").write_bytes(b"")
    (folder / "one").write_bytes(b"1")
    (folder / "nested" / "large").write_bytes(noise(9_500_000))
    (folder / "nested" / "copy").write_bytes(noise(9_500_000))
    (folder / "nested" / "deeper" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "nested" / "deeper" / "run.sh").chmod(0o755)
    (folder / "nested" / "link").symlink_to("deeper/run.sh")
    (folder / "nested" / "up").symlink_to("..")
    (folder / "caf\u00e9 nfc").write_bytes(b"composed")
    (folder / "cafe\u0301 nfd").write_bytes(b"decomposed")
    (folder / "back\\slash").write_bytes(noise(8_192))
    os.utime(folder / "one", ns=(1, 1_234_567_890_123_456_789))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_folder_with_every_kind_of_entry_comes_out_as_it_went_in(
    paths: StatePaths, source: Path, threads: int
) -> None:
    fill(source)
    done, layout = publish(paths, source, threads=threads)
    check_tree(paths, source, layout)
    assert not list(paths.staging.iterdir())
    assert (done.root.files, done.root.folders, done.root.links) == (8, 3, 2)
    # The copy adds no new bytes.
    assert done.new_bytes == done.root.size_bytes - 9_500_000
    assert next(e for e in layout.files if e.path == "one").mtime_ns == 1_234_567_890_123_456_789


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c/d", "c/e", "f/g/h", "日本/語", "é"]),
        st.tuples(st.integers(0, 400_000), st.integers(0, 3)),
    )
)
def test_arbitrary_trees_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, tuple[int, int]]
) -> None:
    base = tmp_path_factory.mktemp("arbitrary")
    paths = StatePaths(base / "state", base / "scripts")
    paths.prepare()
    folder = base / "source"
    folder.mkdir()
    for path, (size, seed) in drawn.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(noise(size, seed))
    _, layout = publish(paths, folder)
    check_tree(paths, folder, layout)


def test_progress_is_told_in_bytes_and_files(paths: StatePaths, source: Path) -> None:
    fill(source)
    seen: list[tuple[int, int]] = []
    with Ingest(
        paths, FLEET, "feature", "Film", 1, threads=1, progress=lambda b, f: seen.append((b, f))
    ) as ingest:
        feed(ingest, source)
        assert seen[-1] == (ingest.bytes, ingest.files) == (19_008_221, 8)
    assert seen == sorted(seen)
    assert any(0 < read < 9_500_000 for read, _ in seen)


def test_the_documents_are_kept_before_the_tree_appears(paths: StatePaths, source: Path) -> None:
    fill(source)
    kept: list[ManifestRoot] = []

    def keep(root: ManifestRoot, pieces: Mapping[PieceId, bytes]) -> None:
        assert not paths.tree(root.id).exists()
        assert set(pieces) == {ref.id for ref in root.pieces}
        kept.append(root)

    with Ingest(paths, FLEET, "feature", "Film", 1) as ingest:
        feed(ingest, source)
        done = ingest.finish(keep)
    assert kept == [done.root]
    assert paths.tree(done.root.id).is_dir()


def test_content_that_did_not_change_is_no_new_version(paths: StatePaths, source: Path) -> None:
    fill(source)
    first, layout = publish(paths, source)
    for path in entries(source):
        if not path.is_symlink():
            os.utime(path, ns=(5, 5))
    again, _ = publish(paths, source, previous=layout, version=2)
    assert again.unchanged
    assert again.root == first.root
    assert (again.new_bytes, again.pieces) == (0, {})
    assert [path.name for path in paths.trees.iterdir()] == [first.root.id.hex()]
    assert not list(paths.staging.iterdir())


def test_an_unchanged_file_keeps_its_old_time_and_is_the_same_file_on_disk(
    paths: StatePaths, source: Path
) -> None:
    fill(source)
    _, before = publish(paths, source)
    (source / "one").write_bytes(b"2")
    os.utime(source / "nested" / "large", ns=(5, 5))
    done, after = publish(paths, source, previous=before, version=2)
    old, new = paths.tree(before.manifest), paths.tree(after.manifest)
    times = {file.path: file.mtime_ns for file in before.files}
    assert {f.path: f.mtime_ns for f in after.files if f.path != "one"} == {
        path: mtime_ns for path, mtime_ns in times.items() if path != "one"
    }
    assert (old / "nested" / "large").samefile(new / "nested" / "large")
    assert (old / "one").read_bytes() == b"1"
    assert done.new_bytes == 1
    # All but the changed and the empty one.
    assert done.linked_files == 6


def test_the_same_bytes_with_another_mode_are_another_file(paths: StatePaths, source: Path) -> None:
    fill(source)
    _, before = publish(paths, source)
    (source / "one").chmod(0o755)
    _, after = publish(paths, source, previous=before, version=2)
    check_tree(paths, source, after)
    assert not (paths.tree(before.manifest) / "one").samefile(paths.tree(after.manifest) / "one")


def test_a_rotten_file_of_the_previous_version_is_not_linked_to(
    paths: StatePaths, source: Path
) -> None:
    fill(source)
    _, before = publish(paths, source)
    rotten = paths.tree(before.manifest) / "nested" / "large"
    time_ns = rotten.stat().st_mtime_ns
    rotten.chmod(0o644)
    with rotten.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"rot")
    rotten.chmod(0o444)
    os.utime(rotten, ns=(time_ns, time_ns))
    (source / "one").write_bytes(b"2")
    _, after = publish(paths, source, previous=before, version=2)
    large = paths.tree(after.manifest) / "nested" / "large"
    assert large.read_bytes() == (source / "nested" / "large").read_bytes()
    assert large.stat().st_mtime_ns == time_ns


def test_a_previous_version_whose_tree_is_gone_still_tells_the_times(
    paths: StatePaths, source: Path, tmp_path: Path
) -> None:
    fill(source)
    _, before = publish(paths, source)
    elsewhere = StatePaths(tmp_path / "other", tmp_path / "other scripts")
    elsewhere.prepare()
    os.utime(source / "nested" / "large", ns=(5, 5))
    done, _ = publish(elsewhere, source, previous=before, version=2)
    assert done.unchanged


def test_files_one_size_but_changed_in_the_middle_are_copied_anew(
    paths: StatePaths, source: Path
) -> None:
    data = bytearray(noise(12_000_000))
    (source / "film").write_bytes(data)
    _, before = publish(paths, source)
    data[6_000_000:6_000_003] = b"new"
    (source / "film").write_bytes(data)
    done, after = publish(paths, source, previous=before, version=2)
    check_tree(paths, source, after)
    assert 0 < done.new_bytes < 400_000


def test_holes_stay_holes_and_read_as_zeros(paths: StatePaths, source: Path) -> None:
    with (source / "sparse").open("wb") as file:
        file.truncate(60 << 20)
        file.seek(30 << 20)
        file.write(noise(100_000))
    if (source / "sparse").stat().st_blocks * 512 > 10 << 20:
        pytest.skip("this file system keeps no holes")
    _, layout = publish(paths, source)
    check_tree(paths, source, layout)
    placed = (paths.tree(layout.manifest) / "sparse").stat()
    assert placed.st_blocks * 512 < 10 << 20


@with_xfs
def test_where_extents_can_be_shared_nothing_is_copied(tmp_path: Path) -> None:
    from tests.unit.store.disks import xfs_disk

    with xfs_disk(tmp_path / "xfs") as disk:
        paths = StatePaths(disk / "state", disk / "scripts")
        paths.prepare()
        (disk / "source").mkdir()
        (disk / "source" / "film").write_bytes(noise(100 << 20))
        os.sync()
        before = os.statvfs(disk)
        _, layout = publish(paths, disk / "source")
        after = os.statvfs(disk)
        check_tree(paths, disk / "source", layout)
        assert (before.f_bfree - after.f_bfree) * before.f_frsize < 10 << 20


def test_what_is_large_against_the_memory_comes_out_as_it_went_in(
    paths: StatePaths, source: Path
) -> None:
    fill(source)
    (source / "film").write_bytes(noise((20 << 20) + 4321))
    with (source / "sparse film").open("wb") as file:
        file.write(noise(9 << 20, 1))
        file.seek(12_345_678)
        file.write(noise(1 << 20, 2))
    _, layout = publish(paths, source, size_bytes=1 << 60)
    check_tree(paths, source, layout)


def at_rest() -> SettledSources:
    """Takes what was written just now for old."""
    return SettledSources(clock=lambda: time.time_ns() + 10**9)


@with_xfs
def test_what_is_shared_is_hashed_where_it_is_warm(tmp_path: Path) -> None:
    from tests.unit.store.disks import xfs_disk

    with xfs_disk(tmp_path / "xfs") as disk:
        paths = StatePaths(disk / "state", disk / "scripts")
        paths.prepare()
        (disk / "source").mkdir()
        film = disk / "source" / "film"
        film.write_bytes(noise(20 << 20))
        with film.open("rb") as opened:
            read: list[int] = []
            ingest = Ingest(
                paths, FLEET, "feature", "Film", 1,
                settled=at_rest(), progress=lambda count, _: read.append(count),
            )  # fmt: skip
            with ingest:
                ingest.add_file("film", opened.fileno(), executable=False, mtime_ns=0)
                done = ingest.finish()
        layout = Layout.from_pieces(done.root, done.pieces)
        tree = paths.tree(layout.manifest) / "film"
        # Nothing of the copy is in memory before somebody reads it.
        assert cached_bytes(tree) == 0
        assert tree.read_bytes() == film.read_bytes()


@with_xfs
def test_a_page_that_is_written_through_a_map_after_it_was_shared_is_a_change(
    tmp_path: Path,
) -> None:
    from tests.unit.store.disks import xfs_disk

    with xfs_disk(tmp_path / "xfs") as disk:
        paths = StatePaths(disk / "state", disk / "scripts")
        paths.prepare()
        target = disk / "film"
        target.write_bytes(noise(20 << 20))
        with target.open("r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            # Dirty in a map that stays writable: the next write need not ask the kernel.
            page[15 << 20] ^= 1
            done = threading.Event()

            def write_again(read: int, _: int) -> None:
                if read and not done.is_set():
                    done.set()
                    page[15 << 20] ^= 1

            with (
                pytest.raises(ChangedWhileReading, match="was changed"),
                Ingest(
                    paths, FLEET, "feature", "Film", 1, settled=at_rest(), progress=write_again
                ) as ingest,
            ):
                ingest.add_file("film", file.fileno(), executable=False, mtime_ns=0)
        assert done.is_set()
        assert nothing_is_left(paths)


# -- bad input


@pytest.fixture
def ingest(paths: StatePaths) -> Iterator[Ingest]:
    with Ingest(paths, FLEET, "feature", "Film", 1) as opened:
        yield opened
    assert nothing_is_left(paths)


def test_a_socket_a_pipe_a_device_and_a_folder_are_refused_by_name(
    ingest: Ingest, tmp_path: Path
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for_reading, for_writing = os.pipe()
        device = os.open("/dev/null", os.O_RDONLY)
        folder = os.open(tmp_path, os.O_RDONLY)
        cases = [
            (ours.fileno(), "a socket"),
            (for_reading, "a named pipe"),
            (device, "a device"),
            (folder, "a folder"),
        ]
        for n, (fd, what) in enumerate(cases):
            with pytest.raises(NotPublishable, match=f"odd{n} is {what}"):
                ingest.add_file(f"odd{n}", fd, executable=False, mtime_ns=0)
        for fd in (for_reading, for_writing, device, folder):
            os.close(fd)


def test_a_descriptor_that_cannot_be_read_is_a_file_that_cannot_be_read(
    ingest: Ingest, source: Path
) -> None:
    (source / "a").write_bytes(b"data")
    fd = os.open(source / "a", os.O_WRONLY)
    with pytest.raises(FileUnreadable, match="a cannot be read"):
        ingest.add_file("a", fd, executable=False, mtime_ns=0)
    os.close(fd)
    with pytest.raises(FileUnreadable, match="b cannot be read"):
        ingest.add_file("b", fd, executable=False, mtime_ns=0)


@pytest.mark.parametrize(
    ("paths_in_order", "why"),
    [
        (["../escape"], r"'\.\.'"),
        (["/etc/passwd"], "absolute"),
        (["b", "a"], "order"),
        (["a", "a"], "twice"),
        (["A", "a"], "only by case"),
        (["cafe\u0301", "caf\u00e9"], "normalisation"),
        (["no/parent"], "not a folder"),
        (["file", "file/inside"], "not a folder"),
        (["bell\x07"], "control"),
        (["not utf-8 \udcff"], "UTF-8"),
        (["x" * 256], "255"),
    ],
)
def test_a_path_that_cannot_be_published_is_refused_at_once(
    ingest: Ingest, source: Path, paths_in_order: list[str], why: str
) -> None:
    (source / "a").write_bytes(b"data")
    *accepted, refused = paths_in_order
    with (source / "a").open("rb") as file:
        for path in accepted:
            ingest.add_file(path, file.fileno(), executable=False, mtime_ns=0)
        with pytest.raises(PathRefused, match=why):
            ingest.add_file(refused, file.fileno(), executable=False, mtime_ns=0)


def test_a_file_cannot_be_put_through_a_link(ingest: Ingest, source: Path, tmp_path: Path) -> None:
    (source / "a").write_bytes(b"data")
    (tmp_path / "outside").mkdir()
    ingest.add_link("link", "elsewhere")
    with (source / "a").open("rb") as file, pytest.raises(PathRefused):
        ingest.add_file("link/a", file.fileno(), executable=False, mtime_ns=0)


def test_links_that_leave_the_tree_are_refused_at_once_or_at_the_end(ingest: Ingest) -> None:
    with pytest.raises(PathRefused, match="leaves"):
        ingest.add_link("a", "../outside")
    ingest.add_folder("b")
    ingest.add_link("b/up", "..")
    ingest.add_link("c", "b/up/../x")
    with pytest.raises(PathRefused, match="through other links"):
        ingest.finish()


def test_a_name_or_kind_that_cannot_be_is_refused_before_anything_is_made(
    paths: StatePaths,
) -> None:
    for kind, name in (("feature", "a/b"), ("feature", "x" * 300), ("Feature", "a")):
        with pytest.raises(PathRefused):
            Ingest(paths, FLEET, kind, name, 1)
    assert nothing_is_left(paths)


def _while_reading(
    paths: StatePaths, target: Path, change: object, *, size_bytes: int = 20 << 20
) -> None:
    """Publish `target` and call `change` once, when a part of it has been read."""
    assert callable(change)
    done = threading.Event()

    def progress(read: int, _: int) -> None:
        if read and not done.is_set():
            done.set()
            change()

    target.write_bytes(noise(size_bytes))
    with (
        Ingest(paths, FLEET, "feature", "Film", 1, progress=progress) as ingest,
        target.open("rb") as file,
    ):
        ingest.add_file("film", file.fileno(), executable=False, mtime_ns=0)


def test_a_file_that_is_truncated_while_it_is_read_is_refused(
    paths: StatePaths, source: Path
) -> None:
    target = source / "film"
    with pytest.raises(ChangedWhileReading, match="film was truncated while"):
        _while_reading(paths, target, lambda: os.truncate(target, 5 << 20))
    assert nothing_is_left(paths)


def test_a_file_that_grows_or_is_rewritten_while_it_is_read_is_refused(
    paths: StatePaths, source: Path
) -> None:
    target = source / "film"

    def append() -> None:
        with target.open("ab") as file:
            file.write(b"more")

    def rewrite() -> None:
        with target.open("r+b") as file:
            file.write(b"other")

    with pytest.raises(ChangedWhileReading, match="grew"):
        _while_reading(paths, target, append)
    with pytest.raises(ChangedWhileReading, match="was changed"):
        _while_reading(paths, target, rewrite)
    assert nothing_is_left(paths)


def test_a_file_replaced_under_its_name_is_published_as_it_was_opened(
    paths: StatePaths, source: Path
) -> None:
    (source / "film").write_bytes(b"first")
    with (source / "film").open("rb") as file:
        (source / "new").write_bytes(b"second")
        os.utime(source / "new", ns=(9, 9))
        with Ingest(paths, FLEET, "feature", "Film", 1) as ingest:
            ingest.add_file("film", file.fileno(), executable=False, mtime_ns=7)
            done = ingest.finish()
    assert (paths.tree(done.root.id) / "film").read_bytes() == b"first"


def test_times_before_1970_become_1970(paths: StatePaths, source: Path) -> None:
    (source / "old").write_bytes(b"x")
    os.utime(source / "old", ns=(-(10**15), -(10**15)))
    _, layout = publish(paths, source)
    assert layout.files[0].mtime_ns == 0


def test_a_batch_in_which_one_file_fails_reports_that_file(paths: StatePaths, source: Path) -> None:
    for n in range(20):
        (source / f"{n:02}").write_bytes(noise(100_000, n))
    with Ingest(paths, FLEET, "feature", "Film", 1, threads=3) as ingest:
        batch = [
            SourceFile(
                f"{n:02}",
                os.open(source / f"{n:02}", os.O_WRONLY if n == 13 else os.O_RDONLY),
                False,
                0,
            )
            for n in range(20)
        ]
        with pytest.raises(FileUnreadable, match="13"):
            ingest.add_files(batch)
        for each in batch:
            os.close(each.descriptor)
    assert nothing_is_left(paths)


def test_cancelling_from_another_thread_stops_in_the_middle_of_a_file(
    paths: StatePaths, source: Path
) -> None:
    (source / "film").write_bytes(noise(60 << 20))
    reading = threading.Event()
    cancelled = threading.Event()

    def progress(read: int, _: int) -> None:
        if read:
            reading.set()
            assert cancelled.wait(20)

    ingest = Ingest(paths, FLEET, "feature", "Film", 1, progress=progress)

    def cancel() -> None:
        assert reading.wait(20)
        ingest.cancel()
        cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with ingest, (source / "film").open("rb") as file, pytest.raises(Interrupted):
        ingest.add_file("film", file.fileno(), executable=False, mtime_ns=0)
    canceller.join()
    assert ingest.bytes < 60 << 20
    assert nothing_is_left(paths)


def test_what_a_killed_process_was_publishing_is_removed_at_the_next_start(
    paths: StatePaths, source: Path
) -> None:
    fill(source)
    killed = Ingest(paths, FLEET, "feature", "Film", 1)
    feed(killed, source)
    (paths.staging / ("ab" * 32)).mkdir()
    assert remove_leftovers(paths) == 1
    assert [path.name for path in paths.staging.iterdir()] == ["ab" * 32]
    killed.abort()


@as_root
def test_a_full_disk_while_publishing_is_named_and_leaves_nothing(
    tmp_path: Path, source: Path
) -> None:
    (source / "a folder").mkdir()
    (source / "a folder" / "small").write_bytes(noise(1000))
    (source / "film").write_bytes(noise(12 << 20))
    with small_disk(tmp_path / "small", "8m") as disk:
        paths = StatePaths(disk / "state", disk / "scripts")
        paths.prepare()
        free = os.statvfs(disk).f_bfree
        for threads in (1, 2):
            with pytest.raises(DiskFull, match="film") as caught:
                publish(paths, source, threads=threads)
            assert caught.value.remedy is not None
            assert nothing_is_left(paths)
            assert os.statvfs(disk).f_bfree == free


@as_root
def test_a_disk_full_of_small_files_is_named_too(tmp_path: Path, source: Path) -> None:
    for n in range(300):
        (source / f"{n:03}").write_bytes(noise(20_000, n))
    with small_disk(tmp_path / "small", "2m") as disk:
        paths = StatePaths(disk / "state", disk / "scripts")
        paths.prepare()
        with pytest.raises(DiskFull):
            publish(paths, source)
        assert nothing_is_left(paths)


@as_root
def test_a_read_only_state_folder_is_named(paths: StatePaths) -> None:
    with read_only(paths.state), pytest.raises(StoreReadOnly):
        Ingest(paths, FLEET, "feature", "Film", 1)


def test_a_disk_that_fails_at_the_last_step_leaves_nothing(
    paths: StatePaths, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source)

    def fail(*_: object) -> None:
        raise DiskFull("somewhere")

    monkeypatch.setattr(ingest_module, "place_tree", fail)
    with pytest.raises(DiskFull):
        publish(paths, source)
    assert nothing_is_left(paths)


def test_no_descriptor_is_left_open(paths: StatePaths, source: Path) -> None:
    fill(source)
    before = len(os.listdir("/proc/self/fd"))
    _, layout = publish(paths, source)
    publish(paths, source, previous=layout, version=2)
    (source / "zz").symlink_to("/etc")
    with pytest.raises(PathRefused):
        publish(paths, source)
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_files_than_descriptors_can_be_published(paths: StatePaths, source: Path) -> None:
    for n in range(400):
        (source / f"{n:03}").mkdir()
        (source / f"{n:03}" / "x").write_bytes(b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    # Folders in between keep the batches of one file; each thread may keep 64 folders open.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used + 3 * 64 + 40, hard), hard))
    try:
        _, layout = publish(paths, source)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    check_tree(paths, source, layout)


def test_one_changed_file_of_2000_makes_few_new_bytes(paths: StatePaths, source: Path) -> None:
    for n in range(2_000):
        folder = source / f"{n // 100:02}"
        folder.mkdir(exist_ok=True)
        (folder / f"{n:04}").write_bytes(noise(500, n))
    first, before = publish(paths, source)
    (source / "11" / "1111").write_bytes(b"changed")
    done, _ = publish(paths, source, previous=before, version=2)
    new = [data for piece, data in done.pieces.items() if piece not in first.pieces]
    assert sum(map(len, new)) + len(done.root.payload) < 150_000
    assert done.new_bytes == 7


def bytes_read() -> int:
    """What this process has read from files so far, as the kernel counts it."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, count = line.partition(": ")
        if name == "rchar":
            return int(count)
    raise AssertionError("the kernel does not count")


@pytest.mark.long
def test_a_sparse_file_over_four_gibibytes_is_published_without_reading_its_holes(
    paths: StatePaths, source: Path
) -> None:
    size = (41 << 30) // 10
    with (source / "huge").open("wb") as file:
        file.truncate(size)
        file.seek(size - 1_000_000)
        file.write(noise(1_000_000))
    before = bytes_read()
    done, layout = publish(paths, source)
    assert bytes_read() - before < 64 << 20, "its holes were read"
    placed = paths.tree(layout.manifest) / "huge"
    assert placed.stat().st_size == size == done.root.size_bytes
    assert placed.stat().st_blocks * 512 < 64 << 20
    last = layout.chunk_count - 1
    place, chunk = layout.place(last), layout.chunk(last)
    assert place.offset > 2**32
    with placed.open("rb") as file:
        file.seek(place.offset)
        assert ChunkId.of(file.read()) == chunk.id


def test_the_size_limit_is_checked_before_reading(
    ingest: Ingest, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_FILE_BYTES", 1000)
    (source / "large").write_bytes(bytes(1001))
    with (source / "large").open("rb") as file, pytest.raises(ArchidError, match="large has 1,001"):
        ingest.add_file("large", file.fileno(), executable=False, mtime_ns=0)
