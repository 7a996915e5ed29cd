"""Staging: verified bytes in, any process may die, nothing outside is touched, one rename out."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archid.store import syscalls
from archid.store.errors import ChunkCorrupt, ChunkMissing, DiskFull, StoreReadOnly
from archid.store.filling import Filling, SpanBytes
from archid.store.placing import remove_superseded
from archid.store.staging import Staging
from archid.store.tree_folder import remove_tree
from tests.unit.store.trees import (
    FOLDER,
    File,
    Link,
    Tree,
    Version,
    a_film,
    assert_tree,
    place,
    random_bytes,
    stage_all,
    version_of,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(staging, trees)"""
    for name in ("staging", "trees"):
        (tmp_path / name).mkdir()
    return tmp_path / "staging", tmp_path / "trees"


def opened(version: Version, folders: tuple[Path, Path]) -> Staging:
    return Staging.open(folders[0] / version.manifest.hex(), version.layout)


def target_of(version: Version, folders: tuple[Path, Path]) -> Path:
    return folders[1] / version.manifest.hex()


def test_a_staged_tree_equals_its_source(folders: tuple[Path, Path]) -> None:
    version = version_of(a_film())
    staging = opened(version, folders)
    stage_all(staging, version)
    assert staging.is_complete
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), version.tree)
    assert list(folders[0].iterdir()) == []


def test_a_tree_without_any_bytes_can_be_placed(folders: tuple[Path, Path]) -> None:
    for tree in ({}, {"a": FOLDER, "a/b": Link("../c"), "c": File(b"")}):
        version = version_of(tree)
        place(version, folders[1], folders[0])
        assert_tree(target_of(version, folders), version.tree)


def test_a_repeated_chunk_is_asked_for_once_and_written_everywhere(
    folders: tuple[Path, Path],
) -> None:
    version = version_of({"a": File(b"x" * 8192), "b": File(b"x" * 12288)})
    staging = opened(version, folders)
    [span] = version.layout.spans
    skip = staging.skip(span)
    assert len(version.span_bytes(span, skip)) == 4096
    staging.write_span(span, skip, version.span_bytes(span, skip))
    assert staging.is_complete
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), version.tree)


@pytest.mark.parametrize("repeats", [True, False])
def test_a_span_is_held_when_each_of_its_chunks_is(
    folders: tuple[Path, Path], *, repeats: bool
) -> None:
    feature = random_bytes(1, 3 << 20)
    tree: Tree = {"a": File(feature)}
    if repeats:
        other = feature[: 1 << 20] + random_bytes(2, 1 << 20)
        tree = {**tree, "b": File(other), "c": File(feature)}
    version = version_of(tree)
    staging = opened(version, folders)
    spans = version.layout.spans
    assert len(spans) > 2
    for at in random.Random(3).sample(range(version.layout.chunk_count), 300):
        staging.write_chunks([(at, version.chunk_bytes(at))])
    for span in spans:
        for one in spans:
            assert staging.is_span_held(one) == Filling.is_span_held(staging, one)
        staging.write_span(span, b"", version.span_bytes(span))
    assert all(staging.is_span_held(span) for span in spans)


def test_wrong_bytes_are_refused_and_nothing_of_that_span_is_written(
    folders: tuple[Path, Path],
) -> None:
    version = version_of({"a": File(random_bytes(1, 20_000))})
    staging = opened(version, folders)
    [span] = version.layout.spans
    good = version.span_bytes(span)
    for wrong in (
        good[:-1],
        good + b"x",
        b"",
        b"\x01" + good[1:],
        good[:9000] + b"\0" + good[9001:],
    ):
        with pytest.raises(ChunkCorrupt):
            staging.write_span(span, b"", wrong)
    assert staging.held_bytes == 0
    assert list(staging.path.iterdir()) == []
    staging.write_span(span, b"", good)
    assert staging.is_complete


