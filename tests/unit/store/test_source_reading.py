"""Copying while cutting: the copy is what was hashed, however late the writes come."""

from __future__ import annotations

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


def copy(source: Path, target: Path) -> list[bytes]:
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
)
def test_the_copy_is_what_was_hashed_with_and_without_holes(
    tmp_path_factory: pytest.TempPathFactory, size: int, parts: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    source = folder / "source"
    with source.open("wb") as file:
        for n, (offset, length) in enumerate(parts):
            file.seek(offset)
            file.write(blake3(bytes([n])).digest(length=length))
        file.truncate(size)
    ids = copy(source, folder / "copied")
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
