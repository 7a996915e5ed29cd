"""Reserved space is nobody else's; what waits goes before what starts later."""

from __future__ import annotations

from pathlib import Path

import pytest

from archid.store.ballast import SIZE_BYTES, Ballast
from archid.store.errors import DiskFull
from archid.store.reserve import Reserve, SpaceShort
from protocol.ids import ManifestId

A, B, C = (ManifestId(letter * 32) for letter in (b"A", b"B", b"C"))
PATH = Path("/state/staging")


class Disk:
    """So many bytes are free, and so many of each version are still to be written."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.missing: dict[ManifestId, int] = {}
        self.reserve = Reserve(lambda: self.free)

    def admit(self, manifest: ManifestId, missing: int, rank: int = 0) -> None:
        self.missing[manifest] = missing
        self.reserve.admit(manifest, rank, lambda: self.missing[manifest], PATH)


def test_two_fetches_do_not_count_on_the_same_bytes() -> None:
    disk = Disk(100)
    disk.admit(A, 60)
    with pytest.raises(SpaceShort) as short:
        disk.admit(B, 60)
    assert short.value.missing_bytes == 20
    assert "20 bytes are missing" in short.value.message
    # As A is written, what is reserved shrinks with what is free.
    disk.free, disk.missing[A] = 50, 10
    with pytest.raises(SpaceShort):
        disk.admit(B, 60)
    disk.free, disk.missing[A] = 70, 0
    disk.reserve.end(A)
    disk.admit(B, 60)


def test_what_starts_later_does_not_take_the_room_that_is_being_made() -> None:
    disk = Disk(50)
    with pytest.raises(SpaceShort):
        disk.admit(A, 80, rank=1)
    assert not disk.reserve.fits(A)
    with pytest.raises(SpaceShort):
        disk.admit(B, 40, rank=2)
    disk.admit(C, 10, rank=1)  # of the same release
    disk.free = 100
    assert disk.reserve.fits(A)
    disk.admit(A, 80, rank=1)
    disk.reserve.end(A)
    disk.reserve.end(C)
    disk.admit(B, 40, rank=2)


def test_what_was_given_up_holds_nobody_back() -> None:
    disk = Disk(50)
    with pytest.raises(SpaceShort):
        disk.admit(A, 80, rank=1)
    disk.reserve.end(A)
    disk.admit(B, 40, rank=2)


def test_what_needs_nothing_more_is_always_admitted() -> None:
    disk = Disk(-10)
    disk.admit(A, 0)


def test_ballast_is_thrown_once_for_what_must_succeed(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast")
    ballast.load()
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= SIZE_BYTES

    def work() -> str:
        if (tmp_path / "ballast").exists():
            raise DiskFull(tmp_path)
        return "done"

    assert ballast.spend(work) == "done"

    def hopeless() -> str:
        raise DiskFull(tmp_path)

    with pytest.raises(DiskFull):
        ballast.spend(hopeless)
    ballast.load()
    assert (tmp_path / "ballast").exists()
