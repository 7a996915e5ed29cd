"""What the demo says before it begins, each time in one line, and what it clears away."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests.demo.cast import PORT, Options
from tests.demo.checks import KEPT, MARKER, CannotPlay, clear_away, prepare, remove_folder


@pytest.fixture
def options(tmp_path: Path) -> Options:
    subnet = f"127.{192 + os.getpid() // 250 % 60}.{1 + os.getpid() % 250}"
    return Options(folder=tmp_path / "demo", subnet=subnet, needed_bytes=1)


def refused(options: Options) -> str:
    with pytest.raises(CannotPlay) as why:
        prepare(options)
    assert "\n" not in str(why.value)
    return str(why.value)


def test_a_machine_that_has_everything_gets_a_folder(options: Options) -> None:
    prepare(options)
    assert [path.name for path in options.folder.iterdir()] == [MARKER]


def test_too_little_disk_is_said_with_both_figures(options: Options) -> None:
    said = refused(replace(options, needed_bytes=10**18))
    assert "are free in" in said
    assert "1000000000.0 GB" in said
    assert not options.folder.exists(), "nothing may be left"


def test_a_port_in_use_is_said_with_its_address(options: Options) -> None:
    host = options.addresses[3]
    with socket.socket() as taken:
        taken.bind((host, PORT))
        taken.listen()
        said = refused(options)
    assert f"port {PORT} of {host} is in use" in said
    prepare(options)


def test_an_address_that_is_not_of_this_machine_is_said(options: Options) -> None:
    assert "203.0.113.2 cannot be listened on" in refused(replace(options, subnet="203.0.113"))


def test_a_folder_too_long_for_sockets_is_said(options: Options) -> None:
    deep = options.folder / ("x" * 60) / ("y" * 60)
    assert "too long for the control sockets" in refused(replace(options, folder=deep))


def test_a_folder_of_others_is_left_alone(options: Options) -> None:
    options.folder.mkdir()
    (options.folder / "mine").write_text("dear")
    assert "holds other things" in refused(options)
    remove_folder(options.folder)
    assert (options.folder / "mine").read_text() == "dear"


def test_what_a_killed_demo_left_is_cleared_away(options: Options) -> None:
    prepare(options)
    tree = options.folder / "lyon-1-salle" / "state" / "trees" / "x"
    tree.mkdir(parents=True)
    (tree / "file").touch()
    tree.chmod(0o555)
    clear_away(options)
    assert not options.folder.exists()


def test_a_kept_fleet_that_no_longer_runs_is_cleared_away(options: Options) -> None:
    prepare(options)
    (options.folder / KEPT).touch()
    prepare(options)
    assert [path.name for path in options.folder.iterdir()] == [MARKER]