def test_one_lying_span_of_a_batch_does_not_spoil_the_others(folders: tuple[Path, Path]) -> None:
    version = version_of({"a": File(random_bytes(1, 3_000_000))})
    staging = opened(version, folders)
    spans = version.layout.spans
    batch = [SpanBytes(span, b"", version.span_bytes(span)) for span in spans]
    batch[1] = batch[1]._replace(data=bytes(len(batch[1].data)))
    faults = staging.write_spans(batch)
    assert [fault is None for fault in faults] == [n != 1 for n in range(len(spans))]
    assert staging.held_spans() == set(range(len(spans))) - {1}


def test_an_incomplete_tree_cannot_be_finished(folders: tuple[Path, Path]) -> None:
    version = version_of(a_film())
    staging = opened(version, folders)
    with pytest.raises(ChunkMissing):
        staging.finish(target_of(version, folders))
    assert not target_of(version, folders).exists()


def test_the_same_span_twice_is_harmless(folders: tuple[Path, Path]) -> None:
    version = version_of(a_film())
    staging = opened(version, folders)
    span = version.layout.spans[0]
    twice = SpanBytes(span, b"", version.span_bytes(span))
    assert staging.write_spans([twice, twice]) == [None, None]
    staging.write_span(*twice)
    stage_all(staging, version)
    staging.write_span(*twice)
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), version.tree)


names = st.sampled_from(["a", "b", "c", "ü", "long name", "x.y"])
contents = st.one_of(
    st.binary(max_size=40),
    st.builds(random_bytes, st.integers(0, 3), st.integers(0, 40_000)),
    st.builds(bytes, st.integers(0, 20_000)),
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Random trees, with repeats, empty files and folders, links and nesting."""
    tree: dict[str, File | Link | None] = {}
    folders = [""]
    for n in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(folders))
        path = f"{parent}{draw(names)}{n}"
        kind = draw(st.sampled_from(["file", "file", "file", "folder", "link"]))
        if kind == "folder":
            tree[path] = FOLDER
            folders.append(path + "/")
        elif kind == "link":
            tree[path] = Link("nowhere")
        else:
            tree[path] = File(
                draw(contents), draw(st.booleans()), draw(st.integers(0, 2**33)) * 1_000_000_007
            )
    return tree


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=trees(), seed=st.integers(0, 2**32), chunk_bytes=st.sampled_from([100, 1000, 4096]))
def test_any_tree_arrives_whole_whenever_the_process_is_killed(
    tmp_path_factory: pytest.TempPathFactory, tree: Tree, seed: int, chunk_bytes: int
) -> None:
    chance = random.Random(seed)
    base = tmp_path_factory.mktemp("kill")
    folders = base / "staging", base / "trees"
    for folder in folders:
        folder.mkdir()
    version = version_of(tree, chunk_bytes=chunk_bytes)
    staging = opened(version, folders)
    pending = list(version.layout.spans)
    chance.shuffle(pending)
    asked = 0
    while pending:
        span = pending.pop()
        if staging.is_span_held(span):
            continue
        skip = staging.skip(span)
        data = version.span_bytes(span, skip)
        asked += len(data)
        if chance.random() < 0.3 and data:
            # Killed in the middle of writing: only some of the span's chunks reached the files.
            wanted = [at for n, at in enumerate(span.chunks) if not _bit(skip, n)]
            some = chance.sample(wanted, chance.randrange(len(wanted) + 1))
            staging.write_chunks([(at, version.chunk_bytes(at)) for at in some])
            held = staging.held_bytes
            staging.close()
            staging = opened(version, folders)
            # Nothing that was verified on disk is asked for again.
            assert staging.held_bytes >= held
            pending = list(version.layout.spans)
            chance.shuffle(pending)
            asked = 0
            continue
        staging.write_span(span, skip, data)
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), version.tree)


def _bit(bitmap: bytes, n: int) -> bool:
    return n // 8 < len(bitmap) and bool(bitmap[n // 8] >> n % 8 & 1)


def test_a_killed_writer_loses_nothing_that_it_had_verified(folders: tuple[Path, Path]) -> None:
    """A real process, really killed with -9, in the middle of a file."""
    version = version_of({"a": File(random_bytes(1, 3_000_000)), "b": File(random_bytes(2, 5000))})
    program = (
        "import os, signal, pathlib\n"
        "from tests.unit.store.trees import *\n"
        "tree = {'a': File(random_bytes(1, 3_000_000)), 'b': File(random_bytes(2, 5000))}\n"
        "v = version_of(tree)\n"
        f"s = Staging.open(pathlib.Path({str(folders[0])!r}) / v.manifest.hex(), v.layout)\n"
        "s.write_span(v.layout.spans[1], b'', v.span_bytes(v.layout.spans[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=os.getcwd(), check=False)
    assert done.returncode == -9
    staging = opened(version, folders)
    assert staging.held_spans() == {1}
    stage_all(staging, version)
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), version.tree)


def _dying_child(work: Callable[[], None], calls_left: int) -> bool:
    """Do `work` in a process that dies at its n-th change on disk; whether it survived."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    left = calls_left

    def deadly(call: Callable[..., object]) -> Callable[..., object]:
        def perform(*args: object, **kwargs: object) -> object:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **kwargs)

        return perform

    code = 1
    try:
        changes = "rename fchmod utime fsync mkdir symlink unlink rmdir chmod pwrite pwritev"
        for name in changes.split():
            setattr(os, name, deadly(getattr(os, name)))
        for name in ("syncfs", "exchange"):
            setattr(syscalls, name, deadly(getattr(syscalls, name)))
        work()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_at_every_single_change_there_is_no_tree_or_a_whole_one(
    folders: tuple[Path, Path], replacing: bool
) -> None:
    tree: Tree = {
        "a": File(random_bytes(1, 9000)),
        "empty": File(b""),
        "f": FOLDER,
        "f/b": File(random_bytes(2, 300), executable=True),
        "f/l": Link("../a"),
    }
    version = version_of(tree)
    target = target_of(version, folders)

    def work() -> None:
        staging = opened(version, folders)
        for span in version.layout.spans:
            skip = staging.skip(span)
            staging.write_span(span, skip, version.span_bytes(span, skip))
        staging.finish(target)

    survived = False
    deaths = 0
    while not survived:
        for folder in folders:
            for left in folder.iterdir():
                remove_tree(left)
        if replacing:
            place(version, folders[1], folders[0])
        survived = _dying_child(work, deaths)
        deaths += not survived
        if target.exists():
            target.chmod(0o555)
            assert_tree(target, tree)
        work()
        assert_tree(target, tree)
        assert list(folders[0].iterdir()) == []
    assert deaths > 15


