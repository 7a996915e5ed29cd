"""Spoils a tree at the room on purpose, so that a test can see the comparison notice it.

The daemon's trees are read-only; whoever runs the demo owns them and can undo that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.demo.cast import Fault


def spoil(fault: Fault, tree: Path) -> None:
    """Do what the fault says to a script at the room; nothing for faults of other places."""
    tree = tree.resolve()
    below = sorted(tree.rglob("*"))
    files = [path for path in below if path.is_file() and not path.is_symlink()]
    match fault:
        case Fault.BYTES:
            flip_a_byte(largest_file(tree))
        case Fault.FILE:
            _remove(next(path for path in files if path.suffix == ".json"))
        case Fault.MODE:
            next(path for path in files if path.stat().st_mode & stat.S_IXUSR).chmod(0o444)
        case Fault.LINK:
            link = next(path for path in below if path.is_symlink())
            _remove(link)
            with _writable(link.parent):
                link.symlink_to("elsewhere")
        case Fault.FOLDER:
            folder = next(path for path in below if path.is_dir() and not any(path.iterdir()))
            with _writable(folder.parent):
                folder.rmdir()
        case _:
            pass


def largest_file(tree: Path) -> Path:
    """The file in which a flipped byte matters most."""
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    return max(sorted(files), key=lambda path: path.stat().st_size)


def flip_a_byte(path: Path) -> int:
    """Change one bit in the middle as a disk would, without a trace in times; says where."""
    status = path.stat()
    path.chmod(0o600)
    descriptor = os.open(path, os.O_RDWR)
    try:
        middle = os.fstat(descriptor).st_size // 2
        [value] = os.pread(descriptor, 1, middle)
        os.pwrite(descriptor, bytes([value ^ 0x01]), middle)
    finally:
        os.close(descriptor)
    path.chmod(stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return middle


def _remove(path: Path) -> None:
    with _writable(path.parent):
        path.unlink()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    mode = stat.S_IMODE(folder.stat().st_mode)
    folder.chmod(0o700)
    try:
        yield
    finally:
        folder.chmod(mode)
