"""Fixtures for central's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from archid.store.layout import StatePaths
from tests.unit.central.fleet import Clock, Fleet, found_fleet


@pytest.fixture(scope="session")
def founded_once(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Founding stretches a passphrase, so it is done once and copied."""
    return found_fleet(tmp_path_factory.mktemp("founded"))


@pytest.fixture
def fleet(founded_once: Fleet, tmp_path: Path) -> Fleet:
    """A fresh fleet of its own for one test."""
    shutil.copytree(founded_once.paths.state, tmp_path / "state")
    paths = StatePaths(tmp_path / "state", tmp_path / "scripts")
    return Fleet(paths, founded_once.node, founded_once.fleet, Clock())