def test_what_was_staged_for_a_tree_that_stands_is_swept(folders: tuple[Path, Path]) -> None:
    done, going_on = version_of({"a": File(b"1")}), version_of({"a": File(b"2")})
    place(done, folders[1], folders[0])
    for version in (done, going_on):
        opened(version, folders).close()
    remove_superseded(*folders)
    assert [entry.name for entry in folders[0].iterdir()] == [going_on.manifest.hex()]


Damage = Callable[[Path, Path], None]


def _flip(staged: Path, outside: Path) -> None:
    del outside
    with (staged / "big.bin").open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"rotten")


def _truncate(staged: Path, outside: Path) -> None:
    del outside
    os.truncate(staged / "big.bin", 1_000_000)


def _lengthen(staged: Path, outside: Path) -> None:
    del outside
    with (staged / "big.bin").open("ab") as file:
        file.write(b"more" * 1000)


def _file_to_link(staged: Path, outside: Path) -> None:
    (staged / "big.bin").unlink()
    (staged / "big.bin").symlink_to(outside / "precious")


def _file_to_folder(staged: Path, outside: Path) -> None:
    del outside
    (staged / "big.bin").unlink()
    (staged / "big.bin" / "inner").mkdir(parents=True)


def _file_to_pipe(staged: Path, outside: Path) -> None:
    del outside
    (staged / "big.bin").unlink()
    os.mkfifo(staged / "big.bin")


