"""The few kernel calls that Python's `os` lacks or offers one byte range at a time.

Everything here works on ext4, XFS, btrfs, overlayfs and tmpfs: what a file system cannot do
(sharing extents, telling holes apart) is reported by a return value or replaced by the plain way,
never by an error. Deciding what to copy where, and what an error means for a person, is left to
the callers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

FICLONE: Final = 0x40049409

# How the kernel says that it cannot share extents here: another file system, none that can,
# offsets off the block grid, a file that is swap or sealed.
_CANNOT_SHARE: Final = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOTTY,
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.EPERM,
        errno.ETXTBSY,
    }
)

_IOV_MAX: Final = 1024
_STATFS_ROOM: Final = 512  # more than any machine's structure takes
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_SYNC_FILE_RANGE_WRITE: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Write everything dirty of the file system behind `fd` to disk; raises OSError.

    One call makes a whole tree durable. Since Linux 5.8 it also reports write errors that
    happened since `fd` was opened, which `sync` never did.
    """
    while _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def file_system_type(fd: int) -> int:
    """The number of the file system's type, as statfs(2) lists them; raises OSError."""
    # Everywhere the first field, and a long; the rest of the structure is of no use here.
    found = ctypes.create_string_buffer(_STATFS_ROOM)
    while _libc.fstatfs(fd, found) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return ctypes.c_ulong.from_buffer(found).value & 0xFFFFFFFF


def wait_for_writes(fd: int) -> None:
    """Return when no write(2) to the file is under way that had begun before.

    Best effort: looking for data takes the lock that a write holds on ext4 and btrfs.
    """
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:
        return


def start_writeback(fd: int, offset: int = 0, length: int = 0) -> None:
    """Let the kernel begin to write dirty pages to disk, by default all of a file's.

    It makes nothing durable: `syncfs` then has less left to do.
    """
    if hasattr(_libc, "sync_file_range"):
        _libc.sync_file_range(
            fd,
            ctypes.c_int64(offset),
            ctypes.c_int64(length),
            ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
        )


def past_the_cache(fd: int, on: bool) -> bool:
    """Let writes go to the disk directly, or again not; False where the file system cannot.

    Then memory, offset and length have to be aligned, or a write fails with EINVAL.
    """
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def clone_file(source_fd: int, target_fd: int) -> bool:
    """Let the target share all extents of the source; False where that is not possible."""
    try:
        fcntl.ioctl(target_fd, FICLONE, source_fd)
    except OSError as error:
        if error.errno in _CANNOT_SHARE:
            return False
        raise
    return True


def data_ranges(fd: int, size_bytes: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges of `fd` from `start` to `size_bytes` that are not holes.

    Where the file system keeps no holes this is one range. Rounded to whatever the file system
    rounds to, so bytes that were never written can be inside.
    """
    position = start
    while position < size_bytes:
        try:
            found = os.lseek(fd, position, os.SEEK_DATA)
            end = os.lseek(fd, found, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            yield position, size_bytes
            return
        if found >= size_bytes:
            return
        yield found, min(end, size_bytes)
        position = end


def pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` on; returns the bytes read, fewer only at the file's end."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def pwrite_all(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`; raises OSError (ENOSPC, EDQUOT, EROFS, EIO)."""
    count = os.pwrite(fd, data, offset)
    rest = memoryview(data).cast("B")
    while count < len(rest):
        rest = rest[count:]
        offset += count
        count = os.pwrite(fd, rest, offset)
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def pwritev_all(fd: int, parts: Sequence[Buffer], offset: int) -> None:
    """Write `parts` one after the other from `offset` on, in as few calls as possible."""
    if len(parts) == 1:
        pwrite_all(fd, parts[0], offset)
        return
    for first in range(0, len(parts), _IOV_MAX):
        batch = parts[first : first + _IOV_MAX]
        expected = sum(memoryview(part).nbytes for part in batch)
        written = os.pwritev(fd, batch, offset)
        if written < expected:
            # A short write is rare (a signal, a disk that just filled up): finish part by part.
            position = 0
            for part in batch:
                view = memoryview(part).cast("B")
                if position + len(view) > written:
                    skip = max(0, written - position)
                    pwrite_all(fd, view[skip:], offset + position + skip)
                position += len(view)
        offset += expected


def forget_cached(fd: int, offset: int = 0, length: int = 0) -> None:
    """Tell the kernel that these bytes will not be read again soon; best effort."""
    try:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    except OSError:
        return


def available_bytes(fd: int) -> int:
    """The bytes that this process could still write to the file system behind `fd`."""
    found = os.fstatvfs(fd)
    free_blocks = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return free_blocks * found.f_frsize


def exchange(one: Path, other: Path) -> None:
    """Let two paths swap what they name, in one step where the file system can; raises OSError."""
    result = _libc.renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(other))
    aside = one.with_name(one.name + ".exchanged")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)
