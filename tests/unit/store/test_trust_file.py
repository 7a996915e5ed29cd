"""The trust file: the old state or the new, and any damage is noticed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archid.store.errors import DiskFull, StoreReadOnly, TrustFileDamaged
from archid.store.trust_file import TrustFile, TrustState

STATE = TrustState(
    root=b"root 2",
    head=b"head",
    grants=(b"new grants", b"old grants"),
    newest_issued_s=1_700_000_000,
    roots=((1, b"root 1"), (2, b"root 2")),
)


@pytest.fixture
def file(tmp_path: Path) -> TrustFile:
    return TrustFile(tmp_path / "trust")


def test_what_was_saved_is_loaded(file: TrustFile) -> None:
    assert file.load() is None
    for state in (TrustState(), STATE, TrustState(root=b"r")):
        file.save(state)
        assert file.load() == state
        assert TrustFile(file.path).load() == state
    assert [entry.name for entry in file.path.parent.iterdir()] == ["trust"]
    assert file.path.stat().st_mode & 0o077 == 0


@given(
    st.builds(
        TrustState,
        root=st.one_of(st.none(), st.binary(min_size=1)),
        head=st.one_of(st.none(), st.binary(min_size=1)),
        grants=st.lists(st.binary(), max_size=5).map(tuple),
        newest_issued_s=st.integers(0, 2**40),
        roots=st.lists(st.tuples(st.integers(0, 2**40), st.binary()), max_size=5).map(tuple),
    )
)
def test_any_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: TrustState) -> None:
    file = TrustFile(tmp_path_factory.mktemp("trust") / "trust")
    file.save(state)
    assert file.load() == state


def test_every_flipped_bit_and_every_truncation_is_noticed(file: TrustFile) -> None:
    file.save(STATE)
    good = file.path.read_bytes()
    for at in range(len(good)):
        file.path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(TrustFileDamaged):
            file.load()
        file.path.write_bytes(good[:at])
        with pytest.raises(TrustFileDamaged):
            file.load()
    file.path.write_bytes(good + b"x")
    with pytest.raises(TrustFileDamaged):
        file.load()


def test_a_damaged_file_is_set_aside_and_a_new_one_takes_its_place(file: TrustFile) -> None:
    file.path.write_bytes(b"rotten")
    with pytest.raises(TrustFileDamaged, match="damaged"):
        file.load()
    aside = file.set_aside()
    assert aside.read_bytes() == b"rotten"
    assert file.load() is None
    file.save(STATE)
    assert file.load() == STATE


def test_a_folder_in_its_place_is_damage(file: TrustFile) -> None:
    file.path.mkdir()
    with pytest.raises(TrustFileDamaged):
        file.load()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_or_read_only_disk_leaves_the_old_state(tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mounted)], check=True)
    try:
        file = TrustFile(mounted / "trust")
        file.save(STATE)
        with pytest.raises(DiskFull):
            file.save(TrustState(head=bytes(100_000)))
        assert file.load() == STATE
        assert [entry.name for entry in mounted.iterdir()] == ["trust"]
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
        with pytest.raises(StoreReadOnly):
            file.save(TrustState())
        assert file.load() == STATE
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)