def _folder_to_link(staged: Path, outside: Path) -> None:
    (staged / "panels").rename(outside / "moved")
    (staged / "panels").symlink_to(outside)


def _folder_to_file(staged: Path, outside: Path) -> None:
    (staged / "panels").rename(outside / "moved")
    (staged / "panels").write_bytes(b"x")


def _hard_link(staged: Path, outside: Path) -> None:
    (staged / "big.bin").unlink()
    os.link(outside / "precious", staged / "big.bin")


def _extra(staged: Path, outside: Path) -> None:
    (staged / "extra").mkdir()
    (staged / "extra" / "file").write_bytes(b"x")
    (staged / "panels" / "link").symlink_to(outside)
    (staged / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"")


def _link_elsewhere(staged: Path, outside: Path) -> None:
    (staged / "panels" / "latest").symlink_to(outside)


def _all_to_link(staged: Path, outside: Path) -> None:
    staged.rename(outside / "moved")
    staged.symlink_to(outside)


def _unreadable_modes(staged: Path, outside: Path) -> None:
    del outside
    for inner in staged.rglob("*"):
        inner.chmod(0)
    staged.chmod(0)


@pytest.mark.parametrize(
    "damage",
    [
        _flip, _truncate, _lengthen, _file_to_link, _file_to_folder, _file_to_pipe,
        _folder_to_link, _folder_to_file, _hard_link, _extra, _link_elsewhere, _all_to_link,
        _unreadable_modes,
    ],
)  # fmt: skip
@pytest.mark.parametrize("complete", [False, True])
def test_damage_in_staging_is_fetched_again_and_nothing_outside_is_touched(
    folders: tuple[Path, Path], tmp_path: Path, damage: Damage, complete: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(bytes(2_000_000))
    before = (outside / "precious").stat()
    version = version_of(a_film())
    staging = opened(version, folders)
    stage_all(staging, version)
    if not complete:
        staging.close()
        os.truncate(staging.path / "big.bin", 2_900_000)
        (staging.path / "run.sh").unlink()
    staging.close()
    damage(staging.path, outside)
    staging = opened(version, folders)
    stage_all(staging, version)
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), version.tree)
    after = (outside / "precious").stat()
    assert (outside / "precious").read_bytes() == bytes(2_000_000)
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert {entry.name for entry in outside.iterdir()} <= {"precious", "moved"}


def test_a_file_that_vanishes_while_it_is_open_is_noticed(folders: tuple[Path, Path]) -> None:
    version = version_of({"a": File(random_bytes(1, 3_000_000))})
    staging = opened(version, folders)
    first, *rest = version.layout.spans
    staging.write_span(first, b"", version.span_bytes(first))
    staging._close_files()
    (staging.path / "a").unlink()
    for span in rest:
        staging.write_span(span, b"", version.span_bytes(span))
    with pytest.raises(ChunkMissing):
        staging.finish(target_of(version, folders))
    stage_all(staging, version)
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), version.tree)


def test_holes_are_not_taken_for_content(folders: tuple[Path, Path]) -> None:
    version = version_of({"a": File(random_bytes(1, 4_000_000))})
    staging = opened(version, folders)
    last = version.layout.spans[-1]
    staging.write_span(last, b"", version.span_bytes(last))
    staging.close()
    assert (staging.path / "a").stat().st_blocks * 512 < 2_500_000
    assert opened(version, folders).held_spans() == {len(version.layout.spans) - 1}


def test_a_damaged_tree_is_replaced_in_one_step(folders: tuple[Path, Path]) -> None:
    version = version_of(a_film())
    target = place(version, folders[1], folders[0])
    (target / "run.sh").chmod(0o644)
    (target / "run.sh").write_bytes(b"rotten")
    place(version, folders[1], folders[0])
    assert_tree(target, version.tree)
    assert list(folders[0].iterdir()) == []


