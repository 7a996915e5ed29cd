"""Copying while cutting: the copy is what was hashed, however late the writes come."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from archid.errors import StorageError
from archid.store import syscalls
from archid.store.chunking import Cutter
from archid.store.errors import ChangedWhileReading
from archid.store.source_reading import CopyingReader, SourceReader

BUFFER_BYTES = 262_144


class LateFuture(Future[Any]):
    """Does its work only when somebody asks for it: as late as the reader allows."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = work

    def _do(self) -> None:
        if not self.done():
            try:
                self.set_result(self._work())
            except StorageError as error:
                self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        self._do()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._do()
        return super().exception(timeout)


class LateWriter(ThreadPoolExecutor):
    """An executor of late futures."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return LateFuture(lambda: fn(*args, **kwargs))


def copy(source: Path, target: Path, *, past_the_cache: bool = False) -> list[bytes]:
    """Copy and cut with writes that come as late as they may; the chunks' ids."""
    reading = os.open(source, os.O_RDONLY)
    writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        reader = CopyingReader(
            "film",
            reading,
            os.fstat(reading),
            lambda _: None,
            target_fd=writing,
            folder=target.parent,
            past_the_cache=past_the_cache,
        )
        with LateWriter() as writer, reader.writing_behind(writer):
            return [chunk.id for chunk in Cutter(buffer_bytes=BUFFER_BYTES).cut(reader)]
    finally:
        os.close(reading)
        os.close(writing)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 4_000_000),
    st.lists(st.tuples(st.integers(0, 4_000_000), st.integers(1, 900_000)), max_size=5),
    st.booleans(),
)
def test_the_copy_is_what_was_hashed_with_and_without_holes(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    parts: list[tuple[int, int]],
    past_the_cache: bool,
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    source = folder / "source"
    with source.open("wb") as file:
        for n, (offset, length) in enumerate(parts):
            file.seek(offset)
            file.write(blake3(bytes([n])).digest(length=length))
        file.truncate(size)
    ids = copy(source, folder / "copied", past_the_cache=past_the_cache)
    data = source.read_bytes()
    assert (folder / "copied").read_bytes() == data
    whole = Cutter(buffer_bytes=BUFFER_BYTES)
    with source.open("rb") as file:
        assert ids == [chunk.id for chunk in whole.cut(file)]


def test_a_write_that_fails_late_is_still_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(bytes(range(256)) * 8_000)

    def fail(fd: int, data: object, offset: int) -> None:
        del fd, data
        if offset >= 1_500_000:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("archid.store.syscalls.pwrite_all", fail)
    with pytest.raises(StorageError, match="full") as caught:
        copy(tmp_path / "source", tmp_path / "copied")
    assert caught.value.code == "disk_full"


def test_no_write_is_left_under_way_when_one_of_the_last_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 12 * BUFFER_BYTES
    (tmp_path / "source").write_bytes(bytes(size))
    waiting: list[Future[Any]] = []

    class Noting(LateWriter):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            waiting.append(super().submit(fn, *args, **kwargs))
            return waiting[-1]

    def fail(fd: int, data: object, offset: int) -> None:
        del fd, data
        if offset >= size - 3 * BUFFER_BYTES:  # the first of the last three
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("archid.store.syscalls.pwrite_all", fail)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "copied").open("wb") as target:
        reader = CopyingReader(
            "film",
            source.fileno(),
            os.fstat(source.fileno()),
            lambda _: None,
            target_fd=target.fileno(),
            folder=tmp_path,
        )

        def copy_all() -> None:
            with Noting() as writer, reader.writing_behind(writer):
                list(Cutter(buffer_bytes=BUFFER_BYTES).cut(reader))

        with pytest.raises(StorageError, match="full"):
            copy_all()
        assert len(waiting) > 3
        assert all(one.done() for one in waiting)


def test_a_file_system_that_refuses_direct_writes_after_all_is_written_to_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "source").write_bytes(content)
    write = syscalls.pwrite_all

    def refuse_direct(fd: int, data: memoryview, offset: int) -> None:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        write(fd, data, offset)

    monkeypatch.setattr(syscalls, "pwrite_all", refuse_direct)
    copy(tmp_path / "source", tmp_path / "copied", past_the_cache=True)
    assert (tmp_path / "copied").read_bytes() == content


def test_reading_stops_at_the_size_that_the_file_had(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"0123456789")
    with (tmp_path / "source").open("rb") as file:
        buffer = memoryview(bytearray(100))
        reader = SourceReader("film", file.fileno(), 7, lambda _: None)
        assert (reader.readinto(buffer), reader.readinto(buffer)) == (7, 0)
        longer = SourceReader("film", file.fileno(), 20, lambda _: None)
        assert longer.readinto(buffer) == 10
        with pytest.raises(ChangedWhileReading, match="film was truncated"):
            longer.readinto(buffer)


def test_a_copy_is_handed_to_the_disk_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(21 << 20)
    (tmp_path / "source").write_bytes(content)
    begun: list[tuple[int, int]] = []
    start = syscalls.start_writeback

    def noted(fd: int, offset: int, length: int) -> None:
        begun.append((offset, length))
        start(fd, offset, length)

    monkeypatch.setattr(syscalls, "start_writeback", noted)
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("w+b") as target,
        ThreadPoolExecutor(1) as writer,
    ):
        reader = CopyingReader(
            "source", source.fileno(), os.fstat(source.fileno()), lambda _: None,
            target_fd=target.fileno(), folder=tmp_path,
        )  # fmt: skip
        with reader.writing_behind(writer):
            for _ in Cutter().cut(reader):
                pass
    assert (tmp_path / "target").read_bytes() == content
    ends = [0, *[offset + length for offset, length in begun]]
    assert [offset for offset, _ in begun] == ends[:-1]
    assert len(content) - ends[-1] < 9 << 20
    assert len(begun) == 2


def test_a_hole_is_not_handed_to_the_disk_as_if_it_had_been_written(tmp_path: Path) -> None:
    path = tmp_path / "source"
    with path.open("wb") as file:
        file.write(b"a" * (1 << 20))
        file.seek(64 << 20)
        file.write(b"b" * (9 << 20))
    with path.open("rb") as source, (tmp_path / "target").open("w+b") as target:
        info = os.fstat(source.fileno())
        reader = CopyingReader(
            "source", source.fileno(), info, lambda _: None,
            target_fd=target.fileno(), folder=tmp_path,
        )  # fmt: skip
        for _ in Cutter().cut(reader):
            pass
    assert (tmp_path / "target").read_bytes() == path.read_bytes()
    assert (tmp_path / "target").stat().st_blocks * 512 < 32 << 20
