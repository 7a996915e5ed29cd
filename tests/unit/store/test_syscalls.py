"""Kernel calls: short writes, holes, and file systems that cannot do what was asked."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from archid.store import syscalls


@pytest.fixture
def fd(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)


def test_syncfs_works_and_reports_what_the_kernel_says(fd: int) -> None:
    syscalls.syncfs(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        syscalls.syncfs(fd)
    assert raised.value.errno == errno.EBADF


def test_only_what_was_written_is_data(fd: int) -> None:
    assert list(syscalls.data_ranges(fd, 0)) == []
    os.ftruncate(fd, 10 << 20)
    assert list(syscalls.data_ranges(fd, 10 << 20)) == []
    os.pwrite(fd, b"x" * 4096, 4 << 20)
    assert list(syscalls.data_ranges(fd, 10 << 20)) == [(4 << 20, (4 << 20) + 4096)]
    assert list(syscalls.data_ranges(fd, (4 << 20) + 100)) == [(4 << 20, (4 << 20) + 100)]
    assert list(syscalls.data_ranges(fd, 10 << 20, 5 << 20)) == []


def test_where_holes_cannot_be_told_everything_is_data() -> None:
    reader, writer = os.pipe()
    assert list(syscalls.data_ranges(reader, 100)) == [(0, 100)]
    os.close(reader)
    os.close(writer)


def _stingy(call: Callable[..., int], chance: random.Random) -> Callable[..., int]:
    """A write that takes only some of what it is given, as on a nearly full disk."""

    def write(fd: int, data: bytes | memoryview | list[bytes], offset: int) -> int:
        joined = b"".join(data) if isinstance(data, list) else bytes(data)
        return call(fd, joined[: chance.randint(1, len(joined))], offset)

    return write


def test_short_writes_are_completed(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(4)
    parts = [chance.randbytes(chance.randint(1, 50)) for _ in range(2500)]
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", _stingy(pwrite, chance))
    monkeypatch.setattr(os, "pwritev", _stingy(pwrite, chance))
    syscalls.pwritev_all(fd, parts, 7)
    syscalls.pwrite_all(fd, memoryview(b"start"), 0)
    monkeypatch.undo()
    assert os.pread(fd, 1 << 20, 0) == b"start\0\0" + b"".join(parts)


def test_reading_ends_where_the_file_ends(fd: int) -> None:
    os.pwrite(fd, b"0123456789", 0)
    buffer = bytearray(8)
    assert syscalls.pread_into(fd, memoryview(buffer), 0) == 8
    assert syscalls.pread_into(fd, memoryview(buffer), 6) == 4
    assert buffer == b"67894567"
    assert syscalls.pread_into(fd, memoryview(buffer), 99) == 0


def test_sharing_is_refused_by_a_result_and_not_by_an_error(fd: int) -> None:
    memory = os.memfd_create("other file system")
    os.write(memory, b"x" * 4096)
    assert syscalls.clone_file(memory, fd) is False
    os.close(memory)


@pytest.mark.parametrize("can", [True, False])
def test_two_folders_swap_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
        (path / "file").write_text(path.name)
    if not can:

        class Old:
            def renameat2(self, *args: object) -> int:
                del args
                ctypes.set_errno(errno.ENOSYS)
                return -1

        monkeypatch.setattr(syscalls, "_libc", Old())
    syscalls.exchange(one, other)
    assert (one / "file").read_text() == "other"
    assert (other / "file").read_text() == "one"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "other"]


def test_swapping_with_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError, match="other"):
        syscalls.exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one").is_dir()