def test_more_files_than_descriptors_are_written(folders: tuple[Path, Path]) -> None:
    tree = {f"{n:04}": File(random_bytes(n, 300)) for n in range(400)}
    version = version_of(tree, chunk_bytes=100)
    staging = opened(version, folders)
    order = list(range(version.layout.chunk_count))
    random.Random(3).shuffle(order)
    for at in order:
        staging.write_chunks([(at, version.chunk_bytes(at))])
    assert len(staging._open_files) <= 64
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), tree)
    assert len(os.listdir("/proc/self/fd")) < 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


@as_root
def test_a_full_disk_is_named_and_staging_goes_on_when_there_is_room(small_disk: Path) -> None:
    folders = small_disk / "staging", small_disk / "trees"
    for folder in folders:
        folder.mkdir()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2_500_000))
    version = version_of(a_film())
    staging = opened(version, folders)
    with pytest.raises(DiskFull) as refused:
        staging.require_space()
    assert refused.value.needed_bytes is not None
    assert refused.value.available_bytes is not None
    assert refused.value.needed_bytes > refused.value.available_bytes
    with pytest.raises(DiskFull, match="full") as full:
        stage_all(staging, version)
    assert full.value.remedy
    assert full.value.available_bytes is not None
    held = staging.held_bytes
    assert 0 < held < version.root.size_bytes
    staging.close()
    ballast.unlink()
    staging = opened(version, folders)
    assert staging.held_bytes >= held
    stage_all(staging, version)
    staging.finish(target_of(version, folders))
    assert_tree(target_of(version, folders), version.tree)


@as_root
def test_a_read_only_disk_is_named(folders: tuple[Path, Path]) -> None:
    version = version_of(a_film())
    mounted = str(folders[0])
    subprocess.run(["mount", "--bind", mounted, mounted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        with pytest.raises(StoreReadOnly, match="read-only"):
            opened(version, folders)
    finally:
        subprocess.run(["umount", mounted], check=True)


@as_root
def test_staging_and_finishing_work_for_another_user(folders: tuple[Path, Path]) -> None:
    """The daemon is not root: read-only folders and files must not be in its own way."""
    version = version_of(a_film())
    tmp = folders[0].parent
    for path in (tmp, *folders):
        os.chown(path, 65534, 65534)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.chdir(tmp)
            os.setuid(65534)
            # Relative, since pytest's folder lets nobody else pass.
            here = Path("staging"), Path("trees")
            staging = opened(version, here)
            stage_all(staging, version)
            staging.close()
            os.chmod(staging.path / "panels", 0o500)
            staging = opened(version, here)
            staging.finish(target_of(version, here))
            place(version, here[1], here[0])
            code = 0
        except BaseException as error:  # noqa: BLE001 - reported through the pipe
            os.write(writer, repr(error).encode()[:4000])
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, said
    assert_tree(target_of(version, folders), version.tree)
    assert stat.S_IMODE(target_of(version, folders).stat().st_mode) == 0o555


def test_syncfs_reports_what_the_kernel_says(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    syscalls.syncfs(fd)
    os.close(fd)
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the number is checked below
        syscalls.syncfs(fd)
    assert raised.value.errno == errno.EBADF


@pytest.mark.parametrize("repeated", [False, True])
@given(held=st.sets(st.integers(0, 40)))
@settings(max_examples=40, deadline=None)
def test_what_a_request_leaves_out_is_what_is_held_chunk_by_chunk(
    repeated: bool, held: set[int]
) -> None:
    tree: Tree = {f"{n:02}": File(random_bytes(n, 3000)) for n in range(37)}
    version = version_of({**tree, "z": File(random_bytes(3, 3000))} if repeated else tree)
    with tempfile.TemporaryDirectory() as folder:
        staging = Staging.open(Path(folder) / "staged", version.layout)
        held &= set(range(version.layout.chunk_count))
        staging.write_chunks((at, version.chunk_bytes(at)) for at in sorted(held))
        for span in version.layout.spans:
            assert staging.skip(span) == Filling.skip(staging, span)
        staging.discard()
