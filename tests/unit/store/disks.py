"""Disks for tests: small ones, read-only ones, ones with reflinks. Mounting needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

AS_OWNER = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    if os.geteuid() == 0
    else ()
)
"""What runs a command as its user, without root's right to read and write whatever it likes."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
with_xfs = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.xfs") is None, reason="needs root and xfsprogs"
)


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "4m") -> Iterator[Path]:
    """A file system in memory that is soon full."""
    folder.mkdir(exist_ok=True)
    options = f"size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder, mounted over itself so that even root cannot write."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def xfs_disk(folder: Path) -> Iterator[Path]:
    """A file system that can share extents between files."""
    image = folder.with_name(folder.name + ".image")
    folder.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(400 << 20)
    made = subprocess.run(["mkfs.xfs", "-q", str(image)], check=False)
    if made.returncode:
        pytest.skip("mkfs.xfs does not work here")
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("loop mounts do not work here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
